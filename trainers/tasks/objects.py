"""The objects of images as lists, and their average precision (AP), computed by faster-coco-eval.

An image's objects are a dict, as in torchvision: `boxes` [n, 4] (x1, y1, x2, y2 in pixels) and `labels` [n] from 1.
True objects also have `crowd` [n], predicted objects `scores` [n]. Objects with masks also have `masks` [n, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainers.datasets.base import OBJECTS

Objects = dict[str, Tensor]
LARGEST = 1e10  # area in pixels, larger than any object's


class Precision(NamedTuple):
    """The AP in %, overall and for objects of one size. NaN without such an object.

    ap: the mean over the thresholds 0.5, 0.55, ..., 0.95 of the intersection over union (IoU).
    ap50, ap75: the AP at the thresholds 0.5 and 0.75.
    """

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float


def of_boxes(labels: Tensor) -> list[Objects]:
    """Return the objects of images with the target `boxes`, [B, M, 6]."""
    used = (row[row[:, 4] > 0] for row in labels)
    return [{"boxes": row[:, :4], "labels": row[:, 4].long(), "crowd": row[:, 5] > 0} for row in used]


def of_instances(labels: Tensor) -> list[Objects]:
    """Return the objects of images with the target `instances`, [B, H, W]. Boxes are tight around masks."""
    found = []
    for numbers in labels:
        values = numbers.unique()
        values = values[values > 0]
        masks = numbers == values[:, None, None]
        crowd = values % OBJECTS == 0
        found.append({"boxes": tight(masks), "labels": (values // OBJECTS).long(), "crowd": crowd, "masks": masks})
    return found


def tight(masks: Tensor) -> Tensor:
    """Return the boxes [n, 4] around masks [n, H, W]. Each mask must have at least one pixel."""
    ends = []
    for lines in (masks.any(1), masks.any(2)):  # columns, then rows
        count = lines.shape[1]
        lines = lines.int()
        ends.append((lines.argmax(1), count - lines.flip(1).argmax(1)))
    (x1, x2), (y1, y2) = ends
    return torch.stack([x1, y1, x2, y2], 1).float()


def trained(objects: Sequence[Objects]) -> list[Objects]:
    """Return the objects that train a network: all but crowds."""
    return [{name: values[~image["crowd"]] for name, values in image.items() if name != "crowd"} for image in objects]


def encoded(masks: Tensor) -> list[Any]:
    """Return masks [n, H, W] in COCO's run-length encoding."""
    from faster_coco_eval.core import mask

    pixels = np.asfortranarray(masks.permute(1, 2, 0).to("cpu", torch.uint8).numpy())
    return list(mask.encode(pixels)) if len(masks) else []


def precision(
    found: Sequence[dict[str, Any]],
    truths: Sequence[dict[str, Any]],
    classes: int,
    sizes: Sequence[float],
    kind: Literal["bbox", "segm"],
) -> Precision:
    """Return the AP of predictions.

    found, truths: predicted and true objects of each image: dicts as described above, but with lists instead of
        tensors. Masks are run-length encoded.
    classes: number of classes, with the background. kind: `bbox` or `segm`.
    sizes: bounds between small, medium and large objects: square roots of the areas of their boxes.
    """
    from faster_coco_eval import COCO, COCOeval_faster  # slow to import, and in the extra `detection`

    objects, results = list[dict[str, Any]](), list[dict[str, Any]]()
    for i, image in enumerate(truths, 1):
        for number, (box, label) in enumerate(zip(image["boxes"], image["labels"], strict=True)):
            entry: dict[str, Any] = _entry(i, box, label) | {"id": len(objects) + 1}
            entry["iscrowd"] = int(image["crowd"][number])
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
            objects.append(entry | ({"segmentation": image["masks"][number]} if "masks" in image else {}))
    for i, image in enumerate(found, 1):
        for number, (box, label) in enumerate(zip(image["boxes"], image["labels"], strict=True)):
            entry = {"image_id": i, "category_id": label, "score": image["scores"][number]}
            shape = (
                {"bbox": _entry(i, box, label)["bbox"]} if kind == "bbox" else {"segmentation": image["masks"][number]}
            )
            results.append(entry | shape)
    categories = [{"id": i, "name": str(i)} for i in range(1, classes)]
    # faster-coco-eval requires the sizes of images, but they do not change the overlap of boxes or of encoded masks.
    images = [{"id": i, "height": 1, "width": 1} for i in range(1, len(truths) + 1)]
    known = COCO({"images": images, "annotations": objects, "categories": categories})
    coco = COCOeval_faster(known, known.loadRes(results), kind)
    small, medium = (size**2 for size in sizes)
    coco.params.areaRng = [[0, LARGEST], [0, small], [small, medium], [medium, LARGEST]]
    coco.params.areaRngLbl = ["all", "small", "medium", "large"]
    coco.evaluate()
    coco.accumulate()
    coco.summarize()
    values = [coco.stats_as_dict[f"AP_{name}"] for name in ("all", "50", "75", "small", "medium", "large")]
    return Precision(*(100 * float(value) if value >= 0 else float("nan") for value in values))


def _entry(image: int, box: Sequence[float], label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
