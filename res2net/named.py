"""The networks of the Res2Net paper's tables, by the names of the released checkpoints.

This module does not import torch.
"""

from __future__ import annotations

from typing import Any

from res2net.arch import Arch, BaseArch, Stage
from res2net.errors import unknown
from res2net.hosts.biglittle.value import BigLittleArch
from res2net.hosts.dla.value import DlaArch

PLANES = (64, 128, 256, 512)


def split_width(planes: int, base_width: int, cardinality: int = 1) -> int:
    """Return the channels of one split in a stage of `planes`.

    base_width: channels of one group at 64 planes. `6c24w` has 6 groups of 24 channels.
    """
    return planes * base_width // 64 * cardinality


def imagenet(depths: tuple[int, ...], width: int, scale: int = 1, cardinality: int = 1, **changes: Any) -> Arch:
    """Return a network of the four-stage layout (Tables 1 to 3). `changes` replace defaults of `Arch`."""
    stages = tuple(
        Stage(depth, planes, split_width(planes, width, cardinality), cardinality, scale, stride)
        for depth, planes, stride in zip(depths, PLANES, (1, 2, 2, 2), strict=True)
    )
    return Arch(stages, **changes)


def cifar29(width: int, cardinality: int, scale: int = 1, se: int = 0) -> Arch:
    """Return a network of the 29-layer layout for 100 classes (Table 4). First blocks convolve all splits."""
    stages = tuple(
        Stage(3, planes, split_width(planes, width, cardinality), cardinality, scale, stride)
        for planes, stride in zip(PLANES, (1, 2, 2), strict=False)
    )
    return Arch(stages, stem="cifar", first_block="conv", se=se, num_classes=100)


def dla60(width: int, scale: int = 1, cardinality: int = 1) -> DlaArch:
    """Return a network of DLA's 60-layer layout: trees of 2, 4, 8 and 2 blocks.

    `split_width` takes `2 * planes` here. The reason: with equal output channels, the middle of a DLA block is twice as
    wide as the middle of a ResNet block.
    """
    stages = tuple(
        Stage(depth, planes, split_width(2 * planes, width, cardinality), cardinality, scale, 2)
        for depth, planes in zip((1, 2, 3, 1), (32, 64, 128, 256), strict=True)
    )
    return DlaArch(stages)


def biglittle50(width: int, scale: int = 1) -> BigLittleArch:
    """Return a network of Big-Little Net's 50-layer layout (alpha 2, beta 4)."""
    stages = tuple(
        Stage(depth, planes, split_width(planes, width), 1, scale, stride)
        for depth, planes, stride in zip(_50, PLANES, (2, 2, 1, 2), strict=True)
    )
    return BigLittleArch(stages)


_50, _101 = (3, 4, 6, 3), (3, 4, 23, 3)
_NAMED: dict[str, BaseArch] = {
    "resnet50": imagenet(_50, 64),
    "resnet101": imagenet(_101, 64),
    "res2net50_48w_2s": imagenet(_50, 48, 2),
    "res2net50_26w_4s": imagenet(_50, 26, 4),
    "res2net50_14w_8s": imagenet(_50, 14, 8),
    "res2net50_26w_6s": imagenet(_50, 26, 6),
    "res2net50_26w_8s": imagenet(_50, 26, 8),
    "res2net50_18w_4s": imagenet(_50, 18, 4),
    "res2net101_26w_4s": imagenet(_101, 26, 4),
    "resnext50_32x4d": imagenet(_50, 4, 1, 32),
    "res2next50": imagenet(_50, 4, 4, 8),
    "seresnet50": imagenet(_50, 64, se=16),
    "se_res2net50_26w_4s": imagenet(_50, 26, 4, se=16),
    "res2net50_v1b": imagenet(_50, 26, 4, stem="deep", shortcut="avgpool"),
    "res2net101_v1b": imagenet(_101, 26, 4, stem="deep", shortcut="avgpool"),
    "dla60": dla60(64),
    "res2net_dla60": dla60(28, 4),
    "dla60x": dla60(4, 1, 32),
    "res2next_dla60": dla60(4, 4, 8),
    "blresnet50": biglittle50(64),
    "blres2net50": biglittle50(26, 4),
    "resnext29_8c64w": cifar29(64, 8),
    "resnext29_16c64w": cifar29(64, 16),
    "res2next29_6c24w_4s": cifar29(24, 6, 4),
    "res2next29_8c25w_4s": cifar29(25, 8, 4),
    "res2next29_6c24w_6s": cifar29(24, 6, 6),
    "se_resnext29_8c64w": cifar29(64, 8, se=16),
    "se_resnext29_16c64w": cifar29(64, 16, se=16),
    "se_res2next29_6c24w_4s": cifar29(24, 6, 4, se=16),
    "se_res2next29_8c25w_4s": cifar29(25, 8, 4, se=16),
    "se_res2next29_6c24w_6s": cifar29(24, 6, 6, se=16),
}
# Names of the same definitions in other releases.
_ALIASES = {
    "res2net50_299": "res2net50_26w_4s",
    "res2net50_l": "res2net50_18w_4s",
    "res2net50d": "res2net50_v1b",
    "res2net101d": "res2net101_v1b",
    "res2net50_v1b_26w_4s": "res2net50_v1b",
    "res2net101_v1b_26w_4s": "res2net101_v1b",
    "res2next50_4s": "res2next50",
    "dla60_res2net": "res2net_dla60",
    "dla60_res2next": "res2next_dla60",
}


def names() -> tuple[str, ...]:
    """Return the names of all networks, without aliases."""
    return tuple(_NAMED)


def named(name: str) -> BaseArch:
    """Return the architecture of a name or an alias. For an unknown name, raise `UserError` with the nearest one."""
    name = _ALIASES.get(name, name)
    if name not in _NAMED:
        raise unknown("network name", name, (*_NAMED, *_ALIASES))
    return _NAMED[name]
