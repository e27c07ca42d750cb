"""The classification task: cross-entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from res2net.arch import BaseArch
from trainers.datasets.base import COCO_SIZES, Sizes
from trainers.datasets.data import Data
from trainers.ddp import Group
from trainers.device import sum_dtype
from trainers.mixing import mixed
from trainers.recipes import Config
from trainers.tasks.task import EVAL_BATCH, Metric


class Scores(NamedTuple):
    """The loss and the accuracies on a data split. Accuracies are in %.

    loss: mean cross-entropy without label smoothing.
    top1: share of images whose likeliest class is the label.
    top5: share of images whose five likeliest classes contain the label.
    """

    loss: float
    top1: float
    top5: float


class Classification:
    """The task with one class for each image. Outputs are logits `[B, classes]`, labels are class numbers `[B]`."""

    name = "classification"
    target = "class"
    recipe = "fast"
    head_kind = None
    detects = False
    metrics = (Metric("top1", "top-1", "%", "accuracy"), Metric("top5", "top-5", "%", "accuracy"))
    scores = Scores

    def check(self) -> None:
        """Do nothing: the task needs no further package."""

    def head_size(self, data: Data) -> int:
        """Return the number of classes."""
        return data.num_classes

    def head(self, arch: BaseArch, image_size: int) -> None:
        """Return None: the network keeps its classifier."""

    def eval_batch(self, image_size: int) -> int:
        """Return the number of images that are scored at once."""
        return EVAL_BATCH

    def targets(self, x: Tensor, labels: Tensor, size: int, config: Config, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch and its targets: class numbers `[B]`, or probabilities `[B, size]` with mixup or CutMix."""
        return mixed(x, labels, size, config, step)

    def loss(self, outputs: Tensor, targets: Tensor, config: Config) -> Tensor:
        """Return the mean cross-entropy with the recipe's label smoothing."""
        # Compute in fp32: bf16 has 8 bits of precision, too few for differences between large logits.
        return F.cross_entropy(outputs.float(), targets, label_smoothing=config.label_smoothing)

    def distilled(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean cross-entropy against the teacher's probabilities."""
        return F.cross_entropy(outputs.float(), teacher.float().softmax(1))

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return the likeliest class of each image."""
        return outputs.argmax(1)

    def picture(self, images: np.ndarray, labels: Tensor) -> list[np.ndarray]:
        """Return an empty list: a class has no place in the image."""
        return []

    def meter(
        self, device: torch.device, classes: tuple[str, ...] = (), sizes: Sizes = COCO_SIZES
    ) -> ClassificationMeter:
        """Return an empty meter on the device."""
        return ClassificationMeter(device)


class ClassificationMeter:
    """The sum of the losses, the numbers of correct top-1 and top-5 predictions, and the number of images."""

    def __init__(self, device: torch.device) -> None:
        # Use one tensor, so that one transfer to the host reads all four sums.
        self.sums = torch.zeros(4, device=device, dtype=sum_dtype(device))

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch of logits `[B, classes]` and labels `[B]` without a wait for the device."""
        logits = outputs.float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        first = (logits.argmax(1) == labels).sum()
        five = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).sum()
        self.sums += torch.stack([loss, first, five, torch.full_like(loss, len(labels))])

    def scores(self, group: Group) -> Scores:
        """Return the scores over the images of all processes. Only this method waits for the device."""
        # Add the processes' sums first, then divide. An average of the processes' means would be wrong, because the
        # processes' numbers of images may differ by one.
        loss, top1, top5, n = group.sum(self.sums).tolist()
        return Scores(loss / n, 100 * top1 / n, 100 * top5 / n)


CLASSIFICATION = Classification()
