"""Load torchvision. If its compiled operators do not load, compute the two that this package needs with PyTorch.

A wheel of torchvision has operators for one build of PyTorch. With another build (such as one for CPUs alone), the
import of torchvision fails until PyTorch knows the signatures of some operators. This module contains all uses of
torchvision's private parts. Checked with torchvision 0.28.
"""

from __future__ import annotations

import importlib
import math
import sys
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library

from res2net.errors import UserError

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OPERATORS = ("nms", "qnms")  # operators of this signature that torchvision's import requires


def need_torchvision(what: str) -> None:
    """Raise `UserError` if torchvision is missing. what: the subject of the error, such as a task."""
    if find_spec("torchvision") is None:
        raise UserError(f"{what} needs torchvision; run pip install 'res2net-search[detection]'")


@lru_cache(maxsize=1)
def load_torchvision() -> None:
    """Import torchvision. Raise `UserError` if it is missing or does not fit this PyTorch."""
    need_torchvision("arch: head: the detector")
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise UserError(f"torchvision does not fit this PyTorch, {torch.__version__}: {error}") from None
        _import_without_operators()
    extension: Any = importlib.import_module("torchvision.extension")
    if not extension._has_ops():
        replaced = {"torchvision.ops.boxes": ("nms", nms), "torchvision.ops.roi_align": ("_roi_align", roi_align)}
        for name, (attribute, function) in replaced.items():
            setattr(importlib.import_module(name), attribute, function)


def _import_without_operators() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # parts of the failed import
    for name in OPERATORS:
        library.define(f"torchvision::{name}", SIGNATURE)
    importlib.import_module("torchvision")


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes [n, 4] that non-maximum suppression keeps, the highest score first.

    iou_threshold: maximum intersection over union (IoU) of two kept boxes.
    """
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    over = (box_iou(boxes[order], boxes[order]) > iou_threshold).cpu().numpy()
    kept = torch.ones(len(order), dtype=torch.bool).numpy()
    for i in range(len(kept)):
        if kept[i]:
            kept[i + 1 :] &= ~over[i, i + 1 :]
    return order[torch.from_numpy(kept).to(order.device)]


def roi_align(
    input: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Return the features of regions, [K, C, height, width]: means of bilinear samples (Mask R-CNN, section 3).

    input: [N, C, H, W].
    rois: [K, 5], the index of the image in the batch, then x1, y1, x2, y2 in pixels of the image.
    spatial_scale: number of map pixels for one image pixel, along a side.
    sampling_ratio: samples along each side of a pooled pixel. 0 or less: about one for each map pixel.
    aligned: whether the centre of map pixel i is at i + 0.5.
    """
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - shift).unbind(1)
    wide, high = x2 - x1, y2 - y1
    if not aligned:
        wide, high = wide.clamp(min=1), high.clamp(min=1)
    image, places = rois[:, 0].long(), torch.arange(len(rois), device=rois.device)
    if sampling_ratio > 0:
        groups = [(places[image == i], sampling_ratio, sampling_ratio) for i in image.unique().tolist()]
    else:  # the number of samples depends on the region
        counts = [
            (math.ceil(h / height), math.ceil(w / width)) for h, w in zip(high.tolist(), wide.tolist(), strict=True)
        ]
        groups = [(places[i : i + 1], max(1, down), max(1, across)) for i, (down, across) in enumerate(counts)]
    parts = [input.new_zeros(0, input.shape[1], height, width)]  # without regions, the result is empty
    for rows, down, across in groups:
        y = _samples(y1[rows], high[rows], height * down, input.shape[2])
        x = _samples(x1[rows], wide[rows], width * across, input.shape[3])
        k = len(rows)
        grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), 3).view(1, -1, x.shape[1], 2)
        source = input[int(image[rows[0]])][None]
        found = F.grid_sample(source, grid.to(input.dtype), "bilinear", "border", align_corners=True)
        found = F.avg_pool2d(found, (down, across))[0]  # faster than a mean over two axes
        parts.append(found.view(-1, k, height, width).transpose(0, 1))
    order = torch.cat([rows for rows, _, _ in groups] or [places])
    return torch.cat(parts)[order.argsort()]


def _samples(start: Tensor, length: Tensor, count: int, pixels: int) -> Tensor:
    """Return the places of samples [k, count] along an axis of the map, from -1 (first pixel) to 1 (last pixel)."""
    at = start[:, None] + (torch.arange(count, device=start.device) + 0.5) * (length[:, None] / count)
    return 2 * at / max(pixels - 1, 1) - 1
