"""A supernet: one set of weights for all networks of a space, which are its members.

Each member uses a slice of the weights. The depths, widths, cardinalities, scales and the reduction of
squeeze-and-excitation (SE) determine the slice.

Order of the splits. In the paper (equation 1), the first split passes through and the others are convolved. A block of
k splits then computes exactly the first k splits of a larger block (section 3.1): the blocks nest. This module uses
three orders:

    paper      pass-through, 1st convolved, 2nd convolved, ...    blocks with 2 or more splits nest
    shared     1st convolved, pass-through, 2nd convolved, ...    blocks with 1 split, which is convolved, nest as well
    released   1st convolved, 2nd convolved, ..., pass-through    `Res2Net` and its checkpoints use this order

Shared tensors are stored in the shared order, so each scale takes the leading splits. The function `released` then
puts these splits into the released order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from res2net.arch import Arch, Stage, se_channels
from res2net.backbone import classifier
from res2net.errors import UserError
from res2net.heads.kinds import build_head
from res2net.layer_cost import has_projection
from res2net.levels import stage_maps
from res2net.model import Res2Net, SqueezeExcite, init, shortcut, stem_conv

STATISTICS = ("running_mean", "running_var")
BUFFERS = (*STATISTICS, "num_batches_tracked")


class SupernetSpace(Protocol):
    """The part of `space.Space` that a supernet needs."""

    def envelope(self) -> Arch:
        """Return the network of cardinality 1 whose weights contain the weights of every member."""
        ...

    def cardinalities(self) -> tuple[tuple[int, ...], ...]:
        """Return the cardinalities that each stage may have."""
        ...


class SharedNorm(nn.Module):
    """The batch norms of all splits of a block: weight, bias, mean and variance, each `[scale, width]`."""

    def __init__(self, scale: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(scale, width))
        self.bias = nn.Parameter(torch.zeros(scale, width))
        self.register_buffer("running_mean", torch.zeros(scale, width))
        self.register_buffer("running_var", torch.ones(scale, width))


class ElasticBlock(nn.Module):
    """The shared weights of one block. Its generators yield slices for a member, with the keys of an ordinary block.

    Two members share the splits and channels that both have: rows of `conv1` and columns of `conv3`. They also share
    the hidden channels of squeeze-and-excitation that both have. All members share `bn3` and the shortcut, because all
    have the same output channels. Grouped 3x3 kernels are block diagonals of one dense kernel. A block of scale 1 (the
    plain bottleneck) uses the first convolved split.

    own: whether each cardinality has its own norms before and after the 3x3 convolutions, and its own correction.
        The correction is a tensor that is added to the 3x3 kernels.
    """

    def __init__(
        self, arch: Arch, stage: Stage, cardinalities: tuple[int, ...], own: bool, c_in: int, first: bool
    ) -> None:
        super().__init__()
        scale, width = stage.scale, stage.width
        self.convolves_all = first and arch.first_block == "conv"
        self.conv1 = nn.Parameter(torch.empty(scale, width, c_in))
        self.conv3 = nn.Parameter(torch.empty(stage.channels, scale, width))
        # `init` handles only convolution modules, so draw these weights here. The standard deviations are those of
        # `init` for the largest member (Kaiming, fan-out).
        nn.init.normal_(self.conv1, std=(2 / (scale * width)) ** 0.5)
        nn.init.normal_(self.conv3, std=(2 / stage.channels) ** 0.5)
        # The kernel has three dimensions, because `Module.to(memory_format=torch.channels_last)` rejects five.
        self.kernel = nn.Parameter(torch.empty(scale, width, width * 9))
        nn.init.normal_(self.kernel, std=(2 / (9 * width)) ** 0.5)
        names = [str(c) for c in cardinalities] if own else ["all"]
        # Corrections start at 0, so all cardinalities start from the same kernel.
        self.own = nn.ParameterDict({c: torch.zeros_like(self.kernel) for c in names if own})
        self.norms1 = nn.ModuleDict({c: SharedNorm(scale, width) for c in names})
        self.norms = nn.ModuleDict({c: SharedNorm(scale, width) for c in names})
        self.bn3 = nn.BatchNorm2d(stage.channels)
        self.se = SqueezeExcite(stage.channels, arch.se) if arch.se else None
        self.downsample = shortcut(arch, stage, c_in) if first and has_projection(stage, c_in) else None

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the key and the tensor of each weight that all members share without slicing."""
        for name in ("bn3", "downsample"):
            if (module := getattr(self, name)) is not None:
                yield from module.state_dict(prefix=f"{name}.", keep_vars=True).items()

    def gates(self, reduction: int) -> Iterator[tuple[str, Tensor]]:
        """Yield squeeze-and-excitation's weights, for the leading hidden channels. For reduction 0, yield nothing."""
        if self.se is None or not reduction:
            return
        hidden = se_channels(self.bn3.num_features, reduction)
        axis = {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}  # axis of hidden channels; `fc2.bias` has none
        for name, value in self.se.named_parameters():
            yield f"se.{name}", leading(value, axis[name], hidden) if name in axis else value

    def sliced(self, stage: Stage, statistics: bool) -> Iterator[tuple[str, Tensor]]:
        """Yield the slices of the 1x1 and 3x3 convolutions and their norms.

        statistics: whether to yield the means and variances of the norms too.
        """
        s, w = stage.scale, stage.width
        own = str(stage.cardinality) if self.own else "all"
        yield "conv1.weight", leading(released(self.conv1, 0, s), 1, w).reshape(s * w, -1, 1, 1)
        yield "conv3.weight", leading(released(self.conv3, 1, s), 2, w).reshape(-1, s * w, 1, 1)
        for name, value in norm_tensors(self.norms1[own], statistics):
            yield f"bn1.{name}", leading(released(value, 0, s), 1, w).reshape(s * w)
        dense = self.kernel + self.own[own] if self.own else self.kernel
        dense = self._convolved(dense, s).unflatten(2, (-1, 3, 3))
        kernels = block_diagonals(leading(leading(dense, 1, w), 2, w), stage.cardinality).unbind()
        # Divide each tensor by one `unbind`, whose backward pass stacks the gradients of all splits once. The
        # backward pass of indexing would add the gradients one by one.
        norms = {
            name: leading(self._convolved(value, s), 1, w).unbind()
            for name, value in norm_tensors(self.norms[own], statistics)
        }
        for i, kernel in enumerate(kernels):
            conv, norm = ("conv2", "bn2") if s == 1 else (f"convs.{i}", f"bns.{i}")
            yield f"{conv}.weight", kernel
            for name, values in norms.items():
                yield f"{norm}.{name}", values[i]

    def _convolved(self, x: Tensor, scale: int) -> Tensor:
        """Return the entries of the convolved splits, in the released order.

        `x` has one entry for each split of the largest member, in the shared order.
        """
        x = released(x, 0, scale)
        return x if scale == 1 or self.convolves_all else x[:-1]  # the last split passes through


