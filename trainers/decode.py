"""Decode an image file into pixels (cut a box, resize it, mirror it), and provide a pool of decoding threads.

simplejpeg (libjpeg-turbo) decodes JPEGs. It gives Pillow's pixels in two thirds of the time and releases the
interpreter's lock. It can also reduce an image: decode it at 1/2, 1/4 or 1/8 of its size. This is faster still:

- Scored images are reduced only if twice the requested pixels remain along each side. With fewer remaining pixels, the
  result would differ visibly from Pillow's.
- Training images are reduced if the requested pixels remain. Decoding also uses less exact, faster transforms. The mean
  difference from Pillow's pixels is 1 in 255, less than the effect of any augmentation.

Pillow decodes all other files, including CMYK JPEGs. Grey values of 16 bits are scaled to 8 bits. torch resizes the
bytes with antialiased bilinear interpolation.

The EXIF orientation is ignored, as usual on ImageNet.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Random crops follow torchvision's RandomResizedCrop, with its defaults.
SCALE = (0.08, 1.0)  # range of the area of a crop, as a share of the image
RATIO = (3 / 4, 4 / 3)  # range of width by height, uniform in the logarithm
TRIES = 10  # attempts to draw a crop that fits the image; after them, the centre is taken
LONGEST = 4  # largest ratio of a scored image's sides; longer images are cut before resizing, to bound the memory
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # a header may claim any size; Pillow refuses larger images as well
DEEP = 2**16 - 1  # the white of a 16-bit image
MAX_BUFFER = 64 * 2**20  # bytes; a thread does not keep a larger buffer for its next image


@dataclass(frozen=True, slots=True)
class View:
    """A box of an image, its size after resizing, and whether it is mirrored.

    Decoding keeps the centre square of the resized box.
    """

    left: float  # `left`, `top`, `width`, `height`: the box, in pixels of the image
    top: float
    width: float
    height: float
    resized: tuple[int, int]  # height, width
    flip: bool = False
    exact: bool = False  # whether to give Pillow's pixels, for scoring; training tolerates small differences
    at: tuple[int, int] = (0, 0)  # row and column of the resized box on a canvas (`trainers.datasets.pairs`)


Choose = Callable[[int, int], View]  # called with the width and the height of the image


def random_view(size: int, flip: bool, seed: int, width: int, height: int) -> View:
    """Return a random crop, mirrored with probability 1/2 if `flip`. The crop depends on the seed and the sizes alone.

    size: pixels along a side after resizing. width, height: size of the image.
    """
    rng = random.Random(seed)
    mirrored = rng.random() < 0.5 and flip  # drawn even without `flip`, so that `flip` does not change the crop
    area, ratios = width * height, (math.log(RATIO[0]), math.log(RATIO[1]))
    for _ in range(TRIES):
        target, ratio = area * rng.uniform(*SCALE), math.exp(rng.uniform(*ratios))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            return View(left, top, w, h, (size, size), mirrored)
    # The image is too long for most crops: take the largest centre box within the range of ratios.
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    return View((width - w) // 2, (height - h) // 2, w, h, (size, size), mirrored)


def centre_view(resize: int, width: int, height: int) -> View:
    """Return a view of the whole image with its shorter side resized to `resize` pixels.

    A very long image is cut to its middle (see `LONGEST`).
    """
    short = min(width, height)
    w, h = min(width, LONGEST * short), min(height, LONGEST * short)
    return View(
        (width - w) // 2, (height - h) // 2, w, h, (int(resize * h / short), int(resize * w / short)), exact=True
    )


def decode(path: str, choose: Choose, out: Tensor) -> None:
    """Decode the view that `choose` returns into `out`, uint8 [size, size, 3].

    A damaged file may raise any exception.
    """
    view, pixels, by, _ = decoded(path, choose)
    size = len(out)
    # Convert the box to pixels of the reduced image. Rounding may push the box over an edge by one pixel, so move the
    # box back.
    top, left, height, width = (round(x / by) for x in (view.top, view.left, view.height, view.width))
    top, left = min(top, pixels.shape[0] - height), min(left, pixels.shape[1] - width)
    # torch resizes channels-last bytes without a copy only if they are contiguous. It would convert a strided view of
    # the image to channel planes and back. So copy the box into a buffer first.
    part = np.frombuffer(_buffer("part", 3 * height * width), np.uint8, 3 * height * width).reshape(height, width, 3)
    np.copyto(part, pixels[top : top + height, left : left + width])
    x = F.interpolate(torch.from_numpy(part)[None].permute(0, 3, 1, 2), view.resized, mode="bilinear", antialias=True)
    if view.resized != (size, size):
        top, left = (round((side - size) / 2) for side in view.resized)
        x = x[:, :, top : top + size, left : left + size]
    out.permute(2, 0, 1)[None].copy_(x.flip(3) if view.flip else x)


Decoded = tuple[View, np.ndarray, int, tuple[int, int]]


def decoded(path: str, choose: Choose) -> Decoded:
    """Return the view that `choose` returns, the pixels, the factor of their reduction, and the image's size.

    The pixels are those of the whole image, uint8 [H, W, 3], until this thread's next image. The size is (height,
    width) before the reduction. A damaged file may raise any exception.
    """
    data = _read(path)
    return _jpeg(data, choose) or _other(data, choose)


def _read(path: str) -> memoryview:
    """Return the bytes of a file, in a buffer of this thread that the next file overwrites."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        data, count = memoryview(_buffer("file", size)), 0
        while count < size and (more := file.readinto(data[count:size])):
            count += more
    return data[:count]


