"""Big-Little Net (bL-Net, arXiv 1807.03848) as a value: what `Arch` is to the residual line. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from res2net.arch import BaseArch, Stage
from res2net.errors import UserError


@dataclass(frozen=True, slots=True)
class BigLittleArch(BaseArch):
    """A residual network whose stages, but for the last, compute at two resolutions (section 3.1).

    A stage's Big branch is `depth - 1` blocks at half the resolution; its Little branch is fewer blocks (`beta`) of
    fewer channels (`alpha`) at the full one. They are added, and one more block follows, which has the stage's stride.
    The last stage is an ordinary one, whose first block strides.
    """

    kind: ClassVar[str] = "biglittle"
    stages: tuple[Stage, ...]
    alpha: int = 2
    beta: int = 4
    stem_channels: int = 64
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        self._check_stages()
        self._check_whole(alpha=1, beta=1, stem_channels=1, num_classes=0, in_channels=1)
        for i, stage in enumerate(self.stages[:-1], 1):
            if stage.depth < 2:
                raise UserError(f"arch: stage {i}: depth is {stage.depth}; accepted: 2 or more, for two branches")
            for name in ("planes", "width"):
                self._check_divides(f"stage {i}: {name}", getattr(stage, name))
            self.little(stage)
        self._check_divides("stem_channels", self.stem_channels)

    def _check_divides(self, what: str, value: int) -> None:
        if value % self.alpha:
            raise UserError(f"arch: {what} {value} is not divisible by alpha {self.alpha}; accepted: a multiple of it")

    @property
    def stem_stride(self) -> int:
        return 4

    def big(self, stage: Stage) -> Stage:
        """The Big branch of a stage."""
        return Stage(stage.depth - 1, stage.planes, stage.width, stage.cardinality, stage.scale, 2)

    def little(self, stage: Stage) -> Stage:
        """The Little branch of a stage: `1 / alpha` of its channels, `1 / beta` of its blocks less the last."""
        depth = max(1, stage.depth // self.beta - 1)
        return Stage(depth, stage.planes // self.alpha, stage.width // self.alpha, stage.cardinality, stage.scale)

    def _hashed(self) -> dict[str, Any]:
        data = BaseArch._hashed(self)
        data.pop("beta", None)  # many of them give the same number of blocks
        return data | {"little": [asdict(self.little(s)) for s in self.stages[:-1]]}
