"""Decode an image and its targets with the same geometry: crop, resize and mirror both in the same way. Read masks.

Masks are PNGs. The image is resized bilinearly, the mask to the nearest pixel. Pixel centres of both stay aligned.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from trainers.datasets.base import VOID
from trainers.decode import Choose, View, decoded

SCALES = (0.5, 2.0)  # range of the random scale of a training image, as for DeepLab v3 (arXiv 1706.05587)
MODES = ("P", "L", "1")  # Pillow's modes of masks whose pixel values are class numbers
GREY_MODES = (*MODES, "LA", "PA", "RGB", "RGBA")  # modes that have a grey value
SALIENT = 127  # grey values above it are salient


class MaskError(Exception):
    """A mask that cannot be used. The text is the reason. path: the mask's file."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path


def scaled_view(size: int, flip: bool, seed: int, width: int, height: int) -> View:
    """Return a random crop of a randomly scaled image, mirrored with probability 1/2 if `flip`.

    At scale 1, the image has its size in the file, or a longer side of `size` pixels if it is larger. The crop has at
    most `size` x `size` pixels. It depends on the seed and the sizes alone. width, height: size of the image.
    """
    rng = random.Random(seed)
    mirrored = rng.random() < 0.5 and flip  # drawn even without `flip`, so that `flip` does not change the crop
    full_height, full_width = _scaled(height, width, rng.uniform(*SCALES) * _fitting(size, width, height))
    h, w = min(size, full_height), min(size, full_width)
    top, left = int(rng.random() * (full_height - h + 1)), int(rng.random() * (full_width - w + 1))
    # Convert the box from pixels of the scaled image to pixels of the image. It has fractions of pixels.
    down, across = height / full_height, width / full_width
    return View(left * across, top * down, w * across, h * down, (h, w), mirrored)


def whole_view(size: int, width: int, height: int) -> View:
    """Return a view of the whole image. A longer side of more than `size` pixels is reduced to `size` pixels."""
    resized = _scaled(height, width, _fitting(size, width, height))
    return View(0, 0, width, height, resized, exact=True)


def _fitting(size: int, width: int, height: int) -> float:
    return min(1.0, size / max(width, height))


def _scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    return max(1, round(height * factor)), max(1, round(width * factor))


def pair_view(size: int, flip: bool, seed: int | None) -> Choose:
    """Return the function that chooses the view of an image with a mask or annotations.

    seed: the seed of a random crop (`scaled_view`); None for the whole image (`whole_view`).
    """
    return partial(whole_view, size) if seed is None else partial(scaled_view, size, flip, seed)


def colour_of(mean: Sequence[float]) -> tuple[int, ...]:
    """Return a mean of each channel, in 0..1, as a colour in 0..255. Normalisation turns this colour into zero."""
    return tuple(round(255 * m) for m in mean)


def decode_pair(
    path: str,
    mask_path: str,
    classes: int | None,
    choose: Choose,
    colour: tuple[int, ...],
    out: Tensor,
    out_mask: Tensor,
) -> None:
    """Decode the view that `choose` returns of an image and of its mask (`decode_onto`). The mask's border is `VOID`.

    classes: see `Files.mask_classes`.
    out: uint8 [size, size, 3]. out_mask: uint8 [size, size].

    Raise `MaskError` for a mask that cannot be used. A damaged image may raise any exception.
    """
    view, shape = decode_onto(path, choose, colour, out)
    values = read_mask(mask_path, classes)
    _check(mask_path, values, classes, shape)
    draw_map(values, view, VOID, out_mask)


def decode_onto(path: str, choose: Choose, colour: tuple[int, ...], out: Tensor) -> tuple[View, tuple[int, int]]:
    """Decode the view that `choose` returns onto a canvas. Return the view and the height and width of the file.

    The view is placed at `View.at`. The rest of the canvas gets the colour. Then the canvas is mirrored.

    out: uint8 [size, size, 3]. A damaged image may raise any exception.
    """
    view, pixels, by, shape = decoded(path, choose)
    h, w = view.resized
    # libjpeg-turbo's reduction keeps the top left corner in its place, so a division converts the box. Rounding must
    # not push the box over an edge, which Pillow refuses.
    right, bottom = view.left + view.width, view.top + view.height
    box = (view.left / by, view.top / by, min(right / by, pixels.shape[1]), min(bottom / by, pixels.shape[0]))
    part = Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR, box)
    _place(np.asarray(part), view, colour, out)
    return view, shape


