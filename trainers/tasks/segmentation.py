"""The task of semantic segmentation: one class for each pixel, scored by the mean intersection over union (mIoU)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from res2net.arch import BaseArch
from res2net.heads import DeepLab, Head
from trainers.datasets.base import COCO_SIZES, VOID, Sizes
from trainers.ddp import Group
from trainers.device import sum_dtype
from trainers.recipes import Config
from trainers.tasks.dense import Dense
from trainers.tasks.drawing import painted
from trainers.tasks.fitting import deeplab_for
from trainers.tasks.task import Metric


class Scores(NamedTuple):
    """The loss and the metrics on a data split. Metrics are in %.

    loss: mean cross-entropy of a pixel.
    miou: mean over the classes of the intersection over union. The intersection is the pixels of a class that are
        predicted right. The union is the pixels of the class, and the pixels that are predicted as the class. Classes
        with an empty union are ignored.
    pixels: share of pixels whose likeliest class is right.
    """

    loss: float
    miou: float
    pixels: float


class Segmentation(Dense):
    """The task with one class for each pixel. Outputs are logits `[B, classes, H, W]`, labels are `[B, H, W]`.

    Class 0 is the background. Pixels of the label `VOID` (255) are ignored.
    """

    name = "segment"
    target = "mask"
    metrics = (Metric("miou", "mIoU", "%", "accuracy"), Metric("pixels", "pixels", "%", "accuracy"))
    scores = Scores
    head_kind = DeepLab.kind

    def head(self, arch: BaseArch, image_size: int) -> Head:
        """Return the head of DeepLab v3+, in proportion to the network."""
        return deeplab_for(arch, image_size)

    def targets(self, x: Tensor, labels: Tensor, size: int, config: Config, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch and its targets: class numbers `[B, H, W]`. Mixup and CutMix are not applied."""
        return x, labels.long()

    def loss(self, outputs: Tensor, targets: Tensor, config: Config) -> Tensor:
        """Return the mean cross-entropy of a pixel with the recipe's label smoothing."""
        smoothing = config.label_smoothing
        # Compute in fp32, as for classification. A mean would be NaN for a batch without a known pixel.
        total = F.cross_entropy(outputs.float(), targets, ignore_index=VOID, label_smoothing=smoothing, reduction="sum")
        return total / (targets != VOID).sum().clamp(min=1)

    def distilled(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean cross-entropy of a pixel against the teacher's probabilities."""
        return F.cross_entropy(outputs.float(), teacher.float().softmax(1))

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return the likeliest class of each pixel, in the form of labels."""
        return outputs.argmax(1).to(torch.uint8)

    def picture(self, images: np.ndarray, labels: Tensor) -> list[np.ndarray]:
        """Return images, uint8 [N, H, W, 3], with their labels in colours."""
        return [painted(image, mask) for image, mask in zip(images, labels.cpu().numpy(), strict=True)]

    def meter(
        self, device: torch.device, classes: tuple[str, ...] = (), sizes: Sizes = COCO_SIZES
    ) -> SegmentationMeter:
        """Return an empty meter on the device."""
        return SegmentationMeter(device, len(classes))


class SegmentationMeter:
    """The sum of the losses, and the counts of pixels by class and predicted class."""

    def __init__(self, device: torch.device, classes: int) -> None:
        self.sums = torch.zeros(2, device=device, dtype=sum_dtype(device))
        self.counts = torch.zeros(classes, classes, device=device, dtype=torch.int64)  # true class, predicted class

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch of logits `[B, classes, H, W]` and labels `[B, H, W]` without a wait for the device."""
        logits, truth, classes = outputs.float(), labels.long(), len(self.counts)
        loss = F.cross_entropy(logits, truth, ignore_index=VOID, reduction="sum")
        known = truth != VOID
        # A void pixel adds 0 to the cell of class 0: a selection of the known pixels would wait for their number.
        cells = torch.where(known, truth, 0) * classes + logits.argmax(1)
        self.counts.view(-1).scatter_add_(0, cells.flatten(), known.long().flatten())
        self.sums += torch.stack([loss, known.sum()])

    def scores(self, group: Group) -> Scores:
        """Return the scores over the images of all processes. Only this method waits for the device."""
        loss, n = group.sum(self.sums).tolist()
        counts = group.sum(self.counts.to(self.sums.dtype))
        hits = counts.diag()
        union = counts.sum(0) + counts.sum(1) - hits
        found = union > 0
        miou = (hits[found] / union[found]).mean().item()
        return Scores(loss / max(n, 1), 100 * miou, 100 * hits.sum().item() / max(n, 1))


SEGMENTATION = Segmentation()
