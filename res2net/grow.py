"""Growth: put a trained network into a larger one that contains it. The larger network computes the same function.

The new weights do not change the old channels, so the function is the same in train and eval mode:
- The last 1x1 convolution has zero columns for new splits and new channels.
- The 3x3 kernels of old channels are zero where they read new channels or, after groups merge, another old group.
- Squeeze-and-excitation's second layer has zero columns for new hidden channels.
- New blocks follow the old blocks of their stage. Their last batch norm is zero, so they return their input.

All other new weights are random. So the zeros get gradients in the first training step, and all new weights soon after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from res2net.arch import Arch, Stage
from res2net.containment import check_contains, hidden
from res2net.model import Res2Net

BLOCK_KEY = re.compile(r"layer(\d+)\.(\d+)\.(.+)\.\w+")  # the stage from 1, the block from 0, the layer
MIDDLE_LAYER = re.compile(r"(conv|bn)(?:2|s\.(\d+))")  # `conv2` at scale 1, `convs.0` and so on at other scales
STATISTICS = ("running_mean", "running_var")


class Place(NamedTuple):
    """The place of a tensor of the smaller network inside a tensor of the larger network.

    key: the key of the smaller network's tensor in its state dict.
    rows: for each row of the smaller tensor, the row of the larger tensor. None: both have the same rows.
    columns: the same for columns, as `[columns]`, or as `[rows, columns]` if the columns depend on the row. None: both
        have the same columns.
    """

    key: str
    rows: Tensor | None = None
    columns: Tensor | None = None

    def put(self, value: Tensor, base: Tensor) -> Tensor:
        """Return a copy of `base` with the smaller tensor `value` in its place. The filled rows are zero elsewhere."""
        if value.shape == base.shape:  # nothing grows, so every index keeps its place
            return value.to(base, copy=True)
        out = base.clone()
        rows = torch.arange(len(out)) if self.rows is None else self.rows
        out[rows] = 0
        if self.columns is None:
            out[rows] = value.to(base)
        else:
            out[rows[:, None], self.columns] = value.to(base)
        return out


def grow(model: Res2Net, arch: Arch, seed: int) -> Res2Net:
    """Return a new network of a larger architecture with the model's logits, in the model's mode, device and dtype.

    seed: determines the new weights. The global random state stays as it is.

    Raise `UserError` if the architecture does not contain the model's (`res2net.containment`).
    """
    check_contains(arch, model.arch)
    like = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would also change the GPUs' random states
        grown = Res2Net(arch, model.levels[-1].reduction)
    grown.to(like.device, like.dtype).train(model.training)
    old, new = model.state_dict(), grown.state_dict()
    _match_scale(model.arch, arch, old, new)
    grown.load_state_dict(embed(model.arch, arch, old, new))
    return grown


@torch.no_grad()
def embed(small: Arch, large: Arch, tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the smaller network's tensors, put into the larger network's: copies with the keys of `base`.

    tensors: weights, averaged weights, momentum buffers or gradients, with keys of the smaller network's state dict.
    base: values for all new entries, with keys of the larger network's state dict. For momentum buffers, zeros.

    With state dicts, the result computes the smaller network's function, for any `base` with positive variances.
    Raise `UserError` if the larger network does not contain the smaller one.
    """
    check_contains(large, small)
    out = {}
    for key, value in base.items():
        place = find(key, small, large)
        if place is not None:
            out[key] = place.put(tensors[place.key], value)
        else:
            ends_block = key.endswith((".bn3.weight", ".bn3.bias"))  # zeros: a new block returns its input
            out[key] = torch.zeros_like(value) if ends_block else value.clone()
    return out


def find(key: str, small: Arch, large: Arch) -> Place | None:
    """Return the place inside the larger network's tensor `key`. None: no tensor of the smaller network goes there."""
    match = BLOCK_KEY.fullmatch(key)
    if match is None:  # the stem or the classifier
        return Place(key)
    stage, block, layer = int(match[1]) - 1, int(match[2]), match[3]
    a, b = small.stages[stage], large.stages[stage]
    if block >= a.depth:
        return None
    if middle := MIDDLE_LAYER.fullmatch(layer):
        return _find_middle(key, middle, a, b)
    if layer in ("conv1", "bn1"):
        return Place(key, rows=_inner(a, b))
    if layer == "conv3":
        return Place(key, columns=_inner(a, b))
    gates = torch.arange(hidden(small)[stage])
    if layer == "se.fc1":
        return Place(key, rows=gates)
    if layer == "se.fc2":
        return Place(key, columns=gates)
    return Place(key)  # the last norm or the shortcut


def _find_middle(key: str, layer: re.Match[str], a: Stage, b: Stage) -> Place | None:
    """Return the place for a 3x3 convolution or its norm. `a` and `b` are the smaller and the larger stage."""
    kind, split = layer[1], int(layer[2] or 0)
    places = _splits(a.scale, b.scale)
    if split not in places:
        return None
    name = f"{kind}2" if a.scale == 1 else f"{kind}s.{places.index(split)}"
    own_key = key.replace(f".{layer[0]}.", f".{name}.")
    columns = _group_columns(a, b) if kind == "conv" else None
    return Place(own_key, _channels(a, b), columns)


def _splits(a: int, b: int) -> list[int]:
    """Return the place of each of `a` splits among `b` splits.

    The last split passes through without a convolution, so it stays last. A single split is convolved, so it is first.
    """
    return [0] if a == 1 else [*range(a - 1), b - 1]


def _channels(a: Stage, b: Stage) -> Tensor:
    """Return the place of each channel of a split: `[width]`.

    Each group of the larger stage takes equally many groups of the smaller one, and new channels after them.
    """
    group = torch.arange(a.cardinality)
    merged = a.cardinality // b.cardinality
    part = a.width // a.cardinality
    first = group // merged * (b.width // b.cardinality) + group % merged * part
    return (first[:, None] + torch.arange(part)).flatten()


def _group_columns(a: Stage, b: Stage) -> Tensor:
    """Return the place of each column of a grouped kernel, from 0 in each group: `[width, width / cardinality]`."""
    part = a.width // a.cardinality
    columns = _channels(a, b) % (b.width // b.cardinality)
    return columns.view(-1, part).repeat_interleave(part, 0)  # all rows of a group read the same channels


def _inner(a: Stage, b: Stage) -> Tensor:
    """Return the place of each channel of all splits: `[width * scale]`."""
    first = torch.tensor(_splits(a.scale, b.scale)) * b.width
    return (first[:, None] + _channels(a, b)).flatten()


def _match_scale(small: Arch, large: Arch, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Change the new entries of each tensor that grows, in place, to resemble the old entries.

    The rows of a kernel get the mean norm of the old rows. Batch norm would hide a different norm, but the norm divides
    the effective learning rate. Means and variances of norms start at the old channels' mean.
    """
    for key, value in new.items():
        place = find(key, small, large)
        if place is None or value.shape == old[place.key].shape:
            continue
        if key.endswith(STATISTICS):
            value.fill_(old[place.key].mean())
        elif value.dim() == 4:
            value.mul_(_row_norm(old[place.key]) / _row_norm(value))


def _row_norm(kernel: Tensor) -> Tensor:
    """Return the root mean square of the norms of a kernel's rows."""
    return kernel.square().sum().div(len(kernel)).sqrt()
