"""The cost of heads, computed from integers. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from res2net.heads.value import Deconv, DeepLab, Dss, Head, doublings, low_index
from res2net.layer_cost import NOTHING, Cost, conv, down

DECONV_KERNEL = 4  # pixels along a side of a transposed convolution's kernel, whose stride is 2


class Map(NamedTuple):
    """A feature map: its channels and its stride in image pixels."""

    channels: int
    stride: int


@lru_cache(maxsize=1 << 10)
def head_cost(head: Head, num_classes: int, maps: tuple[Map, ...], image_size: int) -> Cost:
    """Return the cost of a head over a backbone's maps. Resizing costs no MACs."""
    return COSTS[head.kind](head, num_classes, maps, image_size)


def pointwise(c_in: int, c_out: int, size: int) -> Cost:
    """Return the cost of a 1x1 convolution with bias."""
    return Cost(size * size * c_in * c_out, c_in * c_out + c_out, size * size * c_out)


def deeplab_cost(head: DeepLab, num_classes: int, maps: Sequence[Map], image_size: int) -> Cost:
    """Return the cost of a `DeepLab`."""
    last, low, c = maps[-1], maps[low_index(tuple(m.stride for m in maps))], head.channels
    coarse, fine = down(image_size, last.stride), down(image_size, low.stride)
    total = conv(last.channels, c, 1, coarse) + conv(last.channels, c, 1, 1)  # a branch, and that of the mean
    for _ in head.rates:
        total += conv(last.channels, c, 3, coarse)
    total += conv((len(head.rates) + 2) * c, c, 1, coarse)
    total += conv(low.channels, head.low_channels, 1, fine)
    total += conv(c + head.low_channels, c, 3, fine) + conv(c, c, 3, fine)
    return total + pointwise(c, num_classes, fine)


def dss_cost(head: Dss, num_classes: int, maps: Sequence[Map], image_size: int) -> Cost:
    """Return the cost of a `Dss`."""
    c, total = head.channels, pointwise(len(maps), 1, down(image_size, maps[0].stride))  # fuses all sides
    for i, own in enumerate(maps):
        size, deeper = down(image_size, own.stride), len(maps) - 1 - i
        total += conv(own.channels, c, 3, size) + conv(c, c, 3, size) + pointwise(c, 1, size)
        if deeper:
            total += pointwise(1 + deeper, 1, size)
    return total


def deconv_cost(head: Deconv, num_classes: int, maps: Sequence[Map], image_size: int) -> Cost:
    """Return the cost of a `Deconv`. A transposed convolution multiplies each input pixel with all its weights."""
    last, c, total = maps[-1], head.channels, NOTHING
    c_in, size = last.channels, down(image_size, last.stride)
    for _ in range(doublings(last.stride)):
        weights = DECONV_KERNEL**2 * c_in * c
        total += Cost(size * size * weights, weights + 2 * c, 4 * size * size * c)
        c_in, size = c, 2 * size
    return total + pointwise(c, num_classes, size)


COSTS: dict[str, Callable[[Any, int, tuple[Map, ...], int], Cost]] = {
    DeepLab.kind: deeplab_cost,
    Dss.kind: dss_cost,
    Deconv.kind: deconv_cost,
}
