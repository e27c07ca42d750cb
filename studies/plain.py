"""Res2Net from plain PyTorch modules, as most implementations write it: the baseline of the benchmarks.

Each convolution, batch norm and ReLU runs by itself; `torch.split` and `torch.cat` make and join the splits. State-dict
keys match `res2net`, so both sides can hold the same weights. Only residual networks with an ImageNet stem are covered.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from res2net import Arch, Stage, UserError
from res2net.arch import BaseArch


class PlainBlock(nn.Module):
    """The bottleneck block of ResNet (scale 1) or Res2Net (larger scales)."""

    def __init__(self, stage: Stage, c_in: int, first: bool) -> None:
        super().__init__()
        self.first, self.width, self.scale = first, stage.width, stage.scale
        stride = stage.stride if first else 1
        inner = stage.width * stage.scale
        self.conv1, self.bn1 = nn.Conv2d(c_in, inner, 1, bias=False), nn.BatchNorm2d(inner)
        count = stage.convs_per_block
        convs = [
            nn.Conv2d(stage.width, stage.width, 3, stride, 1, groups=stage.cardinality, bias=False)
            for _ in range(count)
        ]
        bns = [nn.BatchNorm2d(stage.width) for _ in range(count)]
        if stage.scale == 1:
            self.conv2, self.bn2 = convs[0], bns[0]
        else:
            self.convs, self.bns = nn.ModuleList(convs), nn.ModuleList(bns)
        self.pool = nn.AvgPool2d(3, stride, 1)
        self.conv3, self.bn3 = nn.Conv2d(inner, stage.channels, 1, bias=False), nn.BatchNorm2d(stage.channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if first and (stride > 1 or c_in != stage.channels):
            project = nn.Conv2d(c_in, stage.channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(stage.channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out))) if self.scale == 1 else self.splits(out)
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)

    def splits(self, x: Tensor) -> Tensor:
        """Return the joined splits by the paper's equation 1. As in the authors' code, do not convolve the last."""
        parts = torch.split(x, self.width, 1)
        outs: list[Tensor] = []
        y = parts[0]
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            y = parts[i] if i == 0 or self.first else y + parts[i]
            y = self.relu(bn(conv(y)))
            outs.append(y)
        outs.append(self.pool(parts[-1]) if self.first else parts[-1])
        return torch.cat(outs, 1)


class PlainRes2Net(nn.Module):
    """Network of an `Arch` with the ImageNet stem, projection shortcuts and no squeeze-and-excitation."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.check(arch)
        self.conv1 = nn.Conv2d(arch.in_channels, arch.stem_channels, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(arch.stem_channels), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c_in = arch.stem_channels
        for i, stage in enumerate(arch.stages, 1):
            blocks = [PlainBlock(stage, stage.channels if j else c_in, j == 0) for j in range(stage.depth)]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            c_in = stage.channels
        self.stages = [f"layer{i}" for i in range(1, len(arch.stages) + 1)]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c_in, arch.num_classes)

    @staticmethod
    def check(arch: BaseArch) -> None:
        """Raise `UserError` for a network that these modules do not cover."""
        kind = Arch(arch.stages, num_classes=arch.num_classes)
        if arch != kind or not arch.num_classes:
            raise UserError(f"{arch}: accepted: networks of the residual line with an ImageNet stem and classes")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))
