"""Train the weights that a space's networks share, and score members with them.

A step trains four members (the sandwich rule): the largest on the labels, the smallest and two drawn at random on the
labels and on what the largest says (in-place distillation). Which members there are is the caller's: this room knows no
spaces.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net.arch import Arch
from res2net.elastic import ElasticRes2Net
from trainers.datasets.data import Data, Split
from trainers.ddp import ALONE, Group
from trainers.device import device_of, uses_bf16
from trainers.evaluate import Scores, evaluate
from trainers.images import Images
from trainers.recipes import Config
from trainers.train import Trainer

RANDOM_MEMBERS = 2  # of a step, besides the largest and the smallest
DISTILLED = (
    0.5  # of a member's loss: what the largest says; the rest is by the labels, as the largest learns slowly too
)
MAX_GRADIENT = 5.0  # norm to which a step's gradients are clipped: four members' add up
CALIBRATION_IMAGES, CALIBRATION_BATCH = 1024, 256


@dataclass(frozen=True, slots=True)
class Members:
    """The networks that are trained together; `sample` draws one."""

    largest: Arch
    smallest: Arch
    sample: Callable[[random.Random], Arch]


class SupernetTrainer(Trainer):
    """Training of shared weights, an epoch at a time. An epoch's scores are those of the largest member."""

    partial = True  # what none of a step's members has

    def __init__(
        self, model: ElasticRes2Net, data: Data, config: Config, members: Members, group: Group = ALONE
    ) -> None:
        for arch in (members.largest, members.smallest):
            model.check(arch)
        super().__init__(model, data, config, group)
        self.members, self.scorer = members, Scorer(model, data, config)

    def step_members(self, step: int) -> list[Arch]:
        """Those trained in a step, the largest first: they follow from the seed and the step alone."""
        rng = random.Random(f"{self.config.seed} {step}")
        drawn = [self.members.sample(rng) for _ in range(RANDOM_MEMBERS)]
        return [self.members.largest, self.members.smallest, *drawn]

    def _backward(self, x: Tensor, y: Tensor, step: int, weight: float = 1.0) -> Tensor:
        largest, *others = self.step_members(step)
        logits = self._logits(x, largest)
        loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
        (loss * weight).backward()
        told = logits.detach().softmax(1)
        for arch in others:
            logits = self._logits(x, arch)
            by_label = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
            (weight * (DISTILLED * F.cross_entropy(logits, told) + (1 - DISTILLED) * by_label)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT)
        return loss.detach()

    def _logits(self, x: Tensor, arch: Arch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.net(x, arch).float()

    def _validate(self) -> Scores:
        return self.scorer(self.members.largest)


class Scorer:
    """Scores members of a supernet by its weights, each the same whatever was scored before it.

    A member gets batch-norm statistics of its own from the same `CALIBRATION_IMAGES` training images, drawn by the
    seed, and is then scored on the validation split.
    """

    def __init__(self, model: ElasticRes2Net, data: Data, config: Config) -> None:
        device = device_of(config.device)
        self.model, self.bf16 = model, uses_bf16(config.precision, device)
        self.val_images = Images(data.val, data, device)
        count = min(CALIBRATION_IMAGES, len(data.train))
        chosen = np.sort(np.random.default_rng(config.seed).permutation(len(data.train))[:count])
        part = Split(data.train.images[chosen], data.train.labels[chosen])
        self.calibration_images = Images(part, data, device)

    def __call__(self, arch: Arch) -> Scores:
        """A member's loss and accuracies on the validation split."""
        return evaluate(self.member(arch), self.val_images, self.bf16)

    def member(self, arch: Arch) -> nn.Module:
        """The member as an ordinary network with statistics of its own, in eval mode."""
        model = self.model.extract(arch).to(memory_format=torch.channels_last)
        calibrate(model, (x for x, _ in self.calibration_images.batches(CALIBRATION_BATCH)), self.bf16)
        return model


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor], bf16: bool = False) -> None:
    """Give batch norms the mean statistics of these batches, each counting alike; the model is left in eval mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's way of asking for the cumulative mean
    model.train()
    for x in batches:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
