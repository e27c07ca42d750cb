"""The task of key points: a heat map for each key point of one object, scored by the average precision (AP) and PCK.

The method is SimpleBaseline (arXiv 1804.06208). The boxes of the objects are given.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from res2net.arch import BaseArch
from res2net.heads import Deconv, Head
from trainers.datasets.base import COCO_SIZES, Sizes
from trainers.ddp import Group
from trainers.device import sum_dtype
from trainers.recipes import Config
from trainers.tasks import heatmaps, oks
from trainers.tasks.dense import Dense
from trainers.tasks.drawing import dotted
from trainers.tasks.fitting import deconv_for
from trainers.tasks.task import Metric

NEAR = 0.1  # a predicted point is right within this share of the side of the object's box


class Scores(NamedTuple):
    """The loss and the metrics on a data split. Metrics are in %.

    loss: mean loss of a labelled key point's heat map (`Keypoints.loss`).
    ap: average precision by object key point similarity (OKS), averaged over the thresholds 0.5, 0.55, ..., 0.95. Each
        object has one prediction; its confidence is the mean height of its heat maps' peaks.
    ap50, ap75: the same at the thresholds 0.5 and 0.75.
    pck: share of the labelled key points that are predicted within a tenth of the square root of the box's area.
    """

    loss: float
    ap: float
    ap50: float
    ap75: float
    pck: float


class Keypoints(Dense):
    """The task with a point for each key point. Outputs are heat maps `[B, K, H / 4, W / 4]`.

    Labels are `[B, K + 1, 3]`, see `TARGETS`. Hidden key points count like visible ones. Unlabelled ones are ignored.
    """

    name = "keypoints"
    target = "points"
    metrics = (
        Metric("ap", "AP", "%", "precision"),
        Metric("ap50", "AP50", "%", "precision"),
        Metric("ap75", "AP75", "%", "precision"),
        Metric("pck", "PCK", "%", "accuracy"),
    )
    scores = Scores
    recipe = "points"
    head_kind = Deconv.kind

    def check(self) -> None:
        """Raise `UserError` if the package that computes the AP is missing."""
        oks.need_coco_eval(self.name)

    def head(self, arch: BaseArch, image_size: int) -> Head:
        """Return the head of SimpleBaseline, in proportion to the network."""
        return deconv_for(arch, image_size)

    def targets(self, x: Tensor, labels: Tensor, size: int, config: Config, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch and its targets, which are the labels. Mixup and CutMix are not applied."""
        return x, labels

    def loss(self, outputs: Tensor, targets: Tensor, config: Config) -> Tensor:
        """Return the mean loss of the labelled key points' heat maps.

        The loss of a map is the mean squared error of its pixels: the published loss without its factor of 1/2. This
        loss is small, about 0.003 for a map without a peak. But with a larger factor, trainings would diverge at the
        learning rates of our recipes. With a factor of 3, a head of 256 channels diverges at a rate of 0.05.
        """
        total, count = errors(outputs, targets)
        return total / count.clamp(min=1)

    def distilled(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean loss of a heat map against the teacher's heat map."""
        return (outputs.float() - teacher.float()).square().mean()

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return the points of heat maps in the form of labels. All points are visible, and the last row is 0."""
        points = heatmaps.peaks(outputs.float())[0]
        found = torch.cat([points, torch.full_like(points[..., :1], 2)], 2)
        return torch.cat([found, torch.zeros_like(found[:, :1])], 1)

    def picture(self, images: np.ndarray, labels: Tensor) -> list[np.ndarray]:
        """Return images, uint8 [N, H, W, 3], with their labelled key points as dots."""
        points = labels[:, :-1].cpu().numpy()
        return [dotted(image, known) for image, known in zip(images, points, strict=True)]

    def meter(self, device: torch.device, classes: tuple[str, ...] = (), sizes: Sizes = COCO_SIZES) -> KeypointMeter:
        """Return an empty meter on the device. classes: names of the key points."""
        return KeypointMeter(device, classes)


def errors(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of the labelled key points' heat maps, and the number of these key points."""
    points, maps = labels[:, :-1], outputs.float()  # computed in fp32, as for classification
    labelled = points[..., 2] > 0
    found = (maps - heatmaps.draw(points, maps.shape[2:])).square().mean((2, 3))
    return (found * labelled).sum(), labelled.sum()


class KeypointMeter:
    """The sum of losses, the number of points predicted within `NEAR`, and a row for each object, all on the device."""

    def __init__(self, device: torch.device, classes: tuple[str, ...]) -> None:
        oks.need_coco_eval(KEYPOINTS.name)
        self.classes, self.device = classes, device
        self.sums = torch.zeros(3, device=device, dtype=sum_dtype(device))
        self.rows: list[Tensor] = []  # [B, 5 K + 1]: predicted points, confidence, true points, area of the object

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch of heat maps `[B, K, h, w]` and labels `[B, K + 1, 3]` without a wait for the device."""
        points, height = heatmaps.peaks(outputs.float())
        height = height.nan_to_num(0)  # faster-coco-eval refuses NaN; the loss shows that a training diverged
        truth, (area, box, scale) = labels[:, :-1], labels[:, -1].unbind(1)
        distance = (points - truth[..., :2]).norm(dim=2)
        near = (distance <= NEAR * (box.sqrt() * scale)[:, None]) & (truth[..., 2] > 0)
        loss, count = errors(outputs, labels)
        self.sums += torch.stack([part.to(self.sums.dtype) for part in (loss, count, near.sum())])
        self.rows.append(torch.cat([points.flatten(1), height.mean(1)[:, None], truth.flatten(1), area[:, None]], 1))

    def scores(self, group: Group) -> Scores:
        """Return the scores over the images of all processes. Only this method waits for the device."""
        loss, count, near = group.sum(self.sums).tolist()
        # With fewer images than processes, some have none.
        rows = group.gather(torch.cat(self.rows) if self.rows else torch.zeros(0, 0, device=self.device))
        k = rows.shape[1] // 5
        guesses, confidence, truth, areas = rows.cpu().double().split([2 * k, 1, 3 * k, 1], 1)
        found = oks.precision(
            guesses.view(-1, k, 2).numpy(),
            confidence[:, 0].numpy(),
            truth.view(-1, k, 3).numpy(),
            areas[:, 0].numpy(),
            oks.sigmas_of(self.classes, k),
        )
        return Scores(loss / max(count, 1), *found, 100 * near / max(count, 1))


KEYPOINTS = Keypoints()
