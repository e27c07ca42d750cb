"""The metrics that may score a network on a data split: a task's metrics, or a user's own function.

To add a metric, add an entry to `METRICS`. For classification, users pass a function `(logits, labels) -> value` as
`my_package:NAME`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor

from res2net.errors import UserError
from res2net.plugins import load_object
from trainers.datasets.base import COCO_SIZES, Sizes
from trainers.ddp import Group
from trainers.epoch import TrainingFailed
from trainers.tasks.classification import CLASSIFICATION, Classification, ClassificationMeter
from trainers.tasks.detection import DETECTION, INSTANCES
from trainers.tasks.keypoints import KEYPOINTS
from trainers.tasks.saliency import SALIENCY
from trainers.tasks.segmentation import SEGMENTATION
from trainers.tasks.task import Metric, Scores, Task

Function = Callable[[Tensor, Tensor], float]  # logits [N, classes] and labels [N] of a whole split -> a value in %


@dataclass(frozen=True, slots=True)
class Score:
    """A metric that scores networks.

    name: the setting's value; the score's key is `val_` and the last part of the name.
    label: the name in tables.
    task: the task whose scores hold the metric in the field `field`.
    chance: a function of the number of classes that returns the metric's value for a guess, in %.
    """

    name: str
    label: str
    task: Task
    field: str
    chance: Callable[[int], float]

    @property
    def key(self) -> str:
        """The name of the score in tables and in the study: `val_top1`."""
        return f"val_{self.name.rpartition(':')[2]}"

    def of(self, scores: Scores) -> float:
        """Return the metric's value of a split in %.

        Raise `TrainingFailed` for a value outside 0 to 100. NaN is accepted, because a training may diverge.
        """
        value = getattr(scores, self.field)
        if not (math.isnan(value) or 0 <= value <= 100):
            raise TrainingFailed(f"metric {self.name} is {value}; accepted: 0 to 100 (%)")
        return value


def balanced(logits: Tensor, labels: Tensor) -> float:
    """Return the balanced accuracy in %: the mean recall of the classes that occur."""
    hit = (logits.argmax(1) == labels).double()
    count = torch.bincount(labels, minlength=logits.shape[1])
    right = torch.zeros_like(count, dtype=torch.float64).index_add_(0, labels, hit)
    return 100 * (right[count > 0] / count[count > 0]).mean().item()


class ScoresWith(NamedTuple):
    """The scores of `Classification`, with the value of one more metric in %."""

    loss: float
    own: float
    top1: float
    top5: float


class WithFunction(Classification):
    """Classification with one more metric: a function of all logits and labels of a split."""

    scores = ScoresWith  # with one more field

    def __init__(self, name: str, function: Function) -> None:
        self.function = function
        self.metrics = (Metric("own", name, "%", "accuracy"), *CLASSIFICATION.metrics)

    def meter(
        self, device: torch.device, classes: tuple[str, ...] = (), sizes: Sizes = COCO_SIZES
    ) -> MeterWithFunction:
        """Return an empty meter on the device."""
        return MeterWithFunction(device, self.function)


class MeterWithFunction(ClassificationMeter):
    """The sums of `ClassificationMeter`, and all logits and labels of a split. They stay on the device."""

    def __init__(self, device: torch.device, function: Function) -> None:
        super().__init__(device)
        self.function, self.outputs, self.labels = function, list[Tensor](), list[Tensor]()

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch of logits `[B, classes]` and labels `[B]` without a wait for the device."""
        super().add(outputs, labels)
        self.outputs.append(outputs.float())
        self.labels.append(labels)

    def scores(self, group: Group) -> Scores:
        """Return the scores. A search scores each network in one process."""
        assert group.world == 1, "a metric of all logits needs all images in one process"
        loss, top1, top5 = super().scores(group)
        return ScoresWith(loss, float(self.function(torch.cat(self.outputs), torch.cat(self.labels))), top1, top5)


METRICS: dict[str, Score] = {
    "top1": Score("top1", "top-1 accuracy", CLASSIFICATION, "top1", lambda classes: 100 / classes),
    "top5": Score("top5", "top-5 accuracy", CLASSIFICATION, "top5", lambda classes: 100 * min(5, classes) / classes),
    "balanced": Score(
        "balanced", "balanced accuracy", WithFunction("balanced", balanced), "own", lambda classes: 100 / classes
    ),
    # A guess of only background has at most one class right.
    "miou": Score("miou", "mIoU", SEGMENTATION, "miou", lambda classes: 100 / classes),
    # The score of a guess depends on the share of the background, which differs between data sets.
    "pixels": Score("pixels", "pixel accuracy", SEGMENTATION, "pixels", lambda classes: 0.0),
    "maxf": Score("maxf", "max-F", SALIENCY, "maxf", lambda classes: 0.0),
    "ap": Score("ap", "AP of key points", KEYPOINTS, "ap", lambda classes: 0.0),
    "box_ap": Score("box_ap", "AP of boxes", DETECTION, "box_ap", lambda classes: 0.0),
    "mask_ap": Score("mask_ap", "AP of masks", INSTANCES, "mask_ap", lambda classes: 0.0),
}


@lru_cache
def metric_of(name: str) -> Score:
    """Return the metric of a name or an import path. Raise `UserError` if there is no such metric."""
    if name in METRICS:
        return METRICS[name]
    found = load_object(name, "metric", known=METRICS)
    if not callable(found):
        raise UserError(
            f"`metric`: {name} is a {type(found).__name__}; accepted: a function (logits, labels) -> value in %"
        )
    label = name.rpartition(":")[2]
    return Score(name, label, WithFunction(label, cast(Function, found)), "own", lambda classes: 0.0)
