"""Key points of objects whose boxes are given: the target "points" (`trainers.datasets.base`) of image files."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trainers.datasets.base import BOX_MARGIN
from trainers.datasets.pairs import check_shape, on_canvas
from trainers.decode import Choose, View

SCALES = (0.7, 1.3)  # range of the random side of a training image, as for SimpleBaseline (arXiv 1804.06208)


def mirrored(points: Tensor, order: Tensor, size: int) -> Tensor:
    """Return the points [B, K, 3] of mirrored images, in which left and right key points change names."""
    x, rest = points[:, order].tensor_split([1], 2)
    return torch.cat([size - x, rest], 2)


def square_view(
    x: float, y: float, side: float, size: int, flip: bool, seed: int | None, width: int, height: int
) -> View:
    """Return the view of a square. The parts of the square outside the image become the border of the canvas.

    x, y, side: centre and side of the square, in pixels of the image.
    seed: the seed of a random factor of the side (see `SCALES`) and of mirroring with probability 1/2 if `flip`. None
        changes nothing.
    """
    turned = False
    if seed is not None:
        rng = random.Random(seed)
        turned = rng.random() < 0.5 and flip  # drawn even without `flip`, so that `flip` does not change the crop
        side *= rng.uniform(*SCALES)
    left, across, column, w = _span(x - side / 2, side / size, size, width)
    top, down, row, h = _span(y - side / 2, side / size, size, height)
    return View(left, top, across, down, (h, w), turned, exact=seed is None, at=(row, column))


def _span(start: float, step: float, size: int, limit: int) -> tuple[float, float, int, int]:
    """Return the part of a square's side that lies in the image.

    The result is the start and the length of the part: first in pixels of the image, then in pixels of the canvas. The
    part has whole pixels of the canvas, so that every part has the same scale.

    start: the start of the square. step: pixels of the image for each pixel of the canvas. limit: side of the image.
    """
    # The summands of 1e-6 absorb rounding errors.
    first = min(max(0, math.ceil(-start / step - 1e-6)), size - 1)
    last = max(first + 1, min(size, math.floor((limit - start) / step + 1e-6)))
    low, high = max(0.0, start + first * step), min(float(limit), start + last * step)
    return low, high - low, first, last - first


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """The key points of one object for each image (`Annotations`). Several images may come from one file."""

    points: np.ndarray  # x, y and visibility in pixels of the file, float64 [N, K, 3]
    boxes: np.ndarray  # x1, y1, x2, y2, float64 [N, 4]
    areas: np.ndarray  # areas of the objects, in pixels of the file, float64 [N]
    shapes: tuple[tuple[int, int], ...]  # height and width of each file
    order: tuple[int, ...]  # for each key point, the key point that takes its place in a mirrored image (`partners`)

    def take(self, rows: Sequence[int]) -> Points:
        """Return the key points of the images at these rows."""
        index = np.array(rows, np.intp)
        shapes = tuple(self.shapes[i] for i in rows)
        return replace(self, points=self.points[index], boxes=self.boxes[index], areas=self.areas[index], shapes=shapes)

    def form(self, size: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Return the shape and the type of the labels of an image."""
        return (self.points.shape[1] + 1, 3), torch.float32

    def choose(self, row: int, size: int, flip: bool, seed: int | None) -> Choose:
        """Return the function that chooses the view of an image: the square around the object's box."""
        x1, y1, x2, y2 = self.boxes[row].tolist()
        side = BOX_MARGIN * max(x2 - x1, y2 - y1)
        return partial(square_view, (x1 + x2) / 2, (y1 + y2) / 2, side, size, flip, seed)

    def draw(self, row: int, view: View, shape: tuple[int, int], size: int, out: Tensor) -> None:
        """Write the key points of a view. In a random crop, a point outside the canvas becomes unlabelled."""
        check_shape(self.shapes[row], shape)
        seen = self.points[row, :, 2:]
        places = on_canvas(self.points[row, :, :2], view)
        if not view.exact:
            seen = seen * ((places >= 0) & (places <= size)).all(1, keepdims=True)
        found = torch.from_numpy(np.concatenate([places, seen], 1)).float()[None]
        if view.flip:
            found = mirrored(found, torch.tensor(self.order), size)
        out[:-1] = found[0] * (found[0, :, 2:] > 0)
        x1, y1, x2, y2 = self.boxes[row].tolist()
        scale = view.resized[1] / view.width
        out[-1] = torch.tensor([self.areas[row] * scale**2, (x2 - x1) * (y2 - y1), scale])
