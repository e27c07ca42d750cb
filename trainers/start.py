"""Build the initial network of a training, with the weights of a model folder or with random initial weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from res2net import create, load, named
from res2net.arch import BaseArch
from res2net.errors import UserError
from res2net.folder import WEIGHTS_FILE, load_arch
from res2net.model import zero_init_last
from res2net.weights import HEADS
from trainers.datasets.data import Data
from trainers.tasks.task import Task


def read_arch(source: str | Path | BaseArch) -> tuple[BaseArch, Path | None]:
    """Return the architecture of `source`, and the model folder that has weights for it (None without weights).

    source: a network's name, the path of an `arch.json` or a model folder, or an architecture object.
    """
    if isinstance(source, BaseArch):
        return source, None
    path = Path(source)
    if path.is_dir() or path.suffix == ".json" or path.name != str(source):
        return load_arch(path), path if (path / WEIGHTS_FILE).exists() else None
    return named(str(source)), None


def initialised(arch: BaseArch, zero_last: bool = False) -> nn.Module:
    """Return a network with initial weights drawn from torch's global generator. zero_last: see `zero_init_last`."""
    model = create(arch)
    if zero_last:
        zero_init_last(model)
    return model


def build_model(
    source: str | Path | BaseArch, data: Data, task: Task, from_scratch: bool, seed: int, zero_last: bool = False
) -> tuple[nn.Module, BaseArch, str]:
    """Return a network, its architecture, and a line of text about the origin of the weights.

    source: see `read_arch`.
    data: the data set, which determines the number of colour channels.
    task: the task, which determines the head and its size. A folder's network keeps its own head for the task.
    from_scratch: initialise the weights even if the model folder has weights.
    seed: seed of the initial weights.
    zero_last: whether blocks start as their shortcuts (see `zero_init_last`). Has no effect on loaded weights.

    Raise `UserError` if the folder's weights are for another number of colour channels.
    """
    torch.manual_seed(seed)
    arch, folder = read_arch(source)
    fitted = fitted_arch(arch, data, task)
    if folder is None or from_scratch:
        return initialised(fitted, zero_last), fitted, "weights are initialised"
    model = load(folder)
    if fitted == arch:
        return model, fitted, f"weights are loaded from {folder}"
    if fitted.in_channels != arch.in_channels:
        raise UserError(
            f"`arch`: {str(source)!r} has weights for {arch.in_channels} colour channels, {data.name} has "
            f"{data.in_channels}; accepted: the same number, or `from_scratch`"
        )
    new = create(fitted)
    body = {k: v for k, v in model.state_dict().items() if not k.startswith(HEADS)}
    new.load_state_dict(body, strict=False)  # the head keeps its initial values
    old, own = _head_text(arch), _head_text(fitted)
    change = f"the head: {old} -> {own}"
    if arch.head is None and fitted.head is None:
        change = f"the classifier: {arch.num_classes} -> {fitted.num_classes} classes"
    return new, fitted, f"weights are loaded from {folder}, except {change}"


def fitted_arch(arch: BaseArch, data: Data, task: Task) -> BaseArch:
    """Return a network for the data's colour channels, and for the task's head and number of outputs."""
    return adapted(arch, task.head_size(data), data.in_channels, task, data.image_size)


def adapted(arch: BaseArch, num_classes: int, in_channels: int, task: Task, image_size: int) -> BaseArch:
    """Return a network with other inputs and outputs, and with the task's head. A head of the same kind stays."""
    # Kinds without the field `head` cannot be given None either.
    changes: dict[str, Any] = {} if arch.head_kind == task.head_kind else {"head": task.head(arch, image_size)}
    return replace(arch, num_classes=num_classes, in_channels=in_channels, **changes)


def _head_text(arch: BaseArch) -> str:
    return f"{arch.head_kind or 'classifier'} of {arch.num_classes} classes"
