"""The protocol of a task: from a batch's labels to targets, a loss and the metrics of a split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from trainers.datasets.data import Data
from trainers.ddp import Group
from trainers.recipes import Config

Scores = Any  # a task's named tuple: `loss`, then a value for each metric, in order


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of merit of a split. Larger is better.

    name: its field in the task's scores, as in `val_top1` of a log. label: its name in tables. unit: as in `%`.
    quantity: what it measures. TensorBoard draws metrics of one quantity side by side.
    """

    name: str
    label: str
    unit: str
    quantity: str


class Meter(Protocol):
    """Accumulates the loss and the metrics of a split."""

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in one batch. A wait for the device in here would be paid at every batch."""
        ...

    def scores(self, group: Group) -> Scores:
        """Return the scores over the batches of all processes. Every process calls it and gets the same scores."""
        ...


class Task(Protocol):
    """What the trainers ask of a task.

    To add a task, write a class with these members in a module beside this one and put one object of it into
    `trainers.tasks.TASKS`. A task is stateless: the trainers share one object. The network's outputs and the data
    set's labels may be of any shape that the task's own methods accept; `len(labels)` is the number of images.
    """

    @property
    def name(self) -> str:
        """The task's key in `TASKS`."""
        ...

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics. The first one is the score by which networks are compared."""
        ...

    @property
    def scores(self) -> type[Scores]:
        """The named tuple of the scores: `loss`, then the names of `metrics`, in their order."""
        ...

    def head_size(self, data: Data) -> int:
        """Return the number of outputs of a network's head for this data set."""
        ...

    def targets(self, x: Tensor, labels: Tensor, size: int, config: Config, step: int) -> tuple[Tensor, Tensor]:
        """Return a training batch and its targets, after the mixing of images that the recipe asks for.

        size: the head's. Random numbers follow from `config.seed` and `step` alone, so that a resumed training draws
        the same ones.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor, config: Config) -> Tensor:
        """Return the mean training loss of a batch, in fp32 whatever the outputs' type."""
        ...

    def distilled(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean loss of a network's outputs against those of a larger one. teacher: detached."""
        ...

    def meter(self, device: torch.device) -> Meter:
        """Return an empty meter whose sums are on the device."""
        ...


def no_scores(task: Task) -> Scores:
    """Return the scores of a split without images: NaN for each."""
    return task.scores(*[math.nan] * (1 + len(task.metrics)))


def described(task: Task, scores: Scores, width: int = 0) -> str:
    """Return the metrics as text, as in `top-1 81.20 %  top-5 98.00 %`. width: characters of a number."""
    return "  ".join(f"{m.label} {getattr(scores, m.name):{width}.2f} {m.unit}" for m in task.metrics)
