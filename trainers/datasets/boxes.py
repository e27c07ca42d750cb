"""Boxes of objects: rows of the target "boxes" (`trainers.datasets.base`) in an image that is cropped and mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainers.datasets.pairs import check_shape, on_canvas, pair_view
from trainers.decode import Choose, View

LEAST_SIDE = 1.0  # pixels; a crop removes objects with a shorter remaining side
LEAST_SHARE = 0.25  # a crop removes objects with a smaller remaining share of their area
THIN = 0.01  # pixels; boxes in files have two decimals, so a box with a shorter side has no area


def mirrored(boxes: Tensor, size: int) -> Tensor:
    """Return the boxes [..., objects, 6] of mirrored images of `size` pixels along a side."""
    x1, y1, x2, rest = boxes.tensor_split([1, 2, 3], -1)
    return torch.cat([size - x2, y1, size - x1, rest], -1)


def clipped(boxes: Tensor, width: int, height: int) -> Tensor:
    """Return boxes [..., objects, 6], clipped to an image. Objects that are mostly outside become empty rows.

    An object is removed if a side of the clipped box is below one pixel, or its area below a quarter of the box's.
    """
    x, y = boxes[..., 0:4:2], boxes[..., 1:4:2]
    left_x, left_y = x.clamp(0, width), y.clamp(0, height)
    wide, high = left_x.diff(dim=-1), left_y.diff(dim=-1)
    enough = wide * high >= LEAST_SHARE * x.diff(dim=-1) * y.diff(dim=-1)
    kept = (wide >= LEAST_SIDE) & (high >= LEAST_SIDE) & enough & (boxes[..., 4:5] > 0)
    return torch.cat([torch.stack([left_x, left_y], -1).flatten(-2), boxes[..., 4:]], -1) * kept


def usable(x1: float, y1: float, x2: float, y2: float, width: int, height: int) -> tuple[float, float, float, float]:
    """Return a box of an annotation file, clipped to its image. Raise `ValueError` if no area is left."""
    if not np.isfinite([x1, y1, x2, y2]).all():
        raise ValueError(f"the box {x1:g}, {y1:g} to {x2:g}, {y2:g}; accepted: finite numbers")
    if min(x2 - x1, y2 - y1) < THIN:
        raise ValueError(f"the box {x1:g}, {y1:g} to {x2:g}, {y2:g} has no area")
    found = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if min(found[2] - found[0], found[3] - found[1]) < THIN:
        raise ValueError(f"the box {x1:g}, {y1:g} to {x2:g}, {y2:g} lies outside its image of {width} x {height}")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The boxes of image files (`Annotations`). All images get as many rows as the image with the most objects."""

    objects: tuple[np.ndarray, ...]  # the rows of each image, in pixels of the file, float64 [n, 6]
    shapes: tuple[tuple[int, int], ...]  # height and width of each file
    most: int  # rows of each image, at least 1

    def take(self, rows: Sequence[int]) -> Boxes:
        """Return the boxes of the files at these rows. The number of rows per image does not change."""
        return replace(self, objects=tuple(self.objects[i] for i in rows), shapes=tuple(self.shapes[i] for i in rows))

    def form(self, size: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Return the shape and the type of the labels of an image."""
        return (self.most, 6), torch.float32

    def choose(self, row: int, size: int, flip: bool, seed: int | None) -> Choose:
        """Return the function that chooses the view of an image: the whole image, or a random crop."""
        return pair_view(size, flip, seed)

    def draw(self, row: int, view: View, shape: tuple[int, int], size: int, out: Tensor) -> None:
        """Write the boxes of a view. Only a random crop removes objects (`clipped`)."""
        check_shape(self.shapes[row], shape)
        given = self.objects[row]
        corners = on_canvas(given[:, :4].reshape(-1, 2, 2), view).reshape(-1, 4)
        boxes = torch.from_numpy(np.concatenate([corners, given[:, 4:]], 1)).float()
        height, width = view.resized
        if view.exact:
            boxes[:, 0:4:2].clamp_(max=width)  # removes only rounding errors: the view shows the whole image
            boxes[:, 1:4:2].clamp_(max=height)
        else:
            boxes = clipped(boxes, width, height)
        out.zero_()
        # A removed object leaves an empty row, which must not become a box when it is mirrored.
        out[: len(given)] = mirrored(boxes, size) * (boxes[:, 4:5] > 0) if view.flip else boxes
