"""The tasks of object detection and of instance segmentation, scored by the average precision (AP) as on COCO.

The methods are Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv 1703.06870) over a feature pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from res2net.arch import BaseArch
from res2net.errors import UserError
from res2net.heads import FasterRcnn, Head, MaskRcnn
from res2net.heads.vision_private import need_torchvision
from trainers.datasets.base import COCO_SIZES, OBJECTS, Sizes
from trainers.ddp import Group
from trainers.recipes import Config
from trainers.tasks import objects, oks
from trainers.tasks.dense import PIXELS, Dense
from trainers.tasks.drawing import boxed, painted
from trainers.tasks.fitting import faster_rcnn_for, mask_rcnn_for
from trainers.tasks.task import Metric

SHOWN = 0.5  # minimum score of an object in pictures, and minimum probability of a pixel of its mask


class BoxScores(NamedTuple):
    """The loss and the metrics on a data split. Metrics are in %.

    loss: 1 - AP. A detector computes its losses in training only.
    box_ap: average precision of the boxes, averaged over the thresholds 0.5, 0.55, ..., 0.95 of the intersection over
        union with the true box.
    box_ap50, box_ap75: the same at the thresholds 0.5 and 0.75.
    box_small, box_medium, box_large: the AP of objects of these sizes (`DataSet.sizes`). NaN without such an object.
    """

    loss: float
    box_ap: float
    box_ap50: float
    box_ap75: float
    box_small: float
    box_medium: float
    box_large: float


class MaskScores(NamedTuple):
    """The loss and the metrics on a data split: as in `BoxScores`, but for masks, and then the AP of boxes."""

    loss: float
    mask_ap: float
    mask_ap50: float
    mask_ap75: float
    mask_small: float
    mask_medium: float
    mask_large: float
    box_ap: float


def _metrics(kind: str, label: str) -> tuple[Metric, ...]:
    names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "small": "S", "medium": "M", "large": "L"}
    return tuple(Metric(f"{kind}_{name}", f"{label} {text}", "%", "precision") for name, text in names.items())


class Detection(Dense):
    """The task with boxes of objects. A network returns the objects of each image (`RcnnHead`).

    Labels are `[B, M, 6]`, see `TARGETS`. In training mode, a network takes the targets and returns its losses.
    """

    name = "detect"
    target = "boxes"
    metrics = _metrics("box", "box")
    scores: type[Any] = BoxScores
    recipe = "dense"
    head_kind: str = FasterRcnn.kind
    detects = True

    def check(self) -> None:
        """Raise `UserError` if a package that the task needs is missing."""
        need_torchvision(f"`task`: {self.name}")
        oks.need_coco_eval(self.name)

    def head(self, arch: BaseArch, image_size: int) -> Head:
        """Return the head of Faster R-CNN, in proportion to the network."""
        return faster_rcnn_for(arch, image_size)

    def eval_batch(self, image_size: int) -> int:
        """Return the number of images that are scored at once. The maps of a pyramid need much memory."""
        return max(1, PIXELS // (4 * image_size**2))

    def objects(self, labels: Tensor) -> list[objects.Objects]:
        """Return the objects of labels."""
        return objects.of_boxes(labels)

    def targets(self, x: Tensor, labels: Tensor, size: int, config: Config, step: int) -> tuple[Tensor, Any]:
        """Return the batch and the objects that train it. Mixup and CutMix are not applied."""
        # torchvision samples proposals with the global generator, so seed it here. On a CPU, torch reads only 32 bits
        # of a seed, so hash the seed and the step into 32 bits.
        torch.manual_seed(int(np.random.SeedSequence((config.seed, step)).generate_state(1)[0]))
        return x, objects.trained(self.objects(labels))

    def loss(self, outputs: Any, targets: Any, config: Config) -> Tensor:
        """Return the sum of the losses, each of which is a mean over the batch."""
        return torch.stack([loss.float() for loss in outputs.values()]).sum()

    def distilled(self, outputs: Any, teacher: Any) -> Tensor:
        """Raise `UserError`: the objects of two networks have no common order."""
        raise UserError(
            f"`task`: {self.name} cannot train shared weights; accepted with it: `evaluator` grow or scratch"
        )

    def predicted(self, outputs: Any) -> Tensor:
        """Return the objects that are found with a score of at least 0.5, in the form of labels."""
        kept = [{name: values[image["scores"] >= SHOWN] for name, values in image.items()} for image in outputs]
        found = kept[0]["boxes"].new_zeros(len(kept), max(len(image["boxes"]) for image in kept), 6)
        for row, image in zip(found, kept, strict=True):
            row[: len(image["boxes"]), :4], row[: len(image["boxes"]), 4] = image["boxes"], image["labels"]
        return found

    def picture(self, images: np.ndarray, labels: Tensor) -> list[np.ndarray]:
        """Return images, uint8 [N, H, W, 3], with the boxes of their objects."""
        return [boxed(image, rows) for image, rows in zip(images, labels.cpu().numpy(), strict=True)]

    def meter(self, device: torch.device, classes: tuple[str, ...] = (), sizes: Sizes = COCO_SIZES) -> DetectionMeter:
        """Return an empty meter."""
        return DetectionMeter(self, len(classes), sizes)


class Instances(Detection):
    """The task with a mask for each object. Labels are `[B, H, W]`, see `TARGETS`."""

    name = "instances"
    target = "instances"
    metrics = (*_metrics("mask", "mask"), Metric("box_ap", "box AP", "%", "precision"))
    scores = MaskScores
    head_kind = MaskRcnn.kind

    def head(self, arch: BaseArch, image_size: int) -> Head:
        """Return the head of Mask R-CNN, in proportion to the network."""
        return mask_rcnn_for(arch, image_size)

    def objects(self, labels: Tensor) -> list[objects.Objects]:
        """Return the objects of labels, with masks."""
        return objects.of_instances(labels)

    def predicted(self, outputs: Any) -> Tensor:
        """Return the objects that are found with a score of at least 0.5, in the form of labels. The best is on top."""
        height, width = outputs[0]["masks"].shape[2:]
        found = torch.zeros(len(outputs), height, width, dtype=torch.int32, device=outputs[0]["masks"].device)
        for map_, image in zip(found, outputs, strict=True):
            count = int((image["scores"] >= SHOWN).sum())  # the best come first
            for i in reversed(range(count)):
                map_[image["masks"][i, 0] >= SHOWN] = OBJECTS * int(image["labels"][i]) + i + 1
        return found

    def picture(self, images: np.ndarray, labels: Tensor) -> list[np.ndarray]:
        """Return images, uint8 [N, H, W, 3], with a colour for each object."""
        numbers = (labels % OBJECTS).cpu().numpy()
        return [painted(image, number) for image, number in zip(images, numbers, strict=True)]


class DetectionMeter:
    """The predicted and the true objects of all images, as lists on the host."""

    def __init__(self, task: Detection, classes: int, sizes: Sequence[float]) -> None:
        task.check()
        self.task, self.classes, self.sizes = task, classes, sizes
        self.images: list[tuple[dict[str, Any], dict[str, Any]]] = []  # found, true

    def add(self, outputs: Any, labels: Tensor) -> None:
        """Add the objects of a batch of images, and their labels."""
        for found, true in zip(outputs, self.task.objects(labels), strict=True):
            self.images.append((_listed(found), _listed(true)))

    def scores(self, group: Group) -> Any:
        """Return the scores over the images of all processes. Raise `UserError` if no image has an object to find."""
        pairs = group.gather_objects(self.images)
        found, true = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if all(all(image["crowd"]) for image in true):  # the AP would be NaN
            raise UserError(
                f"`data`: none of the {len(true)} images of the split has an object to find; accepted: validation and "
                "test splits with at least one object that is neither a crowd nor difficult"
            )
        box = objects.precision(found, true, self.classes, self.sizes, "bbox")
        if isinstance(self.task, Instances):
            mask = objects.precision(found, true, self.classes, self.sizes, "segm")
            return MaskScores(1 - mask.ap / 100, *mask, box.ap)
        return BoxScores(1 - box.ap / 100, *box)


def _listed(image: objects.Objects) -> dict[str, Any]:
    """Return an image's objects as lists, with run-length encoded masks. Predicted masks are probabilities."""
    out: dict[str, Any] = {name: values.tolist() for name, values in image.items() if name != "masks"}
    if "masks" in image:
        masks = image["masks"]
        out["masks"] = objects.encoded(masks[:, 0] >= SHOWN if masks.ndim == 4 else masks)
    return out


DETECTION = Detection()
INSTANCES = Instances()