def norm_tensors(norm: nn.Module, statistics: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the weight and the bias of a `SharedNorm`. With `statistics`, also yield the mean and the variance."""
    for name in ("weight", "bias", *(STATISTICS if statistics else ())):
        yield name, getattr(norm, name)


def released(x: Tensor, dim: int, scale: int) -> Tensor:
    """Return the first `scale` splits of `x`, put into the released order. `x` itself is in the shared order.

    The docstring of this module explains both orders.
    """
    x = leading(x, dim, scale)
    if scale <= 2:  # both orders are equal for up to two splits: the convolved split comes first
        return x
    # The pass-through, second in the shared order, becomes the last.
    return torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 2, scale - 2), x.narrow(dim, 1, 1)], dim)


def leading(x: Tensor, dim: int, count: int) -> Tensor:
    """Return the first `count` entries along a dimension.

    If `x` has no more entries, return `x` itself: the backward pass of `narrow` would copy the gradient.
    """
    return x if x.shape[dim] == count else x.narrow(dim, 0, count)


def block_diagonals(kernels: Tensor, groups: int) -> Tensor:
    """Return the block diagonals of dense kernels `[n, w, w, 3, 3]` as grouped kernels `[n, w, w / groups, 3, 3]`."""
    if groups == 1:
        return kernels
    n, w, part = len(kernels), kernels.shape[1], kernels.shape[1] // groups
    blocks = kernels.reshape(n, groups, part, groups, part, 3, 3).diagonal(0, 1, 3)
    return blocks.permute(0, 5, 1, 2, 3, 4).reshape(n, w, part, 3, 3)  # `diagonal` put the groups last


class ElasticRes2Net(nn.Module):
    """All networks of a space in one set of weights: `model(x, arch)` returns the logits of a member.

    own_cardinality: whether each cardinality has its own norms and its own correction of the 3x3 kernels. The reason:
        the best kernel of a grouped convolution is not the block diagonal of the best dense kernel. The price: memory
        grows with the number of cardinalities.

    In training mode, the batch norms use the batch's statistics and store none: stored statistics would mix members.
    In eval mode, `forward` and `extract` use the shared statistics, which suit no member. Recompute an extracted
    member's statistics (`trainers.supernet.calibrate`) before use.
    """

    # The class of norms in training mode. Distributed training sets a synchronised class.
    norm: type[nn.BatchNorm2d] = nn.BatchNorm2d

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
        self.fc = classifier(arch.num_features, arch.classifier_size)
        self.head: nn.Module | None = None
        if arch.head is not None:  # members share the head, because their maps have equal channels
            channels, strides = zip(*stage_maps(arch), strict=True)
            self.head = build_head(arch.head, arch.num_classes, channels, strides)
        self.apply(init)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        """Return a member's logits `[N, num_classes]` for images `[N, C, H, W]`, or the outputs of its head.

        Raise `UserError` if the network is not a member.
        """
        weights = self.weights(arch, statistics=not self.training)
        return functional_call(_plain(arch, self.training, self.norm), weights, (x,))

    def weights(self, arch: Arch, statistics: bool = True) -> dict[str, Tensor]:
        """Return a member's state dict. Its tensors are slices, so gradients flow back to the shared weights.

        statistics: whether to include the means and variances of batch norms.
        """
        self.check(arch)
        out: dict[str, Tensor] = {}
        for name in ("conv1", "bn1", "fc", "head"):
            if (module := getattr(self, name)) is not None:
                out |= module.state_dict(prefix=f"{name}.", keep_vars=True)
        for i, stage in enumerate(arch.stages, 1):
            for j, block in enumerate(self._blocks(i)[: stage.depth]):
                for parts in (block.whole(), block.sliced(stage, statistics), block.gates(arch.se)):
                    out |= {f"layer{i}.{j}.{name}": value for name, value in parts}
        # `state_dict` also includes the statistics. Drop them if they are not wanted: training modules have none.
        return out if statistics else {k: v for k, v in out.items() if not k.endswith(BUFFERS)}

    @torch.no_grad()
    def extract(self, arch: Arch) -> Res2Net:
        """Return a member as an ordinary network with copied weights, in the supernet's mode (train or eval)."""
        weights = {name: value.detach().clone().contiguous() for name, value in self.weights(arch).items()}
        model = _on_meta(arch)
        for name in model.state_dict().keys() - weights.keys():  # `num_batches_tracked`, which `SharedNorm` lacks
            weights[name] = torch.zeros((), dtype=torch.int64, device=self.bn1.weight.device)
        model.load_state_dict(weights, assign=True)  # meta tensors hold no memory to copy into
        return model.requires_grad_(True).train(self.training)

    def check(self, arch: Arch) -> None:
        """Raise `UserError` if the network is not a slice of these weights. The error names the stage and the value."""
        ours = self.arch
        alike = replace(arch, stages=ours.stages, se=ours.se)
        if all(s.scale == 1 for s in arch.stages):
            # `first_block` has no effect at scale 1, so canonical networks have the default.
            alike = replace(alike, first_block=ours.first_block)
        if alike != ours or len(arch.stages) != len(ours.stages):
            raise UserError(f"supernet: {arch} differs in more than stage sizes; accepted: members of its space")
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

    def _blocks(self, stage: int) -> list[ElasticBlock]:
        """Return the blocks of a stage. Stages count from 1."""
        return cast(list[ElasticBlock], list(self.get_submodule(f"layer{stage}").children()))


def _check(stage: int, name: str, value: int, right: bool, accepted: object) -> None:
    if not right:
        raise UserError(f"supernet: stage {stage}: {name} is {value}; accepted: {accepted}")


def _on_meta(arch: Arch) -> Res2Net:
    """Return a member's modules on the meta device, which allocates no memory and draws no random numbers."""
    with torch.device("meta"):
        return Res2Net(arch)


# Cache these modules, because `forward` runs the same members again and again. The modules are small, because modules
# on the meta device hold no weights.
@lru_cache(maxsize=512)
def _plain(arch: Arch, training: bool, norm: type[nn.BatchNorm2d]) -> Res2Net:
    """Return a member's modules on the meta device. The caller supplies the weights (`functional_call`).

    In training, the batch norms use only the batch's statistics.
    """
    model = _on_meta(arch)
    for module in model.modules():
        if training and isinstance(module, nn.BatchNorm2d):
            module.__class__ = norm  # both classes have the same attributes; a new module would allocate weights
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model.train(training)