def draw_map(values: np.ndarray, view: View, border: int, out: Tensor) -> None:
    """Draw a view of a map onto a canvas, as `decode_onto` does with its image. A pixel takes the nearest value.

    values: [H, W] at the size of the image file. border: the value of the padding. out: [size, size].
    """
    (h, w), (height, width) = view.resized, values.shape
    rows, columns = _nearest(view.top, view.height, h, height), _nearest(view.left, view.width, w, width)
    _place(values[rows[:, None], columns], view, border, out)


def check_shape(given: tuple[int, int], found: tuple[int, int]) -> None:
    """Raise `ValueError` if annotations and their image file differ in size. given, found: height and width."""
    if given != found:
        raise ValueError(f"{found[1]} x {found[0]} pixels, but its annotations are of {given[1]} x {given[0]}")


def on_canvas(places: np.ndarray, view: View) -> np.ndarray:
    """Convert places in the image file to places on the canvas, before it is mirrored. Both: x and y, [..., 2]."""
    (h, w), (top, left) = view.resized, view.at
    return (places - (view.left, view.top)) * (w / view.width, h / view.height) + (left, top)


def _place(part: np.ndarray, view: View, border: int | tuple[int, ...], out: Tensor) -> None:
    """Put a resized view onto a canvas, and fill the border. Mirror the canvas if the view is mirrored."""
    (h, w), (top, left) = view.resized, view.at
    canvas = out.numpy()[:, ::-1] if view.flip else out.numpy()
    canvas[:top], canvas[top + h :] = border, border
    rows = canvas[top : top + h]
    rows[:, :left], rows[:, left + w :] = border, border
    rows[:, left : left + w] = part


def read_mask(path: str, classes: int | None) -> np.ndarray:
    """Return the labels of a mask file, uint8 [H, W], without a check of their values.

    classes: None for a mask of salient objects, whose grey values above 127 become 1 and others 0.

    Raise `MaskError` if the file is missing or cannot be read, if it is neither a palette image nor a grey image, and
    for a mask of salient objects that is not grey.
    """
    try:
        with Image.open(path) as image:
            mode, accepted = image.mode, MODES if classes is not None else GREY_MODES
            if mode in accepted and classes is None:
                return (_grey(path, image) > SALIENT).astype(np.uint8)
            if mode in accepted:
                return np.asarray(image, np.uint8)
    except MaskError:
        raise
    except FileNotFoundError:
        raise MaskError(path, "there is no such mask") from None
    except UnidentifiedImageError:  # the error's text names an object in memory, not the file
        raise MaskError(path, "no image") from None
    except Exception as error:  # Pillow raises almost anything on a damaged file
        raise MaskError(path, str(error) or type(error).__name__) from error
    raise MaskError(path, f"pixels of mode {mode}; accepted: a palette or grey PNG")


def _grey(path: str, image: Image.Image) -> np.ndarray:
    """Return the grey values of a mask, [H, W]. Raise `MaskError` for a mask with colours."""
    if image.mode in ("L", "LA", "1"):
        return np.asarray(image.convert("L"))
    colours = np.asarray(image.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise MaskError(path, "it has colours; accepted: a grey mask")
    return colours[..., 0]


def _check(path: str, values: np.ndarray, classes: int | None, shape: tuple[int, int]) -> None:
    """Raise `MaskError` for a mask of another size than its image, and for an unknown class."""
    if values.shape != shape:
        (height, width), (own_height, own_width) = shape, values.shape
        raise MaskError(path, f"{own_width} x {own_height} pixels, but its image has {width} x {height}")
    if classes is not None and len(found := values[(values >= classes) & (values != VOID)]):
        raise MaskError(path, f"class {found[0]}; accepted: 0 to {classes - 1}, or {VOID} for none")


def _nearest(start: float, length: float, count: int, limit: int) -> np.ndarray:
    """Resize a part of a row of `limit` pixels to `count` pixels. Return the nearest old pixel of each new one."""
    at = start + (np.arange(count) + 0.5) * (length / count)
    # At equal distances, take the second pixel, whatever the rounding error in the line above.
    return np.minimum((at + 1e-6).astype(np.int64), limit - 1)
