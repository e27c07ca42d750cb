"""Train one network, one epoch at a time, and score it on the validation split.

The step loop is fast for four reasons:

- Images in memory stay on the device as channels-last uint8.
- A batch is cropped, flipped and normalised as one tensor.
- The network computes in bf16 where the hardware multiplies it faster.
- No step waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.datasets.data import Data
from trainers.ddp import ALONE, Group
from trainers.device import autocast, device_of, placed, uses_bf16
from trainers.ema import Ema
from trainers.evaluate import evaluate
from trainers.images import source
from trainers.recipes import Config
from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.task import Scores, Task


class TrainingFailed(RuntimeError):
    """Training cannot continue. The text is the reason that a search records for its failed trial."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The results of one epoch.

    epoch: number of the epoch, from 1.
    train_loss: mean loss over the training images.
    val: scores on the validation split; NaN without a validation split.
    images_per_second: speed of training, without scoring.
    seconds: time of training, without scoring.
    """

    epoch: int
    train_loss: float
    val: Scores
    images_per_second: float
    seconds: float

    @property
    def val_loss(self) -> float:
        """The loss on the validation split."""
        return self.val.loss

    @property
    def val_top1(self) -> float:
        """The top-1 accuracy on the validation split in %. Only the classification task has this metric."""
        return self.val.top1

    def row(self) -> dict[str, float]:
        """Return the epoch as a row of `log.csv`: a flat mapping from names to numbers."""
        score, *others = [(f"val_{name}", value) for name, value in self.val._asdict().items() if name != "loss"]
        # Keep the column order of earlier versions: readers of a log may find columns by position.
        return {
            "epoch": self.epoch,
            "train_loss": self.train_loss,
            "val_loss": self.val.loss,
            **dict([score]),
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            **dict(others),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, float], task: Task) -> Epoch:
        """Return the epoch of a row that `row` returned. Metrics missing from the row are NaN."""
        names = ("loss", *(metric.name for metric in task.metrics))
        val = task.scores(*(row.get(f"val_{name}", math.nan) for name in names))
        return cls(int(row["epoch"]), row["train_loss"], val, row["images_per_second"], row["seconds"])


class Trainer:
    """Trains one network, one epoch at a time. The trainer's state can be saved between epochs and restored exactly.

    group: the processes that train the network together, each with its share of every batch.
    compiled: whether to run the network through `torch.compile`.
    workers: threads that decode image files; one per core if None.
    on_step: attribute; a function called before each step.
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
        task: Task = CLASSIFICATION,
    ) -> None:
        self.config, self.group, self.task, self.head_size = config, group, task, task.head_size(data)
        self.device = device_of(config.device)
        self.bf16 = uses_bf16(config.precision, self.device)
        self.model = placed(model, self.device)
        self.train_images = source(data.train, data, self.device, config.crop_padding, workers)
        self.val_images = source(data.val, data, self.device, workers=workers)
        # Draw order, crops and flips from this generator alone, so that a checkpoint needs no other random state.
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.optimizer = torch.optim.SGD(
            self._param_groups(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
            weight_decay=config.weight_decay,
            # The fused kernel updates all weights at once. It requires momentum buffers for all weights or for none. So
            # it cannot train a supernet: weights that no member has used yet have no buffer.
            fused=not self.partial,
        )
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.net: Callable[..., Any] = group.wrap(self.model, self.device, self.partial)
        if compiled:
            # Use CUDA graphs: launching a small network's kernels takes longer than running them.
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self.net = torch.compile(self.net, mode=mode)
        # A short last batch joins the batch before it in two cases: if a process would get no image, or if the batch
        # has a single image. A batch norm on 1 x 1 maps cannot normalise one value.
        spare = max(1, group.world - 1)
        self.steps_per_epoch = max(1, -(-(len(self.train_images) - spare) // config.batch_size))
        self.done_epochs = 0
        self.on_step: Callable[[], None] = lambda: None  # for a progress bar

    def _param_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups of weights: weights with weight decay, then weights without it."""
        weights = list(self.model.parameters())
        if self.config.decay_norms:
            return [{"params": weights}]
        return [
            {"params": [w for w in weights if w.ndim > 1]},
            {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
        ]

    @property
    def scored(self) -> nn.Module:
        """The network to score and to keep: the averaged network if the recipe has `ema`, else the trained network."""
        return self.model if self.ema is None else self.ema.model

    def epoch(self) -> Epoch:
        """Train one epoch and score it.

        Raise `TrainingFailed` if a loss is not finite. After the last epoch, also check that the weights are finite.
        """
        assert self.done_epochs < self.config.epochs, "the schedule has no further epoch"
        start = time.perf_counter()
        loss = self._train_epoch()  # waits for the device's last step, so `seconds` includes it
        seconds = time.perf_counter() - start
        self.done_epochs += 1
        self._check("training", loss)
        val = self._validate()
        if len(self.val_images):
            self._check("validation", val.loss)
        if self.done_epochs == self.config.epochs:
            self._check_weights()
        return Epoch(self.done_epochs, loss, val, len(self.train_images) / seconds, seconds)

    def _check(self, kind: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(f"{kind} loss is {loss} in epoch {self.done_epochs} of {self.config.epochs}")

    def _check_weights(self) -> None:
        """Raise `TrainingFailed` for a weight that is not finite.

        The losses may not show such a weight: a batch norm with infinite variance outputs zeros, whose loss is finite.
        """
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise TrainingFailed(f"weight {name!r} is not finite after epoch {self.done_epochs}")

    def _train_epoch(self) -> float:
        """Train on every image once and return the mean loss."""
        self.model.train()
        parts, first = self._parts(), self.done_epochs * self.steps_per_epoch
        batches = self.train_images.epoch(self.rng, parts, self.group.shard, self.config.flip)
        # Sum the loss on the device. Reading the loss at each step would let the device run out of queued work.
        total = torch.zeros(2, device=self.device)
        for step, ((x, y), part) in enumerate(zip(batches, parts, strict=True), first):
            # DDP averages gradients as if all processes had equal shares of the batch. The shares may differ by one
            # image, so weight each loss by the size of its share.
            weight = len(y) * self.group.world / (part.stop - part.start)
            loss = self._step(x, y, step, weight)
            total += torch.stack([loss * len(y), torch.full_like(loss, len(y))])
        loss, n = self.group.sum(total).tolist()
        return loss / n

    def _parts(self) -> list[slice]:
        """Return the batches of an epoch, as slices of its random order."""
        n, size = len(self.train_images), self.config.batch_size
        starts = [step * size for step in range(self.steps_per_epoch)]
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]

    def _step(self, x: Tensor, y: Tensor, step: int, weight: float = 1.0) -> Tensor:
        """Update the weights with one batch and return its loss. step: counts from 0 over all epochs."""
        self.on_step()
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(step, self.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)  # the backward pass then writes gradients instead of adding them
        loss = self._backward(x, y, step, weight)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(step)
        return loss

    def _backward(self, x: Tensor, y: Tensor, step: int, weight: float = 1.0) -> Tensor:
        """Compute the gradients of `weight` times the step's loss, and return the loss."""
        x, targets = self.task.targets(x, y, self.head_size, self.config, step)
        with autocast(self.device, self.bf16):
            outputs = self.net(x)
        # No gradient scaling: bf16 has fp32's range of exponents, so small gradients do not vanish.
        loss = self.task.loss(outputs, targets, self.config)
        (loss if weight == 1 else loss * weight).backward()
        return loss.detach()

    def _validate(self) -> Scores:
        """Return the scores on the validation split."""
        return evaluate(self.scored, self.val_images, self.bf16, self.group, self.task)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` restores exactly. `torch.load` reads it with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "done_epochs": self.done_epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the `state_dict` of a trainer with the same network, data and config."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"].cpu())  # even a CUDA generator takes its state from the host
        self.done_epochs = state["done_epochs"]


def train(
    model: nn.Module, data: Data, config: Config, on_epoch: Callable[[Epoch], bool | None] | None = None
) -> list[Epoch]:
    """Train `model` in place and return the epochs.

    on_epoch: called after each epoch. The training stops if this function returns False.
    """
    trainer = Trainer(model, data, config)
    epochs = []
    for _ in range(config.epochs):
        epochs.append(trainer.epoch())
        if on_epoch is not None and on_epoch(epochs[-1]) is False:
            break
    return epochs
