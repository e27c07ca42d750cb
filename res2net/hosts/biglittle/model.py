"""Big-Little networks (bL-Net) with the blocks of `res2net.model` and the state-dict keys of bL-Net's release.

Sections are those of bL-Net's paper (arXiv 1807.03848).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net.arch import Stage
from res2net.backbone import FeatureInfo, Network, check_images
from res2net.hosts.biglittle.value import BigLittleArch
from res2net.levels import own_stride
from res2net.model import Block, conv1x1, conv3x3, init, plug


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module | None:
    """Return a shortcut: an average pool if the block strides, then a projection if channels change.

    Return None for the identity.
    """
    parts: list[nn.Module] = [nn.AvgPool2d(3, stride, 1)] if stride > 1 else []
    if c_in != c_out:
        parts += [conv1x1(c_in, c_out), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*parts) if parts else None


def block(stage: Stage, c_in: int, strides: bool) -> Block:
    """Return one block. A block whose shortcut is not the identity is built like the first block of a stage."""
    own = shortcut(c_in, stage.channels, stage.stride if strides else 1)
    return plug(stage, c_in, own is not None, own)


def run(stage: Stage, c_in: int) -> nn.Sequential:
    """Return the blocks of a branch or of the last stage. The first block strides."""
    return nn.Sequential(*(block(stage, stage.channels if j else c_in, j == 0) for j in range(stage.depth)))


def merge(big: Tensor, little: Tensor) -> Tensor:
    """Enlarge the Big branch's map to the size of the Little branch's map. Return the ReLU of their sum."""
    return torch.relu_(F.interpolate(big, little.shape[2:], mode="bilinear", align_corners=False) + little)


class Module(nn.Module):
    """The Big-Little Module (section 3.1): two branches, their sum, and one more block."""

    def __init__(self, arch: BigLittleArch, stage: Stage, c_in: int) -> None:
        super().__init__()
        big, little = arch.big(stage), arch.little(stage)
        self.big = run(big, c_in)
        last = self.big[-1]
        assert isinstance(last, Block)
        last.relu = False  # the ReLU follows the sum of both branches
        self.little = run(little, c_in)
        self.little_e = nn.Sequential(conv1x1(little.channels, stage.channels), nn.BatchNorm2d(stage.channels))
        self.fusion = nn.Sequential(block(stage, stage.channels, True))
        self.strides = stage.stride > 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stage's feature map at full resolution, and the input of the next stage."""
        merged = merge(self.big(x), self.little_e(self.little(x)))
        out = self.fusion(merged)
        return (merged if self.strides else out), out


class BigLittle(Network):
    """The network of a `BigLittleArch`: `model(x)` returns logits `[N, num_classes]` for images `[N, C, H, W]`."""

    def __init__(self, arch: BigLittleArch, output_stride: int | None = None) -> None:
        super().__init__()
        self.arch, self.count = arch, len(arch.stages)
        own_stride(arch, output_stride)
        self._build_stem(arch.in_channels, arch.stem_channels, arch.stem_channels // arch.alpha)
        c_in = arch.stem_channels
        for i, stage in enumerate(arch.stages, 1):
            is_last = i == len(arch.stages)
            self.add_module(f"layer{i}", run(stage, c_in) if is_last else Module(arch, stage, c_in))
            c_in = stage.channels
        self.build_head()
        self.apply(init)

    def _build_stem(self, c_in: int, c: int, thin: int) -> None:
        """Build the stem, which has two branches.

        `b_conv0` and `bn_b0` are the Big branch, of `c` channels. `l_conv0` to `l_conv2` and `bn_l0` to `bn_l2` are the
        Little branch, of `thin` channels.
        """
        self.conv1, self.bn1 = nn.Conv2d(c_in, c, 7, 2, 3, bias=False), nn.BatchNorm2d(c)
        self.b_conv0, self.bn_b0 = conv3x3(c, c, 2), nn.BatchNorm2d(c)
        self.l_conv0, self.bn_l0 = conv3x3(c, thin), nn.BatchNorm2d(thin)
        self.l_conv1, self.bn_l1 = conv3x3(thin, thin, 2), nn.BatchNorm2d(thin)
        self.l_conv2, self.bn_l2 = conv1x1(thin, c), nn.BatchNorm2d(c)
        self.bl_init, self.bn_bl_init = conv1x1(c, c), nn.BatchNorm2d(c)

    def stem(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.bn1(self.conv1(x)))
        little = torch.relu_(self.bn_l0(self.l_conv0(x)))
        little = torch.relu_(self.bn_l1(self.l_conv1(little)))
        x = torch.relu_(self.bn_b0(self.b_conv0(x)) + self.bn_l2(self.l_conv2(little)))
        return torch.relu_(self.bn_bl_init(self.bl_init(x)))

    @property
    def feature_info(self) -> FeatureInfo:
        maps, stride = [], self.arch.stem_stride
        for i, stage in enumerate(self.arch.stages, 1):
            is_last = i == len(self.arch.stages)
            maps.append((stage.channels, stride * stage.stride if is_last else stride, f"layer{i}"))
            stride *= stage.stride
        return FeatureInfo.of(maps[: self.count])

    def stage_names(self) -> list[str]:
        return [f"layer{i}" for i in range(1, self.count + 1)]

    def cut(self, count: int) -> None:
        """Keep the first `count` stages of the network. `arch` keeps all stages.

        A shorter `arch` would describe another network, because the last stage of an `arch` has no branches.
        """
        for name in self.stage_names()[count:]:
            delattr(self, name)
        is_shorter, self.count = count < self.count, count
        last = self.layers()[-1]
        if is_shorter and last.strides:
            last.fusion = nn.Identity()  # the fusion's output is the input of the next stage, which was dropped
        self.reset_classifier(0)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the feature map of each stage, finest first.

        For the published networks, the maps have strides 4, 8, 16 and 32. A stage with two branches applies its stride
        only after its map.
        """
        check_images(x, self.arch.in_channels)
        x = self.stem(x)
        maps = []
        for layer in self.layers():
            out = layer(x)
            found, x = out if isinstance(layer, Module) else (out, out)
            maps.append(found)
        return maps