def _jpeg(data: memoryview, choose: Choose) -> Decoded | None:
    """Decode a JPEG. Return None for another format, a damaged file, or colours that need Pillow (CMYK)."""
    if data[:2] != b"\xff\xd8":  # the marker that starts every JPEG
        return None
    try:
        found_height, found_width, colours, _ = simplejpeg.decode_jpeg_header(data)
        height, width = int(found_height), int(found_width)
        if colours not in ("YCbCr", "Gray") or width * height > MAX_PIXELS:
            return None
        view = choose(width, height)
        by = reduction(view)
        h, w = -(-height // by), -(-width // by)  # libjpeg-turbo rounds reduced sides up
        pixels = simplejpeg.decode_jpeg(
            data,
            fastdct=not view.exact,
            fastupsample=not view.exact,
            min_height=h,
            min_width=w,
            buffer=_buffer("image", 3 * w * h),
        )
    except ValueError:
        return None  # lets Pillow try: Pillow tolerates small faults, and explains other faults in error texts
    return view, pixels, by, (height, width)


def reduction(view: View) -> int:
    """Return the largest reduction of a JPEG (factor 1, 2, 4 or 8) that leaves the view enough pixels.

    libjpeg-turbo has fast transforms only for these powers of two.
    """
    height, width = view.resized
    margin = 2 if view.exact else 1
    return next((by for by in (8, 4, 2) if min(view.height / height, view.width / width) >= margin * by), 1)


def _other(data: memoryview, choose: Choose) -> Decoded:
    """Decode any format that Pillow reads, at full size."""
    with Image.open(io.BytesIO(data)) as image:
        view = choose(*image.size)
        return view, _rgb(image), 1, (image.height, image.width)


def _rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image, uint8 [H, W, 3].

    Scale grey values of 16 bits to 8 bits: Pillow would clip them at 255.

    Raise `ValueError` for pixel values of an unknown range.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > DEEP:
        raise ValueError(f"pixels of mode {image.mode} from {values.min()} to {values.max()}; accepted: 8 or 16 bits")
    grey = ((values.astype(np.int32) + 128) // 257).astype(np.uint8)  # the rounded product with 255 / 65,535
    return np.repeat(grey[..., None], 3, axis=2)


_local = threading.local()


def _buffer(use: str, size: int) -> bytearray:
    """Return a buffer of at least `size` bytes. The thread's next call with the same `use` reuses the buffer.

    Without reuse, the page faults of fresh memory take a fifth of the decoding time.
    """
    kept = vars(_local).get(use, b"")
    if len(kept) < size:
        kept = bytearray(size)
        if size <= MAX_BUFFER:
            setattr(_local, use, kept)
    return kept


@contextlib.contextmanager
def decoders(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads. In each thread of the pool, torch uses one core.

    Leaving the context drops all waiting tasks and waits for the running tasks.
    """
    # `torch.set_num_threads` sets the calling thread's value, but new threads inherit the last value set in any thread.
    # So each pool thread sets the value 1 and waits at a barrier for all other pool threads. Then the calling thread
    # sets its old value again, which later threads inherit.
    here = torch.get_num_threads()
    ready = threading.Barrier(count + 1)

    def alone() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(count, "decode")
    try:
        for _ in range(count):
            pool.submit(alone)  # starts one thread per task, because no thread is idle before the barrier
        ready.wait()
        torch.set_num_threads(here)
        yield pool
    finally:
        ready.abort()  # if a thread failed to start, the others would wait at the barrier for ever
        pool.shutdown(wait=True, cancel_futures=True)
