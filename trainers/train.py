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
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, overload

import torch
from torch import Tensor, nn

from res2net.errors import UserError
from trainers.datasets.data import Data
from trainers.ddp import ALONE, Group
from trainers.device import autocast, device_of, generator, placed, uses_bf16
from trainers.ema import Ema
from trainers.epoch import Epoch, TrainingFailed, Unfinished
from trainers.evaluate import evaluate
from trainers.images import source
from trainers.recipes import Config
from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.task import Scores, Task

ADAMW_BETA = 0.999  # AdamW's second coefficient, as in PyTorch
LEAST_FALL = 0.25  # a shortened training lowers its rate over at least this share of the remaining steps


class Trainer:
    """Trains one network, one epoch at a time. The trainer's state can be saved between steps and restored exactly.

    group: the processes that train the network together, each with its share of every batch.
    compiled: whether to run the network through `torch.compile`.
    workers: threads that decode image files; one per core if None.

    steps_per_epoch: attribute; steps of a full epoch.
    total_steps: attribute; steps of the whole training.
    unfinished: attribute; the trained part of an epoch that `stop` has interrupted, else None.
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
        self.frozen_norms = frozen_norms(model) if config.frozen_norms else []  # reads weights: still on the CPU
        self.model = placed(model, self.device)
        self.train_images = source(data.train, data, self.device, config.padding, workers)
        self.val_images = source(data.val, data, self.device, workers=workers)
        # Draw order, crops and flips from this generator alone, so that a checkpoint needs no other random state.
        self.rng = generator(self.device, config.seed)
        self.optimizer = self._optimizer()
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.net: Callable[..., Any] = group.wrap(self.model, self.device, self.partial)
        if compiled:
            # Use CUDA graphs: launching a small network's kernels takes longer than running them.
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self.net = torch.compile(self.net, mode=mode)
        self.steps_per_epoch = config.steps_per_epoch(len(self.train_images), group.world)
        self.planned_steps = self.total_steps = config.total_steps(self.steps_per_epoch)
        # After `end_after`: the step at which the learning rate begins to fall, and the rate at this step.
        self.bend: tuple[int, float] | None = None
        self.done_epochs = 0
        self.unfinished: Unfinished | None = None
        self.on_step: Callable[[], None] = lambda: None  # for a progress bar

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        # The fused kernel updates all weights at once. It requires momentum buffers for all weights or for none. So it
        # cannot train a supernet: weights that no member has used yet have no buffer. For a supernet, None lets PyTorch
        # choose the kernel; False would update the weights one by one, even on CUDA.
        fused = None if self.partial else True
        shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": fused}
        if config.optimizer == "adamw":
            return torch.optim.AdamW(self._param_groups(), betas=(config.momentum, ADAMW_BETA), **shared)
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(self._param_groups(), momentum=config.momentum, nesterov=nesterov, **shared)

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

    @property
    def done_steps(self) -> int:
        """Steps done so far."""
        within = 0 if self.unfinished is None else self.unfinished.steps
        return min(self.done_epochs * self.steps_per_epoch + within, self.total_steps)

    @property
    def keeps_schedule(self) -> bool:
        """Whether `end_after` has not changed the learning rate of any step so far."""
        return self.bend is None or self.done_steps <= self.bend[0]

    @property
    def finished(self) -> bool:
        """Whether the training is complete."""
        return self.done_steps >= self.total_steps and self.unfinished is None

    def end_after(self, total_steps: int) -> None:
        """End the training after `total_steps`, at most the planned number. The learning rate falls linearly to zero.

        If enough steps remain, the rate begins to fall only after the warm-up and after the epochs of `hold`.
        """
        assert self.done_steps < total_steps <= self.planned_steps, "a training cannot become longer than planned"
        ends = sorted((self.config.hold, self.config.warmup), reverse=True)  # in epochs
        starts = [max(self.done_steps, round(e * self.steps_per_epoch)) for e in ends]
        left = total_steps - self.done_steps
        start = next((s for s in starts if total_steps - s >= LEAST_FALL * left), self.done_steps)
        self.bend = start, self._lr(start)
        self.total_steps = total_steps

    def _lr(self, step: int) -> float:
        if self.bend is None or step < self.bend[0]:
            return self.config.lr_at(step, self.steps_per_epoch)
        start, lr = self.bend
        return lr * (1 - (step - start) / (self.total_steps - start))

    @overload
    def epoch(self, stop: None = None) -> Epoch: ...

    @overload
    def epoch(self, stop: Callable[[], bool]) -> Epoch | None: ...

    def epoch(self, stop: Callable[[], bool] | None = None) -> Epoch | None:
        """Train the next epoch, or the rest of an unfinished one, and score it.

        stop: called before each step. If `stop` returns True, the training stops, and this method returns None.
        `state_dict` then holds the position in the epoch. The next call trains exactly the remaining batches.

        Raise `TrainingFailed` if a loss is not finite. After the last epoch, also check that the weights are finite.
        """
        assert not self.finished, "the schedule has no further step"
        assert stop is None or self.group.world == 1, "processes could stop at different steps"
        start = time.perf_counter()
        at = self.unfinished = self.unfinished or Unfinished(self.rng.get_state(), torch.zeros(2, device=self.device))
        stopped = not self._train_rest(at, stop)
        total, images = self.group.sum(at.sums).tolist()  # waits for the device's last step, so `seconds` includes it
        seconds = at.seconds = at.seconds + time.perf_counter() - start
        if stopped:
            return None
        self.unfinished = None
        self.done_epochs += 1
        loss = total / images
        self._check("training", loss)
        val = self._validate()
        if len(self.val_images):
            self._check("validation", val.loss)
        if self.finished:
            self._check_weights()
        return Epoch(self.done_epochs, loss, val, images / seconds, seconds)

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

    def _train_rest(self, at: Unfinished, stop: Callable[[], bool] | None) -> bool:
        """Train the remaining steps of an epoch and update `at`. Return False if `stop` interrupted the training."""
        self.model.train()
        for name in self.frozen_norms:  # by name: DDP on GPUs has replaced the modules
            self.model.get_submodule(name).eval()
        first = self.done_steps
        # Draw the order, crops and flips of all the epoch's images again, and take only the remaining batches.
        self.rng.set_state(at.rng)
        parts = self._parts()[at.steps :]
        batches = self.train_images.epoch(self.rng, parts, self.group.shard, self.config.flip)
        for step, ((x, y), part) in enumerate(zip(batches, parts, strict=True), first):
            if step >= self.total_steps:  # `end_after` has ended the training in this epoch
                break
            if stop is not None and stop():
                return False
            # DDP averages gradients as if all processes had equal shares of the batch. The shares may differ by one
            # image, so weight each loss by the size of its share.
            weight = len(y) * self.group.world / (part.stop - part.start)
            loss = self._step(x, y, step, weight)
            # Sum the loss on the device. Reading the loss at each step would let the device run out of queued work.
            at.sums += torch.stack([loss * len(y), torch.full_like(loss, len(y))])
            at.steps += 1
        return True

    def _parts(self) -> list[slice]:
        """Return the batches of the current epoch, as slices of its random order. The last epoch may have fewer."""
        n, size = len(self.train_images), self.config.batch_size
        starts = [step * size for step in range(self.steps_per_epoch)]
        parts = [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]
        return parts[: self.planned_steps - self.done_epochs * self.steps_per_epoch]

    def _step(self, x: Tensor, y: Tensor, step: int, weight: float = 1.0) -> Tensor:
        """Update the weights with one batch and return its loss. step: counts from 0 over all epochs."""
        self.on_step()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(step)
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
            outputs = self.net(x, targets) if self.task.detects else self.net(x)
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
            "bend": self.bend,
            "total_steps": self.total_steps,
            "unfinished": None if self.unfinished is None else asdict(self.unfinished),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the `state_dict` of a trainer with the same network, data and config.

        Raise `UserError` for the state of a trainer on another kind of device, whose random numbers differ.
        """
        if state["rng"].shape != self.rng.get_state().shape:
            raise UserError(
                f"`device`: {self.device.type}; the checkpoint was written on another kind of device, whose random "
                "numbers differ; accepted: the device of the checkpoint"
            )
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"].cpu())  # even a CUDA generator takes its state from the host
        self.done_epochs = state["done_epochs"]
        self.bend, self.total_steps = state.get("bend"), state.get("total_steps", self.total_steps)
        # Checkpoints of earlier versions were written only between epochs, and lack this key.
        at = state.get("unfinished")
        self.unfinished = None if at is None else Unfinished(**at)
        if self.unfinished is not None:
            self.unfinished.rng = self.unfinished.rng.cpu()
            self.unfinished.sums = self.unfinished.sums.to(self.device)


def frozen_norms(model: nn.Module) -> list[str]:
    """Freeze the weights of the batch norms outside the head. Return their names: they stay in eval mode in training.

    A norm with zero weights is not frozen: it belongs to a block that has grown and must still learn (`res2net.grow`).
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and not name.startswith("head.") and module.weight.any():
            module.requires_grad_(False)
            found.append(name)
    return found


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
