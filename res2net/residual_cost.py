"""The cost of the network of an `Arch` (ResNet, ResNeXt, Res2Net and their relatives). Does not import torch."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from res2net.arch import Arch, Stage, se_channels
from res2net.layer_cost import Cost, body, classifier, conv, down, has_projection, linear
from res2net.levels import levels


def residual_cost(arch: Arch, image_size: int) -> Cost:
    """Return the cost of the network for one image of `image_size` x `image_size` pixels."""
    total, size = stem(arch, image_size)
    c_in = arch.stem_channels
    dense = [False] * len(arch.stages)
    if arch.output_stride is not None:
        dense = [level.dense for level in levels(arch, arch.output_stride)]
    for s, is_dense in zip(arch.stages, dense, strict=True):
        total += stage(s, c_in, size, arch.se, arch.first_block, is_dense)
        size, c_in = size if is_dense else down(size, s.stride), s.channels
    return total + classifier(c_in, arch.classifier_size)


def stem(arch: Arch, image_size: int) -> tuple[Cost, int]:
    """Return the stem's cost and the side length of its output map."""
    c = arch.stem_channels
    if arch.stem == "cifar":
        return conv(arch.in_channels, c, 3, image_size), image_size
    size = down(image_size, 2)
    if arch.stem == "strided":
        return conv(arch.in_channels, c, 3, size), size
    if arch.stem == "imagenet":
        return conv(arch.in_channels, c, 7, size), down(size, 2)
    half = c // 2
    cost = conv(arch.in_channels, half, 3, size) + conv(half, half, 3, size) + conv(half, c, 3, size)
    return cost, down(size, 2)


# Many networks of a search share stages, so each stage's cost is computed once.
@lru_cache(maxsize=1 << 16)
def stage(s: Stage, c_in: int, size: int, se: int, first_block: str, dense: bool = False) -> Cost:
    """Return the cost of a stage's blocks. The input map is `size` x `size`.

    dense: whether dilation replaces the stage's stride.
    """
    projects = has_projection(s, c_in)
    s = replace(s, stride=1) if dense else s
    total = block(s, c_in, size, se, True, first_block, projects)
    if s.depth > 1:
        one = block(s, s.channels, down(size, s.stride), se, False, first_block)
        total += Cost(*((s.depth - 1) * v for v in one))
    return total


def block(stage: Stage, c_in: int, size: int, se: int, first: bool, first_block: str, projects: bool = False) -> Cost:
    """Return the cost of one block. A stage's first block applies the stride, and `projects` if it has to."""
    cost, c_out = body(stage, c_in, size, first, first_block), stage.channels
    if projects:
        cost += conv(c_in, c_out, 1, down(size, stage.stride))
    if se:
        hidden = se_channels(c_out, se)
        # Both layers are convolutions on a 1x1 map, so their outputs count as activations.
        cost += linear(c_out, hidden) + linear(hidden, c_out) + Cost(0, 0, hidden + c_out)
    return cost
