"""The network itself (section 3), with the state-dict keys of released checkpoints."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net.arch import Arch, Stage, se_channels
from res2net.cost import has_projection
from res2net.named import named


DENSE_CHANNELS = 32  # up to which a CPU computes groups faster as one dense convolution in bf16


class GroupedConv2d(nn.Conv2d):
    """A convolution in groups, which under a CPU's autocast is the block diagonal of a dense one if it is narrow.

    bf16 kernels take 16 channels or more at a time, of which a group of few leaves most idle.
    """

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        blocks = [torch.ones(self.out_channels // self.groups, self.in_channels // self.groups)] * self.groups
        diagonal = torch.block_diag(*blocks)[:, :, None, None] if self.out_channels <= DENSE_CHANNELS else None
        self.register_buffer("diagonal", diagonal, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.diagonal is None or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        dense = self.weight.repeat(1, self.groups, 1, 1) * self.diagonal
        return F.conv2d(x, dense, self.bias, self.stride, self.padding)


def conv3x3(c_in: int, c_out: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    kind = nn.Conv2d if groups == 1 else GroupedConv2d
    return kind(c_in, c_out, 3, stride, 1, groups=groups, bias=False)


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
    """What every block has: 1x1 in, something 3x3 in between, 1x1 out, a shortcut."""

    def __init__(self, arch: Arch, stage: Stage, c_in: int, first: bool) -> None:
        super().__init__()
        self.stride = stage.stride if first else 1
        inner = stage.width * stage.scale
        self.conv1 = nn.Conv2d(c_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self._build_middle(arch, stage, first)
        self.conv3 = nn.Conv2d(inner, stage.channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(stage.channels)
        self.se = SqueezeExcite(stage.channels, arch.se) if arch.se else None
        self.downsample = shortcut(arch, stage, c_in) if first and has_projection(stage, c_in) else None

    def _build_middle(self, arch: Arch, stage: Stage, first: bool) -> None:
        raise NotImplementedError

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = self.middle(torch.relu_(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(out))
        if self.se is not None:
            out = self.se(out)
        return torch.relu_(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(Block):
    """One split: ResNet's (ResNeXt's) bottleneck, with torchvision's keys."""

    def _build_middle(self, arch: Arch, stage: Stage, first: bool) -> None:
        self.conv2 = conv3x3(stage.width, stage.width, self.stride, stage.cardinality)
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
            conv3x3(stage.width, stage.width, self.stride, stage.cardinality) for _ in range(count)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(stage.width) for _ in range(count))
        self.pool = nn.AvgPool2d(3, self.stride, 1) if first and count < stage.scale else nn.Identity()

    def middle(self, x: Tensor) -> Tensor:
        # Copies: element-wise kernels on a few channels out of a channels-last tensor are several times slower.
        splits = [split.clone() for split in x.chunk(self.scale, 1)]
        outs: list[Tensor] = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            y = splits[i] if self.first or i == 0 else outs[-1] + splits[i]
            outs.append(torch.relu_(bn(conv(y))))
        if len(outs) < self.scale:
            outs.append(self.pool(splits[-1]))
        return torch.cat(outs, 1)


def shortcut(arch: Arch, stage: Stage, c_in: int) -> nn.Sequential:
    """The projection of a stage's first block; v1b pools first, so that no pixel is skipped."""
    bn = nn.BatchNorm2d(stage.channels)
    if arch.shortcut == "conv":
        return nn.Sequential(nn.Conv2d(c_in, stage.channels, 1, stage.stride, bias=False), bn)
    pool = nn.AvgPool2d(stage.stride, stage.stride, ceil_mode=True, count_include_pad=False)
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


class Res2Net(nn.Module):
    """The network that an `Arch` describes. `model(x)` gives logits `[N, num_classes]` for images `[N, C, H, W]`."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.conv1 = stem_conv(arch)
        self.bn1 = nn.BatchNorm2d(arch.stem_channels)
        self.maxpool = nn.Identity() if arch.stem == "cifar" else nn.MaxPool2d(3, 2, 1)
        c_in = arch.stem_channels
        for i, stage in enumerate(arch.stages, 1):
            kind = Bottleneck if stage.scale == 1 else Bottle2neck
            blocks = [kind(arch, stage, c_in if j == 0 else stage.channels, j == 0) for j in range(stage.depth)]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            c_in = stage.channels
        self.fc = nn.Linear(c_in, arch.num_classes) if arch.num_classes else nn.Identity()
        self.apply(_init)

    def layers(self) -> list[nn.Module]:
        """The stages, first to last."""
        return [self.get_submodule(f"layer{i}") for i in range(1, len(self.arch.stages) + 1)]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Each stage's feature maps, finest first."""
        x = self.maxpool(torch.relu_(self.bn1(self.conv1(x))))
        maps = []
        for layer in self.layers():
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.forward_features(x)[-1].mean((2, 3)))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def create(arch: Arch | str, **overrides: object) -> Res2Net:
    """A freshly initialised network from an `Arch` or a name; overrides are fields of `Arch` (`num_classes=10`)."""
    value = named(arch) if isinstance(arch, str) else arch
    return Res2Net(replace(value, **overrides) if overrides else value)  # type: ignore[arg-type]
