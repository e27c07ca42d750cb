"""What a network costs, from integers alone: no weight is allocated, no torch imported.

One multiply-accumulate (MAC) is what the paper counts as one FLOP; convolutions and linear layers only.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from res2net.arch import Arch, Stage, se_channels
from res2net.errors import UserError


class Cost(NamedTuple):
    """macs: multiply-accumulates of one image; params: weights; activations: elements put out by convolutions."""

    macs: int
    params: int
    activations: int

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]
        return Cost(self.macs + other.macs, self.params + other.params, self.activations + other.activations)


def conv(c_in: int, c_out: int, kernel: int, size: int, groups: int = 1) -> Cost:
    """A bias-free convolution that puts out `size` x `size`, with the batch norm that follows it."""
    weights = kernel * kernel * (c_in // groups) * c_out
    return Cost(size * size * weights, weights + 2 * c_out, size * size * c_out)


def linear(c_in: int, c_out: int) -> Cost:
    """A linear layer, or a 1x1 convolution of a 1x1 map, with bias."""
    return Cost(c_in * c_out, c_in * c_out + c_out, 0)


def down(size: int, stride: int) -> int:
    """Size after a strided 3x3 (or 1x1, or ceil-mode pooling) layer."""
    return -(-size // stride)


def stem(arch: Arch, image_size: int) -> tuple[Cost, int]:
    """The stem's cost and the size that it puts out."""
    c = arch.stem_channels
    if arch.stem == "cifar":
        return conv(arch.in_channels, c, 3, image_size), image_size
    size = down(image_size, 2)
    if arch.stem == "imagenet":
        return conv(arch.in_channels, c, 7, size), down(size, 2)
    half = c // 2
    cost = conv(arch.in_channels, half, 3, size) + conv(half, half, 3, size) + conv(half, c, 3, size)
    return cost, down(size, 2)


def block(stage: Stage, c_in: int, size: int, se: int, first: bool, first_block: str) -> Cost:
    """One block at an input of `size` x `size`; the first of a stage strides and projects its shortcut."""
    out = down(size, stage.stride) if first else size
    inner, c_out = stage.width * stage.scale, stage.channels
    convs = stage.scale if first and first_block == "conv" else stage.convs_per_block
    macs, params, activations = conv(stage.width, stage.width, 3, out, stage.cardinality)
    cost = Cost(convs * macs, convs * params, convs * activations)
    cost += conv(c_in, inner, 1, size) + conv(inner, c_out, 1, out)
    if first and has_projection(stage, c_in):
        cost += conv(c_in, c_out, 1, out)
    if se:
        hidden = se_channels(c_out, se)
        squeeze, excite = linear(c_out, hidden), linear(hidden, c_out)
        cost += squeeze + excite + Cost(0, 0, hidden + c_out)
    return cost


def has_projection(stage: Stage, c_in: int) -> bool:
    """Whether the first block's shortcut is a convolution rather than the identity."""
    return stage.stride != 1 or c_in != stage.channels


@lru_cache(maxsize=1 << 16)
def stage(s: Stage, c_in: int, size: int, se: int, first_block: str) -> Cost:
    """All blocks of a stage at an input of `size` x `size`; cached, since a search meets the same stages again."""
    total = block(s, c_in, size, se, True, first_block)
    if s.depth > 1:
        one = block(s, s.channels, down(size, s.stride), se, False, first_block)
        total += Cost(*((s.depth - 1) * v for v in one))
    return total


def cost(arch: Arch, image_size: int = 224) -> Cost:
    """Cost of one image of `image_size` x `image_size`."""
    if not isinstance(image_size, int) or image_size < 1:
        raise UserError(f"image_size is {image_size!r}; accepted: a whole number of at least 1")
    total, size = stem(arch, image_size)
    c_in = arch.stem_channels
    for s in arch.stages:
        total += stage(s, c_in, size, arch.se, arch.first_block)
        size, c_in = down(size, s.stride), s.channels
    return total + linear(c_in, arch.num_classes) if arch.num_classes else total
