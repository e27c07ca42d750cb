"""Train the weights that a space's networks share, and score members with them.

A step trains four members (the sandwich rule of arXiv 1903.05134): the largest on the labels; the smallest and two
random ones on the labels and on the largest one's outputs (in-place distillation). This room knows no spaces: the
caller says which members there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from res2net.arch import Arch
from res2net.elastic import ElasticRes2Net
from trainers.datasets.data import Data, Split
from trainers.ddp import ALONE, Group
from trainers.device import autocast, device_of, placed, uses_bf16
from trainers.evaluate import evaluate
from trainers.images import Images, source
from trainers.recipes import Config
from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.task import Scores, Task
from trainers.train import Trainer

RANDOM_MEMBERS = 2  # of a step, besides the largest and the smallest
# Share of the largest member's outputs in a smaller member's loss. The labels keep the rest: early in a training the
# largest member has learned little that the others could learn from it.
DISTILLED = 0.5
MAX_GRADIENT = 5.0  # norm to which a step's gradients are clipped: the gradients of four members add up
CALIBRATION_IMAGES, CALIBRATION_BATCH = 1024, 256


@dataclass(frozen=True, slots=True)
class Members:
    """The networks that share the weights. `sample` draws one of them."""

    largest: Arch
    smallest: Arch
    sample: Callable[[random.Random], Arch]


class SupernetTrainer(Trainer):
    """Training of shared weights, an epoch at a time. An epoch's scores are those of the largest member."""

    partial = True  # weights that no member of the step has get no gradient

    def __init__(
        self,
        model: ElasticRes2Net,
        data: Data,
        config: Config,
        members: Members,
        group: Group = ALONE,
        task: Task = CLASSIFICATION,
    ) -> None:
        for arch in (members.largest, members.smallest):
            model.check(arch)
        super().__init__(model, data, config, group, task=task)
        self.members, self.scorer = members, Scorer(model, data, config, task)

    def step_members(self, step: int) -> list[Arch]:
        """Return the members that a step trains, the largest first."""
        # From the seed and the step alone: all processes train the same members, and so does a resumed training.
        rng = random.Random(f"{self.config.seed} {step}")
        drawn = [self.members.sample(rng) for _ in range(RANDOM_MEMBERS)]
        return [self.members.largest, self.members.smallest, *drawn]

    def _backward(self, x: Tensor, y: Tensor, step: int, weight: float = 1.0) -> Tensor:
        largest, *others = self.step_members(step)
        x, targets = self.task.targets(x, y, self.head_size, self.config, step)
        teacher = self._outputs(x, largest)
        loss = self.task.loss(teacher, targets, self.config)
        # A backward pass after each member: the activations of one member at a time are in memory, gradients add up.
        (loss * weight).backward()
        teacher = teacher.detach()  # else the smaller members would pull the largest one towards their own outputs
        for arch in others:
            outputs = self._outputs(x, arch)
            by_label = self.task.loss(outputs, targets, self.config)
            (weight * (DISTILLED * self.task.distilled(outputs, teacher) + (1 - DISTILLED) * by_label)).backward()
        # The norm varies from step to step with the members drawn; one large step would upset all of them.
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT)
        return loss.detach()

    def _outputs(self, x: Tensor, arch: Arch) -> Tensor:
        with autocast(self.device, self.bf16):
            return self.net(x, arch)

    def _validate(self) -> Scores:
        return self.scorer(self.members.largest)


class Scorer:
    """Scores members of a supernet by its weights. A score does not depend on the members scored before.

    A member gets batch-norm statistics of its own from the same `CALIBRATION_IMAGES` training images, drawn by the
    seed. Its score is then taken on the validation split.
    """

    def __init__(self, model: ElasticRes2Net, data: Data, config: Config, task: Task = CLASSIFICATION) -> None:
        self.device = device = device_of(config.device)
        self.model, self.task, self.bf16 = model, task, uses_bf16(config.precision, device)
        assert isinstance(data.train, Split), "a search keeps its images in memory"
        self.val_images = source(data.val, data, device)
        count = min(CALIBRATION_IMAGES, len(data.train))
        chosen = np.sort(np.random.default_rng(config.seed).permutation(len(data.train))[:count])
        self.calibration_images = Images(data.train.take(chosen), data, device)

    def __call__(self, arch: Arch) -> Scores:
        """Return a member's scores on the validation split."""
        return evaluate(self.member(arch), self.val_images, self.bf16, task=self.task)

    def member(self, arch: Arch) -> nn.Module:
        """Return the member as an ordinary network with batch-norm statistics of its own, in eval mode."""
        model = placed(self.model.extract(arch), self.device)
        calibrate(model, (x for x, _ in self.calibration_images.batches(CALIBRATION_BATCH)), self.bf16)
        return model


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor], bf16: bool = False) -> None:
    """Set batch-norm statistics to their mean over the batches, with equal weights. Leaves the model in eval mode.

    The statistics of shared weights mix all members. A slice's own activations have another mean and variance.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch then takes the cumulative mean, in which no batch counts more than another
    model.train()
    for x in batches:
        with autocast(x.device, bf16):
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
