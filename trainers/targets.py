"""Move the targets of a batch with its images: one function for each kind of target.

A batch has the rows `index` [B] of a data split. `offsets` [2, B] are the row and the column of each crop in the padded
image, and `flips` [B] says which images are mirrored (None: no image).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.datasets import boxes
from trainers.datasets.base import MAPS, VOID, Data, partners
from trainers.datasets.points import mirrored

Move = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # index, offsets and flips -> the labels of the batch


def dtype_of(target: str) -> torch.dtype:
    """Return the type of labels on the device."""
    others = {"instances": torch.int32, "points": torch.float32, "boxes": torch.float32}
    return torch.uint8 if target in MAPS else others.get(target, torch.int64)


def mover(labels: Tensor, data: Data, size: int, padding: int) -> Move:
    """Return the function that moves labels.

    labels: of the data split. size: pixels along a side of the images. padding: pixels around each image.
    """
    if data.target in (*MAPS, "instances"):
        border = VOID if data.target in MAPS else 0
        padded = F.pad(labels, (padding,) * 4, value=border) if padding else labels
        # All crops as one strided view, as in `Images`.
        return partial(moved_maps, padded.unfold(1, size, 1).unfold(2, size, 1))
    if data.target == "points":
        order = torch.tensor(partners(data.classes), device=labels.device)
        return partial(moved_points, labels, order, size, padding)
    if data.target == "boxes":
        return partial(moved_boxes, labels, size, padding)
    return partial(moved_classes, labels)


def moved_classes(labels: Tensor, index: Tensor, offsets: Tensor, flips: Tensor | None) -> Tensor:
    """Return the class numbers [B], which do not move."""
    return labels[index]


def moved_maps(crops: Tensor, index: Tensor, offsets: Tensor, flips: Tensor | None) -> Tensor:
    """Return maps [B, size, size]. crops: all crops of all images, [N, positions, positions, size, size]."""
    y = crops[index, offsets[0], offsets[1]]
    return y if flips is None else torch.where(flips[:, None, None], y.flip(2), y)


def moved_points(
    labels: Tensor, order: Tensor, size: int, padding: int, index: Tensor, offsets: Tensor, flips: Tensor | None
) -> Tensor:
    """Return points [B, K + 1, 3]. A point outside the crop becomes unlabelled. Unlabelled points are rows of zeros.

    labels: of all images. order: for each key point, the key point that takes its place in a mirrored image.
    """
    found = labels[index]
    places, seen = found[:, :-1, :2] + (padding - offsets.flip(0).T)[:, None], found[:, :-1, 2:]
    points = torch.cat([places, seen], 2)
    if flips is not None:
        points = torch.where(flips[:, None, None], mirrored(points, order, size), points)
    inside = ((points[..., :2] >= 0) & (points[..., :2] <= size)).all(2, keepdim=True)
    return torch.cat([points * (inside & (points[..., 2:] > 0)), found[:, -1:]], 1)


def moved_boxes(
    labels: Tensor, size: int, padding: int, index: Tensor, offsets: Tensor, flips: Tensor | None
) -> Tensor:
    """Return boxes [B, objects, 6], clipped to the crop. A removed object leaves an empty row (`boxes.clipped`).

    labels: of all images.
    """
    corners, rest = labels[index].tensor_split([4], 2)
    shift = (padding - offsets.flip(0).T).repeat(1, 2)[:, None]
    found = torch.cat([corners + shift, rest], 2)
    if flips is not None:
        found = torch.where(flips[:, None, None], boxes.mirrored(found, size), found)
    return boxes.clipped(found, size, size)
