"""What a network costs, from integers alone: no weight is allocated, no torch imported.

One multiply-accumulate (MAC) is what the paper counts as one FLOP; convolutions and linear layers only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from res2net.arch import Arch, Stage, se_channels
from res2net.errors import UserError
from res2net.hosts.biglittle.value import BigLittleArch
from res2net.hosts.dla.value import DlaArch
from res2net.kinds import AnyArch


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


def body(stage: Stage, c_in: int, size: int, first: bool, first_block: str = "pool") -> Cost:
    """A block's own layers at an input of `size` x `size`, without its shortcut; the first of a stage strides."""
    out = down(size, stage.stride) if first else size
    inner = stage.width * stage.scale
    convs = stage.scale if first and first_block == "conv" else stage.convs_per_block
    macs, params, activations = conv(stage.width, stage.width, 3, out, stage.cardinality)
    middle = Cost(convs * macs, convs * params, convs * activations)
    return conv(c_in, inner, 1, size) + middle + conv(inner, stage.channels, 1, out)


def block(stage: Stage, c_in: int, size: int, se: int, first: bool, first_block: str) -> Cost:
    """One block of the residual line; the first of a stage strides and projects its shortcut."""
    cost, c_out = body(stage, c_in, size, first, first_block), stage.channels
    if first and has_projection(stage, c_in):
        cost += conv(c_in, c_out, 1, down(size, stage.stride))
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


def residual(arch: Arch, image_size: int) -> Cost:
    """A network of the residual line."""
    total, size = stem(arch, image_size)
    c_in = arch.stem_channels
    for s in arch.stages:
        total += stage(s, c_in, size, arch.se, arch.first_block)
        size, c_in = down(size, s.stride), s.channels
    return total + linear(c_in, arch.num_classes) if arch.num_classes else total


def tree(s: Stage, depth: int, c_in: int, size: int, strides: bool, aggregated: int) -> Cost:
    """A tree of `2 ** depth` blocks, whose root reads `aggregated` channels; the first block strides, or none does."""
    out, c_out = down(size, s.stride) if strides else size, s.channels
    if depth > 1:
        return tree(s, depth - 1, c_in, size, strides, 2 * c_out) + tree(
            s, depth - 1, c_out, out, False, aggregated + c_out
        )
    blocks = body(s, c_in, size, strides) + body(s, c_out, out, False)
    project = conv(c_in, c_out, 1, out) if c_in != c_out else Cost(0, 0, 0)
    return blocks + project + conv(aggregated, c_out, 1, out)


def dla(arch: DlaArch, image_size: int) -> Cost:
    """A deep-layer-aggregation network."""
    base, c_in, size = arch.base_channels, arch.stem_channels, down(image_size, 2)
    total = conv(arch.in_channels, base, 7, image_size) + conv(base, base, 3, image_size) + conv(base, c_in, 3, size)
    for i, s in enumerate(arch.stages):
        total += tree(s, s.depth, c_in, size, True, 2 * s.channels + (c_in if i else 0))
        size, c_in = down(size, s.stride), s.channels
    head = linear(c_in, arch.num_classes) + Cost(0, 0, arch.num_classes)
    return total + head if arch.num_classes else total


def unused_projections(arch: DlaArch, image_size: int = 224) -> Cost:
    """What the released definitions spend besides, on projections whose output nothing reads."""
    sizes = [down(image_size, 2)]
    for s in arch.stages:
        sizes.append(down(sizes[-1], s.stride))
    parts = [conv(c_in, c_out, 1, sizes[i + 1]) for i, c_in, c_out in arch.unused_projections().values()]
    return sum(parts, Cost(0, 0, 0))


def run(s: Stage, c_in: int, size: int) -> Cost:
    """A run of bL-Net's blocks: the first one strides and projects, but only where channels change."""
    out = down(size, s.stride)
    total = body(s, c_in, size, True) + (conv(c_in, s.channels, 1, out) if c_in != s.channels else Cost(0, 0, 0))
    return sum((body(s, s.channels, out, False) for _ in range(s.depth - 1)), total)


def biglittle_stem(arch: BigLittleArch, image_size: int) -> tuple[Cost, int]:
    """The stem of bL-Net, which has two branches too, and the size that it puts out."""
    c, half = arch.stem_channels, down(image_size, 2)
    size, thin = down(half, 2), arch.stem_channels // arch.alpha
    little = conv(c, thin, 3, half) + conv(thin, thin, 3, size) + conv(thin, c, 1, size)
    return conv(arch.in_channels, c, 7, half) + conv(c, c, 3, size) + little + conv(c, c, 1, size), size


def biglittle(arch: BigLittleArch, image_size: int) -> Cost:
    """A Big-Little network."""
    total, size = biglittle_stem(arch, image_size)
    c_in, last = arch.stem_channels, arch.stages[-1]
    for s in arch.stages[:-1]:
        little = arch.little(s)
        total += run(arch.big(s), c_in, size) + run(little, c_in, size)
        total += conv(little.channels, s.channels, 1, size) + body(s, s.channels, size, True)
        size, c_in = down(size, s.stride), s.channels
    total += run(last, c_in, size)
    return total + linear(last.channels, arch.num_classes) if arch.num_classes else total


_COSTS: dict[type, Callable[[Any, int], Cost]] = {Arch: residual, DlaArch: dla, BigLittleArch: biglittle}


def cost(arch: AnyArch, image_size: int = 224) -> Cost:
    """Cost of one image of `image_size` x `image_size`."""
    if not isinstance(image_size, int) or image_size < 1:
        raise UserError(f"image_size is {image_size!r}; accepted: a whole number of at least 1")
    return _COSTS[type(arch)](arch, image_size)
