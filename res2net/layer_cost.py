"""The cost of single layers and of a block's layers, computed from integers.

This module does not import torch. The paper counts one multiply-accumulate (MAC) as one FLOP. Only MACs of
convolutions and linear layers count.
"""

from __future__ import annotations

from typing import NamedTuple

from res2net.arch import Stage


class Cost(NamedTuple):
    """The cost for one image: `macs`, `params` (weights), and `activations` (output elements of all convolutions)."""

    macs: int
    params: int
    activations: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.params + other.params, self.activations + other.activations)


NOTHING = Cost(0, 0, 0)


def conv(c_in: int, c_out: int, kernel: int, size: int, groups: int = 1) -> Cost:
    """Return the cost of a convolution without bias and of its batch norm. The output map is `size` x `size`."""
    weights = kernel * kernel * (c_in // groups) * c_out
    return Cost(size * size * weights, weights + 2 * c_out, size * size * c_out)


def linear(c_in: int, c_out: int) -> Cost:
    """Return the cost of a linear layer with bias, or of a 1x1 convolution with bias on a 1x1 map."""
    return Cost(c_in * c_out, c_in * c_out + c_out, 0)


def classifier(c_in: int, num_classes: int) -> Cost:
    """Return the cost of a linear classifier: zero for 0 classes, which need no classifier."""
    return linear(c_in, num_classes) if num_classes else NOTHING


def down(size: int, stride: int) -> int:
    """Return the side length of the map after a strided layer. All layers of this package round up."""
    return -(-size // stride)


def body(stage: Stage, c_in: int, size: int, first: bool, first_block: str = "pool") -> Cost:
    """Return the cost of a block without its shortcut. The input map is `size` x `size`.

    first: whether the block is the first of its stage. The first block applies the stage's stride.
    first_block: the field of `Arch`.
    """
    out = down(size, stage.stride) if first else size
    inner = stage.width * stage.scale
    convs = stage.scale if first and first_block == "conv" else stage.convs_per_block
    macs, params, activations = conv(stage.width, stage.width, 3, out, stage.cardinality)
    middle = Cost(convs * macs, convs * params, convs * activations)
    return conv(c_in, inner, 1, size) + middle + conv(inner, stage.channels, 1, out)


def has_projection(stage: Stage, c_in: int) -> bool:
    """Return whether the shortcut of a stage's first block is a convolution rather than the identity."""
    return stage.stride != 1 or c_in != stage.channels
