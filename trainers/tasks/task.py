"""The protocol of a task: the targets and the loss of a batch, and the metrics of a data split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from res2net.arch import BaseArch
from res2net.heads import Head
from trainers.datasets.base import COCO_SIZES, Sizes
from trainers.datasets.data import Data
from trainers.ddp import Group
from trainers.recipes import Config

EVAL_BATCH = 500  # images; scoring needs little memory, because it has no gradients; larger batches are not faster
Scores = Any  # a task's named tuple: `loss`, then one value for each metric, in the order of the metrics


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a data split.

    name: field of the task's scores, such as `top1`. The log adds a prefix: `val_top1`.
    label: name in tables, such as `top-1`.
    unit: unit of the values, such as `%`.
    quantity: measured quantity, such as `accuracy`. TensorBoard groups metrics by quantity.
    digits: digits after the point in texts.
    larger: whether larger values are better. This must be True for the metric that ranks networks.
    """

    name: str
    label: str
    unit: str
    quantity: str
    digits: int = 2
    larger: bool = True

    def text(self, value: float | None, width: int = 0) -> str:
        """Return a value with its unit, such as `81.20 %`; `-` for None. width: minimum length of the number."""
        if value is None:
            return "-"
        return f"{value:{width}.{self.digits}f} {self.unit}".rstrip()


class Meter(Protocol):
    """Accumulates the loss and the metrics of a data split."""

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Add one batch. Do not wait for the device in this method: a wait would slow down every batch."""
        ...

    def scores(self, group: Group) -> Scores:
        """Return the scores over the batches of all processes.

        Every process must call this method. All processes get the same scores.
        """
        ...


class Task(Protocol):
    """The interface between a task and the trainers.

    To add a task, write a class with these properties and methods in a module beside this one. Then put one object of
    the class into `trainers.tasks.TASKS`. The object must be stateless, because all trainers share it. The network's
    outputs and the data set's labels may have any shape that the task's methods accept. But `len(labels)` must be the
    number of images.
    """

    @property
    def name(self) -> str:
        """The task's key in `TASKS`."""
        ...

    @property
    def target(self) -> str:
        """The targets that a data set must have: a value of `DataSet.targets`, such as `class` or `mask`."""
        ...

    @property
    def head_kind(self) -> str | None:
        """The kind of the task's heads (`res2net.heads`). None: networks keep their classifier."""
        ...

    @property
    def detects(self) -> bool:
        """Whether networks detect objects. In training mode, they then take the targets and return their losses."""
        ...

    @property
    def recipe(self) -> str:
        """The name of the recipe that trains a network by default."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics. The first metric is the score that ranks networks."""
        ...

    @property
    def scores(self) -> type[Scores]:
        """The named tuple class of the scores. Its fields are `loss` and then the names of `metrics`, in order."""
        ...

    def check(self) -> None:
        """Raise `UserError` if a package that the task needs is missing. A training or a search first calls this."""
        ...

    def head_size(self, data: Data) -> int:
        """Return the number of outputs that a network's head needs for this data set."""
        ...

    def head(self, arch: BaseArch, image_size: int) -> Head | None:
        """Return the head for a network and images of `image_size` pixels along a side. None: the classifier."""
        ...

    def eval_batch(self, image_size: int) -> int:
        """Return the number of images that are scored at once."""
        ...

    def targets(self, x: Tensor, labels: Tensor, size: int, config: Config, step: int) -> tuple[Tensor, Tensor]:
        """Return a training batch and its targets.

        If the recipe enables mixup or CutMix, the images and the targets are blended.
        size: number of outputs of the network's head.

        Draw random numbers from `config.seed` and `step` alone, so that a resumed training draws the same numbers.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor, config: Config) -> Tensor:
        """Return the mean training loss of a batch, computed in fp32 for outputs of any type."""
        ...

    def distilled(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean distillation loss of a network's outputs.

        teacher: outputs of a larger network for the same images, detached from the graph.
        """
        ...

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return the predictions of a batch in the form of its labels."""
        ...

    def picture(self, images: np.ndarray, labels: Tensor) -> list[np.ndarray]:
        """Return images, uint8 [N, H, W, 3], with their labels drawn over them. An empty list: nothing to draw."""
        ...

    def meter(self, device: torch.device, classes: tuple[str, ...] = (), sizes: Sizes = COCO_SIZES) -> Meter:
        """Return an empty meter whose sums are on the device.

        classes: names of the data set's classes. sizes: see `DataSet.sizes`.
        """
        ...


def no_scores(task: Task) -> Scores:
    """Return the scores of a data split without images: NaN in every field."""
    return task.scores(*[math.nan] * (1 + len(task.metrics)))


def described(task: Task, scores: Scores, width: int = 0) -> str:
    """Return the metrics as text, such as `top-1 81.20 %  top-5 98.00 %`. width: minimum length of a number."""
    return "  ".join(f"{m.label} {m.text(getattr(scores, m.name), width)}" for m in task.metrics)
