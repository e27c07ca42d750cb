"""Deep layer aggregation (DLA) with the blocks of `res2net.model` and the state-dict keys of the released models.

Sections are those of the DLA paper (arXiv 1707.06484).
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from res2net.arch import Stage
from res2net.backbone import FeatureInfo, Network
from res2net.hosts.dla.value import DlaArch
from res2net.levels import levels, own_stride
from res2net.model import conv3x3, init, plug


class Root(nn.Module):
    """An aggregation node: a 1x1 convolution of the concatenated inputs, with batch norm and ReLU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.relu_(self.bn(self.conv(torch.cat(maps, 1))))


class Tree(nn.Module):
    """A tree that aggregates `2 ** depth` blocks (section 3.2): two subtrees, or at depth 1 two blocks and a root.

    The last root of a tree reads the outputs of the two blocks before this root. It also reads the output of the first
    subtree of every tree that ends in this root.

    stage: the sizes of the blocks.
    depth: the depth of the tree.
    c_in: the tree's input channels.
    strides: whether the first block applies the stage's stride.
    aggregated: input channels of the last root.
    aggregates_input: whether the last root also reads the tree's input.
    """

    def __init__(
        self, stage: Stage, depth: int, c_in: int, strides: bool, aggregated: int, aggregates_input: bool = False
    ) -> None:
        super().__init__()
        c_out, stride = stage.channels, stage.stride if strides else 1
        self.is_leaf, self.aggregates_input = depth == 1, aggregates_input
        self.downsample = nn.MaxPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        if not self.is_leaf:
            self.tree1 = Tree(stage, depth - 1, c_in, strides, 2 * c_out)
            self.tree2 = Tree(stage, depth - 1, c_out, False, aggregated + c_out)
            return
        self.tree1 = plug(stage, c_in, first=stride > 1)
        self.tree2 = plug(stage, c_out, first=False)
        self.root = Root(aggregated, c_out)
        self.project: nn.Module = nn.Identity()
        if c_in != c_out:
            self.project = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor, maps: tuple[Tensor, ...] = ()) -> Tensor:
        """Return the tree's output. `maps` come from outside the tree, and the last root reads them too."""
        if self.aggregates_input:
            maps = (self.downsample(x), *maps)
        if not self.is_leaf:
            first = self.tree1(x)
            return self.tree2(first, (*maps, first))
        first = self.tree1(x, self.project(self.downsample(x)))
        return self.root(self.tree2(first), first, *maps)


def level(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution with batch norm and ReLU."""
    return nn.Sequential(conv3x3(c_in, c_out, stride), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Dla(Network):
    """The network of a `DlaArch`: `model(x)` returns logits `[N, num_classes]` for images `[N, C, H, W]`.

    H and W may be any size from 1, because convolutions and pools round up. The released pools round down. Both give
    equal results at multiples of 32, and rounding down fails at other sizes.
    """

    def __init__(self, arch: DlaArch, output_stride: int | None = None) -> None:
        super().__init__()
        self.arch = arch
        own_stride(arch, output_stride)
        base, c_in = arch.base_channels, arch.stem_channels
        stem = nn.Conv2d(arch.in_channels, base, 7, 1, 3, bias=False)
        self.base_layer = nn.Sequential(stem, nn.BatchNorm2d(base), nn.ReLU(inplace=True))
        self.level0, self.level1 = level(base, base), level(base, c_in, 2)
        for i, stage in enumerate(arch.stages):
            aggregated = 2 * stage.channels + (c_in if i else 0)
            self.add_module(f"level{i + 2}", Tree(stage, stage.depth, c_in, True, aggregated, i > 0))
            c_in = stage.channels
        self.build_head()
        self.apply(init)

    @property
    def unused_keys(self) -> tuple[str, ...]:
        """Patterns of keys in released checkpoints that this network does not use."""
        return tuple(re.escape(prefix) + r"[01]\.\w+" for prefix in self.arch.unused_projections())

    @property
    def feature_info(self) -> FeatureInfo:
        maps = enumerate(zip(self.arch.stages, levels(self.arch), strict=True), 2)
        return FeatureInfo.of((stage.channels, level.reduction, f"level{i}") for i, (stage, level) in maps)

    def stem(self, x: Tensor) -> Tensor:
        return self.level1(self.level0(self.base_layer(x)))

    def stage_names(self) -> list[str]:
        return [f"level{i}" for i in range(2, len(self.arch.stages) + 2)]

    def classifier(self) -> nn.Module:
        """Return a newly initialised classifier: a 1x1 convolution, as released."""
        classes = self.arch.classifier_size
        return nn.Conv2d(self.num_features, classes, 1) if classes else nn.Identity()

    def classify(self, last: Tensor) -> Tensor:
        return self.fc(last.mean((2, 3), keepdim=True)).flatten(1)
