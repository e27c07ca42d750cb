"""The task of salient objects: a mask of the objects that stand out, scored by max F and mean absolute error (MAE)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from res2net.arch import BaseArch
from res2net.heads import Dss, Head
from trainers.datasets.base import COCO_SIZES, VOID, Sizes
from trainers.ddp import Group
from trainers.device import sum_dtype
from trainers.recipes import Config
from trainers.tasks.dense import Dense
from trainers.tasks.drawing import painted
from trainers.tasks.fitting import dss_for
from trainers.tasks.task import Metric

LEVELS = 256  # number of thresholds: the values of a byte
BETA2 = 0.3  # weight of recall in the F measure, as in the DSS paper


class Scores(NamedTuple):
    """The loss and the metrics on a data split, as in the DSS paper (arXiv 1611.04849).

    loss: mean binary cross-entropy of a pixel.
    maxf: the largest F measure of all thresholds in %. A probability is rounded to a byte (0 to 255); a pixel is
        predicted salient if its byte is at least the threshold (0 to 255). Precision and recall of each threshold are
        averaged over the images, then F = 1.3 precision recall / (0.3 precision + recall). The precision of an image
        without a predicted pixel is 0. An image without a salient pixel does not count.
    mae: mean over the images of the mean difference between probability and mask, from 0 to 1. Smaller is better.
    """

    loss: float
    maxf: float
    mae: float


class Saliency(Dense):
    """The task with one probability for each pixel. Outputs are logits `[B, maps, H, W]`, labels are `[B, H, W]`.

    The first map is the prediction. In training mode, a head outputs more maps, which learn from the same labels.
    Labels are 1 on salient pixels and 0 elsewhere. Pixels of the label `VOID` (255) are ignored.
    """

    name = "saliency"
    target = "salient"
    metrics = (Metric("maxf", "max-F", "%", "F"), Metric("mae", "MAE", "", "error", digits=3, larger=False))
    scores = Scores
    head_kind = Dss.kind

    def head(self, arch: BaseArch, image_size: int) -> Head:
        """Return the head of DSS, in proportion to the network."""
        return dss_for(arch, image_size)

    def targets(self, x: Tensor, labels: Tensor, size: int, config: Config, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch and its targets, which are the labels. Mixup and CutMix are not applied."""
        return x, labels

    def loss(self, outputs: Tensor, targets: Tensor, config: Config) -> Tensor:
        """Return the mean binary cross-entropy of the known pixels, over all maps. Label smoothing is not applied."""
        total, count = entropy(outputs, targets)
        return total / count.clamp(min=1)

    def distilled(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of a pixel against the teacher's probabilities.

        Each map learns from the teacher's map of the same index. A teacher in eval mode has only one map, for all maps.
        """
        if teacher.shape[1] != 1:
            teacher = teacher[:, : outputs.shape[1]]
        wanted = teacher.float().sigmoid().expand_as(outputs)
        return F.binary_cross_entropy_with_logits(outputs.float(), wanted)

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return a mask of the pixels that are more likely salient than not, in the form of labels."""
        return (outputs[:, 0] > 0).to(torch.uint8)

    def picture(self, images: np.ndarray, labels: Tensor) -> list[np.ndarray]:
        """Return images, uint8 [N, H, W, 3], with their salient pixels in colour."""
        return [painted(image, mask) for image, mask in zip(images, labels.cpu().numpy(), strict=True)]

    def meter(self, device: torch.device, classes: tuple[str, ...] = (), sizes: Sizes = COCO_SIZES) -> SaliencyMeter:
        """Return an empty meter on the device."""
        return SaliencyMeter(device)


def entropy(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the known pixels' binary cross-entropy, averaged over the maps, and the number of these pixels.

    outputs: logits `[B, maps, H, W]`. labels: uint8 `[B, H, W]`.
    """
    known = labels != VOID
    # Compute in fp32, as for classification.
    wanted = torch.where(known, labels, 0).float()[:, None].expand_as(outputs)
    loss = F.binary_cross_entropy_with_logits(outputs.float(), wanted, reduction="none").mean(1)
    return (loss * known).sum(), known.sum()


class SaliencyMeter:
    """Sums over the images: precision and recall of each threshold, errors, losses, and their divisors."""

    def __init__(self, device: torch.device) -> None:
        # Use one tensor, so that one transfer to the host reads all sums.
        self.sums = torch.zeros(2 * LEVELS + 5, device=device, dtype=sum_dtype(device))

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch of logits `[B, maps, H, W]` and labels `[B, H, W]` without a wait for the device."""
        known, salient = labels != VOID, labels == 1
        likely = outputs[:, 0].float().sigmoid()
        # NaN is not a valid index. The loss already shows that a training has diverged.
        levels = (likely.nan_to_num(0) * (LEVELS - 1)).round().long()
        hits, guesses = _counts(levels, known & salient), _counts(levels, known)
        relevant = (known & salient).sum((1, 2))
        counted = relevant > 0
        precision, recall = hits / guesses.clamp(min=1), hits / relevant.clamp(min=1)[:, None]
        pixels = known.sum((1, 2))
        error = ((likely - salient.float()).abs() * known).sum((1, 2)) / pixels.clamp(min=1)
        loss, count = entropy(outputs, labels)
        parts = [counted.sum(), error.sum(), (pixels > 0).sum(), loss, count]
        rates = [(rate * counted[:, None]).sum(0) for rate in (precision, recall)]
        self.sums += torch.cat([*rates, torch.stack([part.to(self.sums.dtype) for part in parts])])

    def scores(self, group: Group) -> Scores:
        """Return the scores over the images of all processes. Only this method waits for the device."""
        sums = group.sum(self.sums).cpu().double()
        counted, error, images, loss, pixels = sums[2 * LEVELS :].tolist()
        precision, recall = (sums[: 2 * LEVELS] / counted).view(2, LEVELS)
        f = (1 + BETA2) * precision * recall / (BETA2 * precision + recall)
        # At a threshold without a hit in any image, F would be 0 / 0: count 0.
        maxf = f.nan_to_num(0).max().item() if counted else float("nan")
        return Scores(loss / max(pixels, 1), 100 * maxf, error / max(images, 1))


def _counts(levels: Tensor, pixels: Tensor) -> Tensor:
    """Return how many of the pixels `[B, H, W]` have a level of at least each threshold, `[B, LEVELS]`."""
    counts = torch.zeros(len(levels), LEVELS, device=levels.device, dtype=torch.int64)
    counts.scatter_add_(1, levels.flatten(1), pixels.flatten(1).long())
    return counts.flip(1).cumsum(1).flip(1)


SALIENCY = Saliency()
