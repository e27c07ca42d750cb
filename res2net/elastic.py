"""Weights shared by all networks of a space: every depth, width, cardinality and scale is a slice of them.

In the order of equation 1 the first split passes through and the others are convolved: a block of k splits then
computes exactly the first k splits of a block with more (section 3.1). Here the first two stand the other way round, so
that a block of one split, which is convolved, is the first split of all others too: scale is cut from the front.
The released order, in which the split that passes through is the last, is made as a member's weights are handed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from res2net.arch import Arch, Stage, se_channels
from res2net.backbone import classifier
from res2net.errors import UserError
from res2net.layer_cost import has_projection
from res2net.model import Res2Net, SqueezeExcite, init, shortcut, stem_conv

STATISTICS = ("running_mean", "running_var")
BUFFERS = (*STATISTICS, "num_batches_tracked")


class SupernetSpace(Protocol):
    """What a space tells its supernet (`space.Space` does)."""

    def envelope(self) -> Arch:
        """The network, of cardinality 1, that no member exceeds in depth, width or scale of any stage."""
        ...

    def cardinalities(self) -> tuple[tuple[int, ...], ...]:
        """Each stage's cardinalities."""
        ...


class SharedNorm(nn.Module):
    """Batch norms of all splits: `[scale, width]` each of weight, bias, mean and variance."""

    def __init__(self, scale: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(scale, width))
        self.bias = nn.Parameter(torch.zeros(scale, width))
        self.register_buffer("running_mean", torch.zeros(scale, width))
        self.register_buffer("running_var", torch.ones(scale, width))

    def tensors(self, statistics: bool) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("weight", "bias", *(STATISTICS if statistics else ()))}


