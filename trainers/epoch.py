"""The values of a training: the results of an epoch, and the trained part of an unfinished one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from trainers.tasks.task import Scores, Task


class TrainingFailed(RuntimeError):
    """Training cannot continue. The text is the reason that a search records for its failed trial."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The results of one epoch.

    epoch: number of the epoch, from 1.
    train_loss: mean loss over the training images.
    val: scores on the validation split; NaN without a validation split.
    images_per_second: speed of training, without scoring.
    seconds: time of training, without scoring. The time before a stop in the middle of the epoch counts too.
    """

    epoch: int
    train_loss: float
    val: Scores
    images_per_second: float
    seconds: float

    @property
    def val_loss(self) -> float:
        """The loss on the validation split."""
        return self.val.loss

    @property
    def val_top1(self) -> float:
        """The top-1 accuracy on the validation split in %. Only the classification task has this metric."""
        return self.val.top1

    def row(self) -> dict[str, float]:
        """Return the epoch as a row of `log.csv`: a flat mapping from names to numbers."""
        score, *others = [(f"val_{name}", value) for name, value in self.val._asdict().items() if name != "loss"]
        # Keep the column order of earlier versions: readers of a log may find columns by position.
        return {
            "epoch": self.epoch,
            "train_loss": self.train_loss,
            "val_loss": self.val.loss,
            **dict([score]),
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            **dict(others),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, float], task: Task) -> Epoch:
        """Return the epoch of a row that `row` returned. Metrics missing from the row are NaN."""
        names = ("loss", *(metric.name for metric in task.metrics))
        val = task.scores(*(row.get(f"val_{name}", math.nan) for name in names))
        return cls(int(row["epoch"]), row["train_loss"], val, row["images_per_second"], row["seconds"])


@dataclass(slots=True)
class Unfinished:
    """The trained part of an epoch that is not complete.

    rng: state of the random generator at the start of the epoch, from which the epoch's batches are drawn.
    sums: sum of the losses and number of images, on the device.
    steps: steps done.
    seconds: time of training.
    """

    rng: Tensor
    sums: Tensor
    steps: int = 0
    seconds: float = 0.0
