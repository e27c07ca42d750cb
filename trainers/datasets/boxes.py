"""Boxes of objects in an image that is cropped and mirrored: rows of the target "boxes" (`trainers.datasets.base`)."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SIDE = 1.0  # pixels; an object with less left along a side is removed
LEAST_SHARE = 0.25  # of its area; an object with less left is removed


def mirrored(boxes: Tensor, size: int) -> Tensor:
    """Return the boxes [..., objects, 6] of mirrored images of `size` pixels along a side."""
    x1, y1, x2, rest = boxes.tensor_split([1, 2, 3], -1)
    return torch.cat([size - x2, y1, size - x1, rest], -1)


def clipped(boxes: Tensor, width: int, height: int) -> Tensor:
    """Return boxes [..., objects, 6], clipped to an image. Objects that are mostly outside become empty rows.

    An object is removed if less than a pixel of its box is left along a side, or less than a quarter of the area.
    """
    x, y = boxes[..., 0:4:2], boxes[..., 1:4:2]
    left_x, left_y = x.clamp(0, width), y.clamp(0, height)
    wide, high = left_x.diff(dim=-1), left_y.diff(dim=-1)
    enough = wide * high >= LEAST_SHARE * x.diff(dim=-1) * y.diff(dim=-1)
    kept = (wide >= LEAST_SIDE) & (high >= LEAST_SIDE) & enough & (boxes[..., 4:5] > 0)
    return torch.cat([torch.stack([left_x, left_y], -1).flatten(-2), boxes[..., 4:]], -1) * kept
