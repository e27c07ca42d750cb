"""Train one network on images that live on the device, and score it on the validation split.

What makes it fast: images stay on the device as uint8, channels last; a batch is cropped, flipped and normalised as one
tensor; bf16 where the hardware multiplies it; nothing in the step loop waits for the device.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net.errors import UserError, unknown
from trainers.data import Data, Split

PRECISIONS = ("auto", "fp32", "bf16")
EVAL_BATCH = 500


class TrainingFailed(RuntimeError):
    """Training cannot go on; the text is the reason that a trial records."""


@dataclass(frozen=True, slots=True)
class Config:
    """How to train. Rates are for batches of `batch_size` images; `warmup` is in epochs, `crop_padding` in pixels."""

    epochs: int = 3
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.5
    label_smoothing: float = 0.1
    crop_padding: int = 2
    flip: bool = True
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; accepted: a whole number of at least 1")
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr is {self.lr}; accepted: a number above 0")
        for name in ("weight_decay", "warmup", "crop_padding"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; accepted: a number of at least 0")
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; accepted: a number from 0 up to, not including, 1")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave. `val_top1` in %, NaN where there is no validation split; `seconds` of training alone."""

    epoch: int
    train_loss: float
    val_loss: float
    val_top1: float
    images_per_second: float
    seconds: float


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # refused below, as all kinds that nothing here is tried on
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: unknown value {name!r}; accepted: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device: {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bf16: as asked, or (`auto`) where the hardware multiplies it faster than fp32."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) if hasattr(torch.cpu, "get_capabilities") else False


class Images:
    """A split on the device: uint8 `[N, H, W, C]`, normalised batch by batch into channels-last `[B, C, H, W]`."""

    def __init__(self, split: Split, data: Data, device: torch.device, padding: int = 0) -> None:
        self.labels = _tensor(split.labels).to(device, torch.int64)
        pixels = _tensor(split.images).to(device).permute(0, 2, 3, 1)
        self.size = pixels.shape[1]
        self.pixels = _pad(pixels, padding, data.mean) if padding else pixels.contiguous()
        # Every position of the crop as a view: [N, 2p+1, 2p+1, C, size, size], reordered to end in [.., size, size, C].
        self.crops = self.pixels.unfold(1, self.size, 1).unfold(2, self.size, 1).permute(0, 1, 2, 4, 5, 3)
        self.shift = 255 * torch.tensor(data.mean, device=device)
        self.factor = 1 / (255 * torch.tensor(data.std, device=device))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor, offsets: Tensor, flips: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images `index`, each cropped at its row and column of `offsets` `[2, B]` and mirrored where `flips`."""
        x = self.crops[index, offsets[0], offsets[1]]
        if flips is not None:
            x = torch.where(flips[:, None, None, None], x.flip(2), x)
        return self._normalise(x), self.labels[index]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, unchanged (for images that were not padded)."""
        for i in range(0, len(self), size):
            yield self._normalise(self.pixels[i : i + size]), self.labels[i : i + size]

    def _normalise(self, x: Tensor) -> Tensor:
        return x.to(torch.float32).sub_(self.shift).mul_(self.factor).permute(0, 3, 1, 2)


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # Arrays shared between processes are read-only, and so are our uses of them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _pad(pixels: Tensor, padding: int, mean: tuple[float, ...]) -> Tensor:
    """Frame each image with the mean colour, which is zero once normalised."""
    n, h, w, c = pixels.shape
    colour = torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8, device=pixels.device)
    padded = colour.expand(n, h + 2 * padding, w + 2 * padding, c).contiguous()
    padded[:, padding : padding + h, padding : padding + w] = pixels
    return padded


