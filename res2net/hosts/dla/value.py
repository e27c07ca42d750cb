"""Deep layer aggregation (DLA, arXiv 1707.06484) as a value: what `Arch` is to the residual line. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from res2net.arch import BaseArch, Stage
from res2net.errors import UserError

DEEPEST = 8


@dataclass(frozen=True, slots=True)
class DlaArch(BaseArch):
    """A network of trees, one a stage, which aggregate their blocks' outputs (hierarchical aggregation, section 3.2).

    stages: `depth` is the tree's: it has `2 ** depth` blocks. The first of them strides.
    base_channels: of the 7x7 stem and the 3x3 level after it; stem_channels: of the strided 3x3 level that follows.
    """

    kind: ClassVar[str] = "dla"
    stages: tuple[Stage, ...]
    base_channels: int = 16
    stem_channels: int = 32
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        self._check_stages()
        self._check_whole(base_channels=1, stem_channels=1, num_classes=0, in_channels=1)
        deepest = max(s.depth for s in self.stages)
        if deepest > DEEPEST:
            raise UserError(
                f"arch: a tree of depth {deepest} has 2^{deepest} blocks; accepted: a depth of 1 to {DEEPEST}"
            )

    @property
    def stem_stride(self) -> int:
        return 2

    def unused_projections(self) -> dict[str, tuple[int, int, int]]:
        """Prefixes of the weights that released checkpoints hold in vain, and for each its stage and channels in, out.

        They gave every tree a projection where its channels change; only those of two blocks use it. A prefix stands
        for a 1x1 convolution (`0.weight`) and its batch norm (`1.weight`, `1.bias`, `1.running_mean`, ...).
        """
        found, c_in = {}, self.stem_channels
        for i, stage in enumerate(self.stages):
            if c_in != stage.channels:
                for depth in range(stage.depth - 1):
                    found[f"level{i + 2}{'.tree1' * depth}.project."] = (i, c_in, stage.channels)
            c_in = stage.channels
        return found
