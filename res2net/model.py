"""The network itself (section 3), with the state-dict keys of released checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net.arch import Arch, Stage, se_channels
from res2net.backbone import Backbone, DensePool, FeatureInfo, Network, as_backbone, levels
from res2net.cost import has_projection
from res2net.named import named

SAFE_CHANNELS = 8  # input channels from which oneDNN's strided 1x1 convolutions are safe
DENSE_CHANNELS = 32  # up to which a CPU computes groups faster as one dense convolution in bf16


@lru_cache
def block_diagonal(c_out: int, c_group: int, groups: int) -> Tensor:
    """Ones where a dense kernel has the weights of one in groups: `[c_out, c_group * groups, 1, 1]`, on the CPU."""
    with torch.inference_mode(False):  # it serves training as well, whichever asks first
        return torch.block_diag(*[torch.ones(c_out // groups, c_group, device="cpu")] * groups)[:, :, None, None]


class GroupedConv2d(nn.Conv2d):
    """A convolution in groups, which under a CPU's autocast is the block diagonal of a dense one if it is narrow.

    bf16 kernels take 16 channels or more at a time, of which a group of few leaves most idle.
    """

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.out_channels <= DENSE_CHANNELS
        if not narrow or not torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
            return super().forward(x)
        dense = self.weight.repeat(1, self.groups, 1, 1)
        dense = dense * block_diagonal(self.out_channels, self.weight.shape[1], self.groups)
        return F.conv2d(x, dense, self.bias, self.stride, self.padding, self.dilation)


def conv3x3(c_in: int, c_out: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    kind = nn.Conv2d if groups == 1 else GroupedConv2d
    return kind(c_in, c_out, 3, stride, dilation, dilation, groups, bias=False)


class StridedPointwiseConv2d(nn.Conv2d):
    """A strided 1x1 convolution that picks every `stride`-th pixel first: the same function, weights and names.

    On CPUs without AVX-512, oneDNN writes past its workspace in the backward pass of a strided 1x1 convolution with
    fewer than 8 input channels, channels-last, and so corrupts the heap (uxlfoundation/oneDNN#6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


def conv1x1(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    kind = StridedPointwiseConv2d if stride > 1 and c_in < SAFE_CHANNELS else nn.Conv2d
    return kind(c_in, c_out, 1, stride, bias=False)


class SqueezeExcite(nn.Module):
    """Channel gates from the mean of each channel (SENet)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = se_channels(channels, reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class Block(nn.Module):
    """What every block has: 1x1 in, something 3x3 in between, 1x1 out, a shortcut.

    `dilation` is that of its 3x3 convolutions; `dense` that it keeps the resolution where its stage would stride.
    """

    relu = True  # whether a ReLU follows the sum

    def __init__(
        self, arch: Arch, stage: Stage, c_in: int, first: bool, dilation: int = 1, dense: bool = False
    ) -> None:
        super().__init__()
        self.stride = stage.stride if first and not dense else 1
        self.dilation = dilation
        inner = stage.width * stage.scale
        self.conv1 = nn.Conv2d(c_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self._build_middle(arch, stage, first)
        self.conv3 = nn.Conv2d(inner, stage.channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(stage.channels)
        self.se = SqueezeExcite(stage.channels, arch.se) if arch.se else None
        projects = first and has_projection(stage, c_in)
        self.downsample = shortcut(arch, stage, c_in, dilation, dense) if projects else None

    def _build_middle(self, arch: Arch, stage: Stage, first: bool) -> None:
        raise NotImplementedError

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`residual` replaces the block's own shortcut, where the network makes it (DLA)."""
        out = self.middle(torch.relu_(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(out))
        if self.se is not None:
            out = self.se(out)
        if residual is None:
            residual = x if self.downsample is None else self.downsample(x)
        return torch.relu_(out + residual) if self.relu else out + residual


class Bottleneck(Block):
    """One split: ResNet's (ResNeXt's) bottleneck, with torchvision's keys."""

    def _build_middle(self, arch: Arch, stage: Stage, first: bool) -> None:
        self.conv2 = conv3x3(stage.width, stage.width, self.stride, stage.cardinality, self.dilation)
        self.bn2 = nn.BatchNorm2d(stage.width)

    def middle(self, x: Tensor) -> Tensor:
        return torch.relu_(self.bn2(self.conv2(x)))


class Bottle2neck(Block):
    """Several splits, each convolution reading its split and the result of the one before (equation 1).

    Channels are in the released order: the split that passes through is the last. A stage's first block adds nothing
    hierarchically, as its convolutions stride.
    """

    def _build_middle(self, arch: Arch, stage: Stage, first: bool) -> None:
        self.scale, self.first = stage.scale, first
        count = stage.scale if first and arch.first_block == "conv" else stage.convs_per_block
        self.convs = nn.ModuleList(
            conv3x3(stage.width, stage.width, self.stride, stage.cardinality, self.dilation) for _ in range(count)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(stage.width) for _ in range(count))
        self.pool = pool3x3(self.stride, self.dilation) if first and count < stage.scale else nn.Identity()

    def middle(self, x: Tensor) -> Tensor:
        splits = x.chunk(self.scale, 1)
        outs: list[Tensor] = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            # A copy: element-wise kernels on a few channels out of a channels-last tensor are several times slower.
            split = splits[i].clone()
            y = split if self.first or i == 0 else outs[-1] + split
            outs.append(torch.relu_(bn(conv(y))))
        if len(outs) < self.scale:
            outs.append(self.pool(splits[-1].clone()))
        return torch.cat(outs, 1)


def plug(stage: Stage, c_in: int, first: bool, downsample: nn.Module | None = None) -> Block:
    """The block of a stage for a network of another kind (section 3.3), with that network's own shortcut."""
    kind = Bottleneck if stage.scale == 1 else Bottle2neck
    block = kind(Arch((stage,)), stage, c_in, first)
    block.downsample = downsample
    return block


def pool3x3(stride: int, dilation: int) -> nn.Module:
    """The pool of the split that passes through a stage's first block; the zeros around the map are counted."""
    return nn.AvgPool2d(3, stride, 1) if dilation == 1 else DensePool(3, dilation, 1, count_padding=True)


def shortcut(arch: Arch, stage: Stage, c_in: int, dilation: int = 1, dense: bool = False) -> nn.Sequential:
    """The projection of a stage's first block; v1b pools first, so that no pixel is skipped."""
    bn, stride = nn.BatchNorm2d(stage.channels), stage.stride
    if arch.shortcut == "conv":
        return nn.Sequential(conv1x1(c_in, stage.channels, 1 if dense else stride), bn)
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    if dense:
        pool = DensePool(stride, dilation, 0, count_padding=False)
    return nn.Sequential(pool, nn.Conv2d(c_in, stage.channels, 1, bias=False), bn)


def stem_conv(arch: Arch) -> nn.Module:
    c_in, c = arch.in_channels, arch.stem_channels
    if arch.stem == "cifar":
        return conv3x3(c_in, c)
    if arch.stem == "imagenet":
        return nn.Conv2d(c_in, c, 7, 2, 3, bias=False)
    half = c // 2
    return nn.Sequential(
        conv3x3(c_in, half, 2),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        conv3x3(half, half),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        conv3x3(half, c),
    )


class Res2Net(Network):
    """The network that an `Arch` describes. `model(x)` gives logits `[N, num_classes]` for images `[N, C, H, W]`.

    Any H and W of at least 1 will do: maps are rounded up. `output_stride` builds it with the last map that fine:
    strides beyond it become dilation (`res2net.backbone`). That changes no weight, so it is no part of the `Arch`.
    """

    def __init__(self, arch: Arch, output_stride: int | None = None) -> None:
        super().__init__()
        self.arch = arch
        self.levels = levels(arch, output_stride)
        self.conv1 = stem_conv(arch)
        self.bn1 = nn.BatchNorm2d(arch.stem_channels)
        self.maxpool = nn.Identity() if arch.stem == "cifar" else nn.MaxPool2d(3, 2, 1)
        c_in = arch.stem_channels
        for i, stage in enumerate(arch.stages, 1):
            kind = Bottleneck if stage.scale == 1 else Bottle2neck
            at = self.levels[i - 1]
            blocks = [kind(arch, stage, c_in, True, at.first_dilation, at.dense)]
            blocks += [kind(arch, stage, stage.channels, False, at.dilation) for _ in range(stage.depth - 1)]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            c_in = stage.channels
        self.fc = self.head()
        self.apply(init)

    def stem(self, x: Tensor) -> Tensor:
        return self.maxpool(torch.relu_(self.bn1(self.conv1(x))))

    def stage_names(self) -> list[str]:
        return [f"layer{i}" for i in range(1, len(self.arch.stages) + 1)]

    @property
    def feature_info(self) -> FeatureInfo:
        maps = enumerate(zip(self.arch.stages, self.levels, strict=True), 1)
        return FeatureInfo.of((stage.channels, level.reduction, f"layer{i}") for i, (stage, level) in maps)

    def cut(self, count: int) -> None:
        super().cut(count)
        self.levels = self.levels[:count]


def init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def create(
    arch: Arch | str,
    *,
    pretrained: bool = False,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    **overrides: object,
) -> Res2Net | Backbone:
    """A network from an `Arch` or a name, in training mode; overrides are fields of `Arch` (`num_classes=10`).

    pretrained: with timm's weights, from the Hugging Face hub; a head of other `num_classes` is initialised.
    features_only: a `Backbone`, whose forward gives the maps `out_indices` (all of them if None).
    output_stride: the last map's stride, by dilation (8, 16 or 32 for ImageNet networks).
    """
    value = named(arch) if isinstance(arch, str) else arch
    value = replace(value, **overrides) if overrides else value  # type: ignore[arg-type]
    if pretrained:
        from res2net.weights import load_pretrained  # it imports this file

        model = load_pretrained(arch, value, output_stride)
    else:
        from res2net.networks import build  # so does it

        model = build(value, output_stride)
    return as_backbone(model, features_only, out_indices)
