"""The architecture of deep layer aggregation (DLA, arXiv 1707.06484) and its cost. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from res2net.arch import BaseArch, Stage
from res2net.errors import UserError
from res2net.heads.value import Head
from res2net.layer_cost import NOTHING, Cost, body, conv, down, linear

DEEPEST = 8  # a tree of depth 8 has 256 blocks


@dataclass(frozen=True, slots=True)
class DlaArch(BaseArch):
    """A network with one tree for each stage. A tree aggregates the outputs of its blocks (section 3.2 of DLA's paper).

    stages: `depth` is the depth of the stage's tree, which has `2 ** depth` blocks. The first block strides.
    base_channels: channels of the 7x7 convolution at the start, and of the 3x3 convolution after it.
    stem_channels: channels of the strided 3x3 convolution before the first tree.
    """

    kind: ClassVar[str] = "dla"
    stages: tuple[Stage, ...]
    base_channels: int = 16
    stem_channels: int = 32
    num_classes: int = 1000
    in_channels: int = 3
    head: Head | None = None

    def __post_init__(self) -> None:
        self._check_stages()
        self._check_whole(base_channels=1, stem_channels=1, num_classes=0, in_channels=1)
        self._check_head()
        self._check_own_stride()
        deepest = max(s.depth for s in self.stages)
        if deepest > DEEPEST:
            raise UserError(
                f"arch: a tree of depth {deepest} has 2^{deepest} blocks; accepted: a depth of 1 to {DEEPEST}"
            )

    @property
    def stem_stride(self) -> int:
        return 2

    def unused_projections(self) -> dict[str, tuple[int, int, int]]:
        """Return the projections that released checkpoints contain and this package does not build.

        Each key prefix is mapped to (stage index, input channels, output channels). In the released definitions, every
        tree whose channels change has a projection, but only trees of two blocks use it. A prefix covers a 1x1
        convolution (`0.weight`) and its batch norm (`1.weight`, `1.bias`, `1.running_mean`, ...).
        """
        found, c_in = {}, self.stem_channels
        for i, stage in enumerate(self.stages):
            if c_in != stage.channels:
                for depth in range(stage.depth - 1):
                    found[f"level{i + 2}{'.tree1' * depth}.project."] = (i, c_in, stage.channels)
            c_in = stage.channels
        return found


def dla_cost(arch: DlaArch, image_size: int) -> Cost:
    """Return the cost of the network for one image of `image_size` x `image_size` pixels."""
    base, c_in, size = arch.base_channels, arch.stem_channels, down(image_size, 2)
    total = conv(arch.in_channels, base, 7, image_size) + conv(base, base, 3, image_size) + conv(base, c_in, 3, size)
    for i, s in enumerate(arch.stages):
        total += tree(s, s.depth, c_in, size, True, 2 * s.channels + (c_in if i else 0))
        size, c_in = down(size, s.stride), s.channels
    # The head is a 1x1 convolution, so its outputs count as activations.
    classes = arch.classifier_size
    return total + linear(c_in, classes) + Cost(0, 0, classes) if classes else total


def tree(s: Stage, depth: int, c_in: int, size: int, strides: bool, aggregated: int) -> Cost:
    """Return the cost of a tree of `2 ** depth` blocks.

    strides: whether the first block applies the stage's stride.
    aggregated: input channels of the tree's last root.
    """
    out, c_out = down(size, s.stride) if strides else size, s.channels
    if depth > 1:
        return tree(s, depth - 1, c_in, size, strides, 2 * c_out) + tree(
            s, depth - 1, c_out, out, False, aggregated + c_out
        )
    blocks = body(s, c_in, size, strides) + body(s, c_out, out, False)
    project = conv(c_in, c_out, 1, out) if c_in != c_out else NOTHING
    return blocks + project + conv(aggregated, c_out, 1, out)


def unused_projections(arch: DlaArch, image_size: int = 224) -> Cost:
    """Return the additional cost of the released definition, which has projections with unused outputs."""
    sizes = [down(image_size, 2)]
    for s in arch.stages:
        sizes.append(down(sizes[-1], s.stride))
    parts = [conv(c_in, c_out, 1, sizes[i + 1]) for i, c_in, c_out in arch.unused_projections().values()]
    return sum(parts, NOTHING)
