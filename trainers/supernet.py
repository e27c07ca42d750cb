"""Train a supernet and score its members, the networks of a search space. All members share the supernet's weights.

A step trains four members (the sandwich rule of arXiv 1903.05134). The largest member learns from the labels. The
smallest member and two random members learn from the labels and from the outputs of the largest member (in-place
distillation). The package `trainers` does not import search spaces: the caller supplies the members (`Members`).
"""

from __future__ import annotations

import itertools
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

RANDOM_MEMBERS = 2  # random members of a step, besides the largest and the smallest
# Share of the distillation in a smaller member's loss. The loss on the labels keeps the rest, because the largest
# member's outputs teach little early in a training.
DISTILLED = 0.5
MAX_GRADIENT = 5.0  # norm to which a step's gradients are clipped, because the gradients of four members add up
CALIBRATION_IMAGES, CALIBRATION_BATCH = 1024, 256  # total and per batch, for a member's batch-norm statistics


@dataclass(frozen=True, slots=True)
class Members:
    """The members of a supernet. `sample` draws a random member."""

    largest: Arch
    smallest: Arch
    sample: Callable[[random.Random], Arch]


class SupernetTrainer(Trainer):
    """The training of a supernet, one epoch at a time. An epoch's scores are the scores of the largest member."""

    partial = True  # a step gives no gradient to weights outside the step's members

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
        # Draw from the seed and the step alone, so that all processes and a resumed training train the same members.
        rng = random.Random(f"{self.config.seed} {step}")
        drawn = [self.members.sample(rng) for _ in range(RANDOM_MEMBERS)]
        return [self.members.largest, self.members.smallest, *drawn]

    def _backward(self, x: Tensor, y: Tensor, step: int, weight: float = 1.0) -> Tensor:
        largest, *others = self.step_members(step)
        x, targets = self.task.targets(x, y, self.head_size, self.config, step)
        teacher = self._outputs(x, largest)
        loss = self.task.loss(teacher, targets, self.config)
        # Run the backward pass after each member, so that memory holds the activations of one member at a time. PyTorch
        # adds the gradients of all members.
        (loss * weight).backward()
        teacher = teacher.detach()  # otherwise the smaller members would pull the largest one towards them
        for arch in others:
            outputs = self._outputs(x, arch)
            by_label = self.task.loss(outputs, targets, self.config)
            (weight * (DISTILLED * self.task.distilled(outputs, teacher) + (1 - DISTILLED) * by_label)).backward()
        # Clip the gradients: the norm varies from step to step with the drawn members, and a single large step would
        # harm all members.
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT)
        return loss.detach()

    def _outputs(self, x: Tensor, arch: Arch) -> Tensor:
        with autocast(self.device, self.bf16):
            return self.net(x, arch)

    def _validate(self) -> Scores:
        return self.scorer(self.members.largest)


class Scorer:
    """Scores members with the weights of a supernet. A score does not depend on the members scored before.

    Each member first gets its own batch-norm statistics from up to `CALIBRATION_IMAGES` training images, in batches of
    equal size. The seed draws these images once for all members. The member is then scored on the validation split.
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
        """Return the member as an ordinary network in eval mode, with its own batch-norm statistics."""
        model = placed(self.model.extract(arch), self.device)
        size = min(CALIBRATION_BATCH, self.task.eval_batch(self.calibration_images.size))
        # Leave out a shorter last batch: its few images would count as much as any other batch.
        full = max(1, len(self.calibration_images) // size)
        calibrate(model, (x for x, _ in itertools.islice(self.calibration_images.batches(size), full)), self.bf16)
        return model


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor], bf16: bool = False) -> None:
    """Set a member's batch-norm statistics to the mean of the statistics of all batches, with equal weights.

    Leave the model in eval mode. Each member needs its own statistics, because the means and variances of activations
    differ between members.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
    model.train()
    for i, x in enumerate(batches, 1):
        # This momentum gives the cumulative mean, in which all batches count equally. A momentum of None gives it too,
        # but each norm would then read the number of batches from the device.
        for norm in norms:
            norm.momentum = 1 / i
        with autocast(x.device, bf16):
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