class ElasticBlock(nn.Module):
    """A block's shared weights, and the slices of them that are an ordinary block's.

    What two members share of a block: rows of `conv1` and columns of `conv3` of the splits and channels that both
    have, `bn3`, the shortcut and the squeeze-and-excitation, whose channels are the stage's and never cut. 3x3 kernels
    are block diagonals of one dense kernel; with `own` norms around them and a correction of the kernel, zero at first,
    are those of members of one cardinality alone. Scale 1, the plain bottleneck, is the first convolved split.
    """

    def __init__(
        self, arch: Arch, stage: Stage, cardinalities: tuple[int, ...], own: bool, c_in: int, first: bool
    ) -> None:
        super().__init__()
        scale, width = stage.scale, stage.width
        self.convolves_all = first and arch.first_block == "conv"
        self.conv1 = nn.Parameter(torch.empty(scale, width, c_in))
        self.conv3 = nn.Parameter(torch.empty(stage.channels, scale, width))
        nn.init.normal_(self.conv1, std=(2 / (scale * width)) ** 0.5)
        nn.init.normal_(self.conv3, std=(2 / stage.channels) ** 0.5)
        self.kernel = nn.Parameter(torch.empty(scale, width, width * 9))  # of 5 dimensions, PyTorch would refuse it
        nn.init.normal_(self.kernel, std=(2 / (9 * width)) ** 0.5)
        names = [str(c) for c in cardinalities] if own else ["all"]
        self.own = nn.ParameterDict({c: torch.zeros_like(self.kernel) for c in names if own})
        self.norms1 = nn.ModuleDict({c: SharedNorm(scale, width) for c in names})
        self.norms = nn.ModuleDict({c: SharedNorm(scale, width) for c in names})
        self.bn3 = nn.BatchNorm2d(stage.channels)
        self.se = SqueezeExcite(stage.channels, arch.se) if arch.se else None
        self.downsample = shortcut(arch, stage, c_in) if first and has_projection(stage, c_in) else None

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """What every member has as it is, by the names of an ordinary block."""
        for name in ("bn3", "downsample"):
            if (module := getattr(self, name)) is not None:
                yield from module.state_dict(prefix=f"{name}.", keep_vars=True).items()

    def gates(self, reduction: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the leading hidden channels of squeeze-and-excitation, by their names in an ordinary block."""
        if self.se is None or not reduction:
            return
        hidden = se_channels(self.bn3.num_features, reduction)
        axis = {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}  # of the hidden channels; fc2's bias has none
        for name, value in self.se.named_parameters():
            yield f"se.{name}", leading(value, axis[name], hidden) if name in axis else value

    def sliced(self, stage: Stage, statistics: bool) -> Iterator[tuple[str, Tensor]]:
        """What a member has a slice of, by the names of an ordinary block of that stage."""
        s, w = stage.scale, stage.width
        own = str(stage.cardinality) if self.own else "all"
        yield "conv1.weight", leading(released(self.conv1, 0, s), 1, w).reshape(s * w, -1, 1, 1)
        yield "conv3.weight", leading(released(self.conv3, 1, s), 2, w).reshape(-1, s * w, 1, 1)
        for name, value in self.norms1[own].tensors(statistics).items():
            yield f"bn1.{name}", leading(released(value, 0, s), 1, w).reshape(s * w)
        dense = self.kernel + self.own[own] if self.own else self.kernel
        dense = self._convolved(dense, s).unflatten(2, (-1, 3, 3))
        kernels = block_diagonals(leading(leading(dense, 1, w), 2, w), stage.cardinality).unbind()
        norms = {
            n: leading(self._convolved(v, s), 1, w).unbind() for n, v in self.norms[own].tensors(statistics).items()
        }
        for i, kernel in enumerate(kernels):
            conv, norm = ("conv2", "bn2") if s == 1 else (f"convs.{i}", f"bns.{i}")
            yield f"{conv}.weight", kernel
            for name, values in norms.items():
                yield f"{norm}.{name}", values[i]

    def _convolved(self, x: Tensor, scale: int) -> Tensor:
        """Of a tensor with an entry a split, those of the splits that a block of that scale convolves."""
        x = released(x, 0, scale)
        return x if scale == 1 or self.convolves_all else x[:-1]


def released(x: Tensor, dim: int, scale: int) -> Tensor:
    """The first splits along a dimension in the released order: what passes through, here the second, is the last."""
    x = leading(x, dim, scale)
    if scale <= 2:
        return x
    return torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 2, scale - 2), x.narrow(dim, 1, 1)], dim)


def leading(x: Tensor, dim: int, count: int) -> Tensor:
    """The first entries along a dimension; the tensor itself for all, which saves its gradient a copy."""
    return x if x.shape[dim] == count else x.narrow(dim, 0, count)


def block_diagonals(kernels: Tensor, groups: int) -> Tensor:
    """Of dense kernels `[n, w, w, 3, 3]` those of a convolution in groups: `[n, w, w / groups, 3, 3]`."""
    if groups == 1:
        return kernels
    n, w, part = len(kernels), kernels.shape[1], kernels.shape[1] // groups
    blocks = kernels.reshape(n, groups, part, groups, part, 3, 3).diagonal(0, 1, 3)
    return blocks.permute(0, 5, 1, 2, 3, 4).reshape(n, w, part, 3, 3)


class ElasticRes2Net(nn.Module):
    """All networks of a space in one set of weights: `model(x, arch)` gives the logits of a member.

    own_cardinality: whether each cardinality has norms and a correction of the 3x3 kernels of its own: a convolution in
    groups that is cut out of a dense one is not what it would have become by itself. Memory grows with their number.

    While training, a member's batch norms take the batch's statistics and remember none, as they are of no other
    member. In eval mode they take the shared ones, as `extract` does: give what was extracted statistics of its own
    (`trainers.supernet.calibrate`) before it is used.
    """

    norm: type[nn.BatchNorm2d] = nn.BatchNorm2d  # in training; one that sees the batches of other processes, say

    def __init__(self, space: SupernetSpace, own_cardinality: bool = True) -> None:
        super().__init__()
        self.arch = arch = space.envelope()
        self.cardinalities = space.cardinalities()
        self.conv1 = stem_conv(arch)
        self.bn1 = nn.BatchNorm2d(arch.stem_channels)
        c_in = arch.stem_channels
        for i, (stage, choices) in enumerate(zip(arch.stages, self.cardinalities, strict=True), 1):
            blocks = [ElasticBlock(arch, stage, choices, own_cardinality, c_in, True)]
            for _ in range(stage.depth - 1):
                blocks.append(ElasticBlock(arch, stage, choices, own_cardinality, stage.channels, False))
            self.add_module(f"layer{i}", nn.ModuleList(blocks))
            c_in = stage.channels
        self.fc = classifier(arch.num_features, arch.num_classes)
        self.apply(init)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """The logits `[N, num_classes]` of a member for images `[N, C, H, W]`; `UserError` for what is no member."""
        return functional_call(
            _plain(arch, self.training, self.norm), self.weights(arch, statistics=not self.training), (x,)
        )

    def weights(self, arch: Arch, statistics: bool = True) -> dict[str, Tensor]:
        """A member's state dict, cut from the shared weights: gradients flow back. Statistics: those of batch norms."""
        self.check(arch)
        out: dict[str, Tensor] = {}
        for name in ("conv1", "bn1", "fc"):
            out |= getattr(self, name).state_dict(prefix=f"{name}.", keep_vars=True)
        for i, stage in enumerate(arch.stages, 1):
            for j, block in enumerate(self.get_submodule(f"layer{i}")[: stage.depth]):
                out |= {f"layer{i}.{j}.{name}": value for name, value in block.whole()}
                out |= {f"layer{i}.{j}.{name}": value for name, value in block.sliced(stage, statistics)}
                out |= {f"layer{i}.{j}.{name}": value for name, value in block.gates(arch.se)}
        return out if statistics else {k: v for k, v in out.items() if not k.endswith(BUFFERS)}

    @torch.no_grad()
    def extract(self, arch: Arch) -> Res2Net:
        """A member as an ordinary network with its own copy of the weights, in this one's mode (train or eval)."""
        weights = {name: value.detach().clone().contiguous() for name, value in self.weights(arch).items()}
        model = _on_meta(arch)
        for name in model.state_dict().keys() - weights.keys():  # the norms' counts of batches
            weights[name] = torch.zeros((), dtype=torch.int64, device=self.bn1.weight.device)
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_(True).train(self.training)

    def check(self, arch: Arch) -> None:
        """`UserError` for a network that is no slice of these weights, naming the stage and its value."""
        ours = self.arch
        alike = replace(arch, stages=ours.stages, se=ours.se)
        if all(s.scale == 1 for s in arch.stages):
            alike = replace(alike, first_block=ours.first_block)  # which does nothing there
        if alike != ours or len(arch.stages) != len(ours.stages):
            raise UserError(f"supernet: {arch} differs in more than its stages' sizes; accepted: members of its space")
        if arch.se and not 0 < ours.se <= arch.se:
            accepted = f"0, or at least {ours.se}" if ours.se else "0"
            raise UserError(f"supernet: se is {arch.se}; accepted: {accepted}")
        for i, (stage, most) in enumerate(zip(arch.stages, ours.stages, strict=True), 1):
            for name in ("planes", "stride"):
                _check(i, name, getattr(stage, name), getattr(stage, name) == getattr(most, name), getattr(most, name))
            for name in ("depth", "width", "scale"):
                limit = getattr(most, name)
                _check(i, name, getattr(stage, name), getattr(stage, name) <= limit, f"at most {limit}")
            accepted = self.cardinalities[i - 1]
            _check(i, "cardinality", stage.cardinality, stage.cardinality in accepted, ", ".join(map(str, accepted)))


def _check(stage: int, name: str, value: int, right: bool, accepted: object) -> None:
    if not right:
        raise UserError(f"supernet: stage {stage}: {name} is {value}; accepted: {accepted}")


def _on_meta(arch: Arch) -> Res2Net:
    """A member's modules without weights: nothing is allocated, or drawn at random, for what is replaced."""
    with torch.device("meta"):
        return Res2Net(arch)


@lru_cache(maxsize=512)
def _plain(arch: Arch, training: bool, norm: type[nn.BatchNorm2d]) -> Res2Net:
    """The member's modules without weights; in training its batch norms know no statistics but the batch's."""
    model = _on_meta(arch)
    for module in model.modules():
        if training and isinstance(module, nn.BatchNorm2d):
            module.__class__ = norm
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model.train(training)
