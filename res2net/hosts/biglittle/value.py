"""The architecture of Big-Little Net (bL-Net, arXiv 1807.03848) and its cost. Does not import torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from res2net.arch import BaseArch, Stage
from res2net.errors import UserError
from res2net.heads.cost import Map
from res2net.heads.value import Head
from res2net.layer_cost import NOTHING, Cost, body, classifier, conv, down


@dataclass(frozen=True, slots=True)
class BigLittleArch(BaseArch):
    """A residual network that computes each stage but the last at two resolutions (section 3.1 of bL-Net's paper).

    The Big branch of a stage has `depth - 1` blocks at half the resolution. The Little branch has about `1 / beta` of
    the blocks and `1 / alpha` of the channels, at full resolution. One more block reads the sum of both branches and
    applies the stage's stride. The last stage has no branches, and its first block strides.
    """

    kind: ClassVar[str] = "biglittle"
    stages: tuple[Stage, ...]
    alpha: int = 2
    beta: int = 4
    stem_channels: int = 64
    num_classes: int = 1000
    in_channels: int = 3
    head: Head | None = None

    def __post_init__(self) -> None:
        self._check_stages()
        self._check_whole(alpha=1, beta=1, stem_channels=1, num_classes=0, in_channels=1)
        self._check_head()
        self._check_own_stride()
        for i, stage in enumerate(self.stages[:-1], 1):
            if stage.depth < 2:
                raise UserError(f"arch: stage {i}: depth is {stage.depth}; accepted: 2 or more, for two branches")
            for name in ("planes", "width"):
                self._check_divides(f"stage {i}: {name}", getattr(stage, name))
            self.little(stage)
        self._check_divides("stem_channels", self.stem_channels)

    def _check_divides(self, what: str, value: int) -> None:
        if value % self.alpha:
            raise UserError(
                f"arch: {what} {value} is not divisible by alpha {self.alpha}; accepted: a multiple of {self.alpha}"
            )

    @property
    def stem_stride(self) -> int:
        return 4

    def big(self, stage: Stage) -> Stage:
        """Return the Big branch of a stage."""
        return Stage(stage.depth - 1, stage.planes, stage.width, stage.cardinality, stage.scale, 2)

    def little(self, stage: Stage) -> Stage:
        """Return the Little branch of a stage: `1 / alpha` of the channels, `depth // beta - 1` blocks (at least 1)."""
        depth = max(1, stage.depth // self.beta - 1)
        return Stage(depth, stage.planes // self.alpha, stage.width // self.alpha, stage.cardinality, stage.scale)

    def _hashed(self) -> dict[str, Any]:
        data = BaseArch._hashed(self)
        data.pop("beta", None)  # several values of beta may give the same Little branches, so hash the branches instead
        return data | {"little": [asdict(self.little(s)) for s in self.stages[:-1]]}


def biglittle_cost(arch: BigLittleArch, image_size: int) -> Cost:
    """Return the cost of the network for one image of `image_size` x `image_size` pixels."""
    total, size = stem(arch, image_size)
    c_in, last = arch.stem_channels, arch.stages[-1]
    for s in arch.stages[:-1]:
        little = arch.little(s)
        total += blocks(arch.big(s), c_in, size) + blocks(little, c_in, size)
        # A 1x1 convolution widens the Little branch. One more block reads the sum of both branches.
        total += conv(little.channels, s.channels, 1, size) + body(s, s.channels, size, True)
        size, c_in = down(size, s.stride), s.channels
    return total + blocks(last, c_in, size) + classifier(last.channels, arch.classifier_size)


def biglittle_maps(arch: BigLittleArch) -> tuple[Map, ...]:
    """Return the map of each stage, finest first. A stage with two branches strides only after its map."""
    found, stride = [], arch.stem_stride
    for stage in arch.stages[:-1]:
        found.append(Map(stage.channels, stride))
        stride *= stage.stride
    last = arch.stages[-1]
    return (*found, Map(last.channels, stride * last.stride))


def stem(arch: BigLittleArch, image_size: int) -> tuple[Cost, int]:
    """Return the cost of the stem, which also has two branches, and the side length of its output map."""
    c, half = arch.stem_channels, down(image_size, 2)
    size, thin = down(half, 2), arch.stem_channels // arch.alpha
    little = conv(c, thin, 3, half) + conv(thin, thin, 3, size) + conv(thin, c, 1, size)
    return conv(arch.in_channels, c, 7, half) + conv(c, c, 3, size) + little + conv(c, c, 1, size), size


def blocks(s: Stage, c_in: int, size: int) -> Cost:
    """Return the cost of a branch's blocks. The first block strides. Only changed channels need a projection."""
    out = down(size, s.stride)
    total = body(s, c_in, size, True) + (conv(c_in, s.channels, 1, out) if c_in != s.channels else NOTHING)
    return sum((body(s, s.channels, out, False) for _ in range(s.depth - 1)), total)
