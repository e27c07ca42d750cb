"""The cost of heads, computed from integers. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from res2net.heads.value import (
    ASPECTS,
    DETECTIONS,
    Deconv,
    DeepLab,
    Dss,
    FasterRcnn,
    Head,
    KeypointRcnn,
    MaskRcnn,
    doublings,
    low_index,
)
from res2net.layer_cost import NOTHING, Cost, conv, down, linear

DECONV_KERNEL = 4  # side of the kernel of a transposed convolution of stride 2
BOX_SIDE, MASK_SIDE = 7, 14  # side of a proposal's pooled features in pixels: for its box, for its mask
MASK_LAYERS = 4  # 3x3 convolutions of the mask branch
POINT_LAYERS, POINT_WIDTH = 8, 2  # key point branch: 3x3 convolutions; their channels, relative to the pyramid's


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
    total = conv(last.channels, c, 1, coarse) + conv(last.channels, c, 1, 1)  # the 1x1 branch, the branch of the mean
    for _ in head.rates:
        total += conv(last.channels, c, 3, coarse)
    total += conv((len(head.rates) + 2) * c, c, 1, coarse)
    total += conv(low.channels, head.low_channels, 1, fine)
    total += conv(c + head.low_channels, c, 3, fine) + conv(c, c, 3, fine)
    return total + pointwise(c, num_classes, fine)


def dss_cost(head: Dss, num_classes: int, maps: Sequence[Map], image_size: int) -> Cost:
    """Return the cost of a `Dss`."""
    c, total = head.channels, pointwise(len(maps), 1, down(image_size, maps[0].stride))  # the fusion of all score maps
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


def biased(c_in: int, c_out: int, kernel: int, size: int) -> Cost:
    """Return the cost of a convolution with bias. The output map is `size` x `size`."""
    weights = kernel * kernel * c_in * c_out
    return Cost(size * size * weights, weights + c_out, size * size * c_out)


def repeated(cost: Cost, times: int) -> Cost:
    """Return the cost of a layer that is used `times` times with the same weights."""
    return Cost(times * cost.macs, cost.params, times * cost.activations)


def faster_rcnn_cost(head: FasterRcnn, num_classes: int, maps: Sequence[Map], image_size: int) -> Cost:
    """Return the cost of a `FasterRcnn` for its maximum number of proposals. Pooling costs no MACs."""
    c, total = head.channels, NOTHING
    sides = [down(image_size, m.stride) for m in maps]
    for m, side in zip(maps, sides, strict=True):
        total += biased(m.channels, c, 1, side) + biased(c, c, 3, side)
    # The layers that propose objects are shared by all maps.
    shared = [biased(c, n, kernel, 1) for n, kernel in ((c, 3), (len(ASPECTS), 1), (4 * len(ASPECTS), 1))]
    places = sum(side * side for side in (*sides, down(sides[-1], 2)))
    total += sum((repeated(layer, places) for layer in shared), NOTHING)
    box = linear(c * BOX_SIDE**2, head.hidden) + linear(head.hidden, head.hidden)
    return total + repeated(box + linear(head.hidden, 5 * num_classes), head.proposals)


def mask_rcnn_cost(head: MaskRcnn, num_classes: int, maps: Sequence[Map], image_size: int) -> Cost:
    """Return the cost of a `MaskRcnn` for its maximum number of objects."""
    c, total = head.channels, NOTHING
    for _ in range(MASK_LAYERS):
        total += biased(c, c, 3, MASK_SIDE)
    # A transposed convolution of kernel 2 and stride 2, whose output has twice the side.
    total += Cost(MASK_SIDE**2 * 4 * c * c, 4 * c * c + c, 4 * MASK_SIDE**2 * c)
    total += biased(c, num_classes, 1, 2 * MASK_SIDE)
    return faster_rcnn_cost(head, num_classes, maps, image_size) + repeated(total, DETECTIONS)


def keypoint_rcnn_cost(head: KeypointRcnn, num_classes: int, maps: Sequence[Map], image_size: int) -> Cost:
    """Return the cost of a `KeypointRcnn` for its maximum number of objects."""
    wide = POINT_WIDTH * head.channels
    total = biased(head.channels, wide, 3, MASK_SIDE)
    for _ in range(POINT_LAYERS - 1):
        total += biased(wide, wide, 3, MASK_SIDE)
    weights = DECONV_KERNEL**2 * wide * head.points
    total += Cost(MASK_SIDE**2 * weights, weights + head.points, 4 * MASK_SIDE**2 * head.points)
    return faster_rcnn_cost(head, num_classes, maps, image_size) + repeated(total, DETECTIONS)


COSTS: dict[str, Callable[[Any, int, tuple[Map, ...], int], Cost]] = {
    DeepLab.kind: deeplab_cost,
    Dss.kind: dss_cost,
    Deconv.kind: deconv_cost,
    FasterRcnn.kind: faster_rcnn_cost,
    MaskRcnn.kind: mask_rcnn_cost,
    KeypointRcnn.kind: keypoint_rcnn_cost,
}
