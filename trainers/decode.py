"""One image file into pixels: which part of it, how large, mirrored or not; and threads that do so.

JPEGs are decoded by libjpeg-turbo through simplejpeg (the same pixels as Pillow's, in two thirds of the time, without
the interpreter's lock), at 1/2, 1/4 or 1/8 of the size where that still holds more pixels than are asked for. Where
images are scored it holds twice as many along a side, since coarse pixels would show beside Pillow's; for training the
transforms may round (a mean difference of 1 in 255, less than any augmentation's). All else, CMYK too, goes through
Pillow. Resizing is torch's antialiased one, on bytes. EXIF's turns are ignored, as ImageNet's users do.
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

SCALE = (0.08, 1.0)  # of a random crop's area, as a share of the image's
RATIO = (3 / 4, 4 / 3)  # of its width to its height
TRIES = 10  # before the centre is taken
LONGEST = 4  # sides of more than so many times the shorter one are cut before all else: they bound the memory
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # a header may claim any size; beyond this one Pillow refuses it
MAX_BUFFER = 64 * 2**20  # bytes that a thread keeps for its next image


@dataclass(frozen=True, slots=True)
class View:
    """A box of the image, in its pixels; what it is resized to, of which the centre is kept; mirrored or not."""

    left: int
    top: int
    width: int
    height: int
    resized: tuple[int, int]  # height, width
    flip: bool = False
    exact: bool = False  # pixels as Pillow's, for what is scored; what is trained on may be off by a little


Choose = Callable[[int, int], View]  # from the image's width and height


def random_view(size: int, flip: bool, seed: int, width: int, height: int) -> View:
    """A random part of random proportions, mirrored half of the time: all from the seed."""
    rng = random.Random(seed)
    mirrored = rng.random() < 0.5 and flip
    area, ratios = width * height, (math.log(RATIO[0]), math.log(RATIO[1]))
    for _ in range(TRIES):
        target, ratio = area * rng.uniform(*SCALE), math.exp(rng.uniform(*ratios))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1))
            return View(left, top, w, h, (size, size), mirrored)
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    return View((width - w) // 2, (height - h) // 2, w, h, (size, size), mirrored)


def centre_view(resize: int, width: int, height: int) -> View:
    """The image with its shorter side resized."""
    short = min(width, height)
    w, h = min(width, LONGEST * short), min(height, LONGEST * short)
    return View(
        (width - w) // 2, (height - h) // 2, w, h, (int(resize * h / short), int(resize * w / short)), exact=True
    )


def decode(path: str, choose: Choose, out: Tensor) -> None:
    """Read the part of an image that `choose` chooses into uint8 `[size, size, 3]`; any exception is a damaged file."""
    data = _read(path)
    view, pixels, by = _jpeg(data, choose) or _other(data, choose)
    size = len(out)
    top, left, height, width = (round(x / by) for x in (view.top, view.left, view.height, view.width))
    top, left = min(top, pixels.shape[0] - height), min(left, pixels.shape[1] - width)
    # A contiguous batch of one that torch knows for channels-last: other strides would be turned into planes and back.
    part = np.frombuffer(_buffer("part", 3 * height * width), np.uint8, 3 * height * width).reshape(height, width, 3)
    np.copyto(part, pixels[top : top + height, left : left + width])
    x = F.interpolate(torch.from_numpy(part)[None].permute(0, 3, 1, 2), view.resized, mode="bilinear", antialias=True)
    if view.resized != (size, size):
        top, left = (round((side - size) / 2) for side in view.resized)
        x = x[:, :, top : top + size, left : left + size]
    out.permute(2, 0, 1)[None].copy_(x.flip(3) if view.flip else x)


def _read(path: str) -> memoryview:
    """A file's bytes, in memory of this thread's."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        data, count = memoryview(_buffer("file", size)), 0
        while count < size and (more := file.readinto(data[count:size])):
            count += more
    return data[:count]


Decoded = tuple[View, np.ndarray, int]  # pixels [H, W, 3], and by how much they are reduced


def _jpeg(data: memoryview, choose: Choose) -> Decoded | None:
    """A JPEG's pixels; None for what is none, or is damaged, or needs Pillow's care with inks."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or width * height > MAX_PIXELS:
            return None
        view = choose(width, height)
        by = reduction(view)
        h, w = -(-height // by), -(-width // by)
        fast = {"fastdct": not view.exact, "fastupsample": not view.exact}
        pixels = simplejpeg.decode_jpeg(data, min_height=h, min_width=w, buffer=_buffer("image", 3 * w * h), **fast)
    except ValueError:
        return None  # Pillow is patient with small faults, and says what the others are
    return view, pixels, by


def reduction(view: View) -> int:
    """By how much a JPEG may be reduced as it is decoded, so that the view is still as large as it must be.

    Powers of two alone: libjpeg-turbo has no quick transforms for the factors between them.
    """
    height, width = view.resized
    margin = 2 if view.exact else 1
    return next((by for by in (8, 4, 2) if min(view.height / height, view.width / width) >= margin * by), 1)


def _other(data: memoryview, choose: Choose) -> Decoded:
    with Image.open(io.BytesIO(data)) as image:
        view = choose(*image.size)
        return view, np.asarray(image.convert("RGB")), 1


_local = threading.local()


def _buffer(use: str, size: int) -> bytearray:
    """Memory of this thread's for one image: fresh pages for each would cost a fifth of its time."""
    kept = vars(_local).get(use, b"")
    if len(kept) < size:
        kept = bytearray(size)
        if size <= MAX_BUFFER:
            setattr(_local, use, kept)
    return kept


@contextlib.contextmanager
def decoders(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in each of which torch computes with one; what has not begun when it is left is dropped."""
    here = torch.get_num_threads()
    ready = threading.Barrier(count + 1)

    def alone() -> None:
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(count, "decode")
    try:
        for _ in range(count):
            pool.submit(alone)  # each starts a thread, since none is idle before the barrier
        ready.wait()
        torch.set_num_threads(here)  # what the next thread that anybody starts would inherit
        yield pool
    finally:
        ready.abort()  # where not every thread could be started, those that wait for it would wait for ever
        pool.shutdown(wait=True, cancel_futures=True)
