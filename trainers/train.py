"""Train one network, an epoch at a time, and score it on the validation split.

What makes it fast: images stay on the device as uint8, channels last; a batch is cropped, flipped and normalised as one
tensor; bf16 where the hardware multiplies it; nothing in the step loop waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.datasets.data import Data
from trainers.ddp import ALONE, Group
from trainers.device import device_of, uses_bf16
from trainers.ema import Ema
from trainers.evaluate import Scores, evaluate
from trainers.images import source
from trainers.mixing import mixed
from trainers.recipes import Config


class TrainingFailed(RuntimeError):
    """Training cannot go on; the text is the reason that a trial records."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave. Accuracies in %, NaN where there is no validation split; `seconds` of training alone."""

    epoch: int
    train_loss: float
    val_loss: float
    val_top1: float
    images_per_second: float
    seconds: float
    val_top5: float = math.nan


class Trainer:
    """One network's training, an epoch at a time; its state can be saved between epochs and restored exactly.

    group: the processes that train it together, each with its share of every batch. compiled: by `torch.compile`.
    workers: threads that decode image files. on_step, if set, is called before each step.
    """

    partial = False  # whether a step may leave weights without a gradient

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        config: Config,
        group: Group = ALONE,
        compiled: bool = False,
        workers: int | None = None,
    ) -> None:
        self.config, self.group, self.num_classes = config, group, data.num_classes
        self.device = device_of(config.device)
        self.bf16 = uses_bf16(config.precision, self.device)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.train_images = source(data.train, data, self.device, config.crop_padding, workers)
        self.val_images = source(data.val, data, self.device, workers=workers)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.optimizer = torch.optim.SGD(
            self._weights(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
            weight_decay=config.weight_decay,
            fused=not self.partial,  # all weights in one kernel
        )
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.net = group.wrap(self.model, self.device, self.partial)
        if compiled:
            # On CUDA as graphs: a small network's launches take longer than its kernels.
            self.net = torch.compile(self.net, mode="reduce-overhead" if self.device.type == "cuda" else "default")
        # Images left over join the batch before them if a process would get none, or a batch norm at 1 x 1 only one.
        spare = max(1, group.world - 1)
        self.steps_per_epoch = max(1, -(-(len(self.train_images) - spare) // config.batch_size))
        self.done_epochs = 0
        self.on_step: Callable[[], None] = lambda: None  # for a progress bar

    def _weights(self) -> list[dict[str, Any]]:
        """The weights, those that are not to be decayed apart."""
        weights = list(self.model.parameters())
        if self.config.decay_norms:
            return [{"params": weights}]
        return [
            {"params": [w for w in weights if w.ndim > 1]},
            {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
        ]

    @property
    def scored(self) -> nn.Module:
        """The network that is scored and kept: that of the averaged weights, where there are any."""
        return self.model if self.ema is None else self.ema.model

    def epoch(self) -> Epoch:
        """Train one epoch and score; `TrainingFailed` if a loss, or in the end a weight, is no longer a number."""
        assert self.done_epochs < self.config.epochs, "the schedule has no further epoch"
        start = time.perf_counter()
        loss = self._train_epoch()  # the only wait for the device is for this number
        seconds = time.perf_counter() - start
        self.done_epochs += 1
        self._check("training", loss)
        val = self._validate()
        if len(self.val_images):
            self._check("validation", val.loss)
        if self.done_epochs == self.config.epochs:
            self._check_weights()
        rate = len(self.train_images) / seconds
        return Epoch(self.done_epochs, loss, val.loss, val.top1, rate, seconds, val.top5)

    def _check(self, kind: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(f"{kind} loss is {loss} in epoch {self.done_epochs} of {self.config.epochs}")

    def _check_weights(self) -> None:
        """Losses may stay numbers where a weight does not: a batch norm of infinite variance puts out zeros."""
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise TrainingFailed(f"weight {name!r} is not finite after epoch {self.done_epochs}")

    def _train_epoch(self) -> float:
        self.model.train()
        parts, first = self._parts(), self.done_epochs * self.steps_per_epoch
        batches = self.train_images.epoch(self.rng, parts, self.group.shard, self.config.flip)
        total = torch.zeros(2, device=self.device)
        for step, ((x, y), part) in enumerate(zip(batches, parts, strict=True), first):
            # Of the mean that DDP takes over processes, which may have one image more or less.
            weight = len(y) * self.group.world / (part.stop - part.start)
            loss = self._step(x, y, step, weight)
            total += torch.stack([loss * len(y), torch.full_like(loss, len(y))])
        loss, n = self.group.sum(total).tolist()
        return loss / n

    def _parts(self) -> list[slice]:
        """The batches of an epoch, as places in its order."""
        n, size = len(self.train_images), self.config.batch_size
        starts = [step * size for step in range(self.steps_per_epoch)]
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]

    def _step(self, x: Tensor, y: Tensor, step: int, weight: float = 1.0) -> Tensor:
        self.on_step()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(step, self.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(x, y, step, weight)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(step)
        return loss

    def _backward(self, x: Tensor, y: Tensor, step: int, weight: float = 1.0) -> Tensor:
        """Leave the step's gradients in the weights, those of `weight` times its loss; the loss."""
        x, target = mixed(x, y, self.num_classes, self.config, step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.net(x)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=self.config.label_smoothing)
        (loss if weight == 1 else loss * weight).backward()
        return loss.detach()

    def _validate(self) -> Scores:
        """Loss and accuracies on the validation split."""
        return evaluate(self.scored, self.val_images, self.bf16, self.group)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if never stopped (loads with `weights_only=True`)."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "done_epochs": self.done_epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, of a trainer with the same network, data and config."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"].cpu())
        self.done_epochs = state["done_epochs"]


def train(
    model: nn.Module, data: Data, config: Config, on_epoch: Callable[[Epoch], bool | None] | None = None
) -> list[Epoch]:
    """Train `model` in place; `on_epoch` is told of each epoch and stops the training by returning False."""
    trainer = Trainer(model, data, config)
    epochs = []
    for _ in range(config.epochs):
        epochs.append(trainer.epoch())
        if on_epoch is not None and on_epoch(epochs[-1]) is False:
            break
    return epochs