class Trainer:
    """One network's training, an epoch at a time; its state can be saved between epochs and restored exactly."""

    fused = True  # whether the optimizer may update all weights in one kernel: each must then have a gradient

    def __init__(self, model: nn.Module, data: Data, config: Config) -> None:
        self.config = config
        self.device = device_of(config.device)
        self.bf16 = uses_bf16(config.precision, self.device)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.train_images = Images(data.train, data, self.device, config.crop_padding)
        self.val_images = Images(data.val, data, self.device)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
            fused=self.fused,
        )
        # A single image left over joins the batch before it: alone it has no variance for a batch norm at 1 x 1.
        self.steps_per_epoch = max(1, -(-(len(self.train_images) - 1) // config.batch_size))
        self.done_epochs = 0

    def lr(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a cosine to zero."""
        warmup, total = self.config.warmup * self.steps_per_epoch, self.config.epochs * self.steps_per_epoch
        if step < warmup:
            return self.config.lr * (step + 1) / (warmup + 1)
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    def epoch(self) -> Epoch:
        """Train one epoch and score; `TrainingFailed` if a loss, or in the end a weight, is no longer a number."""
        assert self.done_epochs < self.config.epochs, "the schedule has no further epoch"
        start = time.perf_counter()
        loss = self._train_epoch()  # the only wait for the device is for this number
        seconds = time.perf_counter() - start
        self.done_epochs += 1
        self._check("training", loss)
        val_loss, val_top1 = self._validate()
        if len(self.val_images):
            self._check("validation", val_loss)
        if self.done_epochs == self.config.epochs:
            self._check_weights()
        rate = len(self.train_images) / seconds
        return Epoch(self.done_epochs, loss, val_loss, val_top1, rate, seconds)

    def _check(self, kind: str, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(f"{kind} loss is {loss} in epoch {self.done_epochs} of {self.config.epochs}")

    def _check_weights(self) -> None:
        """Losses may stay numbers where a weight does not: a batch norm of infinite variance puts out zeros."""
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise TrainingFailed(f"weight {name!r} is not finite after epoch {self.done_epochs}")

    def _train_epoch(self) -> float:
        images, config = self.train_images, self.config
        self.model.train()
        n = len(images)
        order = torch.randperm(n, generator=self.rng, device=self.device)
        limit = 2 * config.crop_padding + 1
        offsets = torch.randint(limit, (2, n), generator=self.rng, device=self.device)
        flips = torch.rand(n, generator=self.rng, device=self.device) < 0.5 if config.flip else None
        total = torch.zeros((), device=self.device)
        for step in range(self.steps_per_epoch):
            last = step == self.steps_per_epoch - 1
            part = slice(step * config.batch_size, n if last else (step + 1) * config.batch_size)
            x, y = images.batch(order[part], offsets[:, part], None if flips is None else flips[part])
            total += self._step(x, y, self.done_epochs * self.steps_per_epoch + step) * len(y)
        return total.item() / n

    def _step(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(x, y, step)
        self.optimizer.step()
        return loss

    def _backward(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """Leave the step's gradients in the weights; its loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=self.config.label_smoothing)
        loss.backward()
        return loss.detach()

    def _validate(self) -> tuple[float, float]:
        """Mean cross-entropy and top-1 accuracy (%) on the validation split."""
        return evaluate(self.model, self.val_images, self.bf16)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if never stopped (loads with `weights_only=True`)."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "done_epochs": self.done_epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"].cpu())
        self.done_epochs = state["done_epochs"]


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, bf16: bool = False) -> tuple[float, float]:
    """Mean cross-entropy and top-1 accuracy (%) over all images; NaN for none. The model is left in eval mode."""
    model.eval()
    if not len(images):
        return math.nan, math.nan
    loss = torch.zeros((), device=images.labels.device)
    right = torch.zeros((), device=images.labels.device)
    for x, y in images.batches(EVAL_BATCH):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            logits = model(x).float()
        loss += F.cross_entropy(logits, y, reduction="sum")
        right += (logits.argmax(1) == y).sum()
    return loss.item() / len(images), 100 * right.item() / len(images)


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
