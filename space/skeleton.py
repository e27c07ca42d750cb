"""What the members of a space have in common, and the values of the dimensions that are not searched."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

from res2net.arch import Arch, Stage
from res2net.errors import UserError
from space.dimensions import DIMENSIONS, is_count

PER_STAGE_LISTS = ("planes", "strides", "pattern")


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A network with holes for scale, cardinality, depth and width.

    planes, strides: one a stage. pattern: blocks a stage, of which depth keeps the ratio: a depth of `d` is `d` blocks
    in the first stage and `d * pattern[i] / pattern[0]`, rounded, in stage `i` (ResNet-50's 3, 4, 6, 3 at depth 3).
    scale, cardinality, depth, width: the values of the dimensions that are not searched.
    width: channels of one split at 64 planes, all groups together (the paper's 6c24w is a width of 144).
    image_size: pixels a side of the images that costs are counted at, unless told otherwise.
    The others are the fields of `Arch` that they are named after.
    """

    planes: tuple[int, ...]
    strides: tuple[int, ...]
    pattern: tuple[int, ...]
    width: int
    depth: int
    scale: int = 4
    cardinality: int = 1
    stem: str = "cifar"
    stem_channels: int = 64
    first_block: str = "pool"
    shortcut: str = "conv"
    se: int = 0
    num_classes: int = 10
    image_size: int = 32
    in_channels: int = 3

    def __post_init__(self) -> None:
        for name in PER_STAGE_LISTS:
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not values or not all(map(is_count, values)):
                raise UserError(f"{name} is {values!r}; accepted: a list of whole numbers of at least 1, one a stage")
            if len(values) != len(self.planes):
                raise UserError(
                    f"{name} has {len(values)} values; accepted: {len(self.planes)}, one a stage as in planes"
                )
            object.__setattr__(self, name, tuple(values))
        for name in (*DIMENSIONS, "image_size"):
            if not is_count(getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)!r}; accepted: a whole number of at least 1")
        self.arch(tuple(self.stage(i, 1, 1, 1, 64) for i in range(len(self.planes))))  # Arch checks the other fields

    def blocks(self, depth: int, stage: int) -> int:
        """Blocks of a stage (counted from 0) at a depth: the pattern's ratio, rounded to the nearest, at least 1."""
        first = self.pattern[0]
        return max(1, (2 * depth * self.pattern[stage] + first) // (2 * first))

    def stage(self, stage: int, scale: int, cardinality: int, blocks: int, width: int) -> Stage:
        """The stage (counted from 0) with those values, repaired: see `repaired`."""
        return _stage(self.planes[stage], self.strides[stage], scale, cardinality, blocks, width)

    def arch(self, stages: tuple[Stage, ...]) -> Arch:
        """The network of those stages in canonical form."""
        return Arch(
            stages,
            self.stem,
            self.stem_channels,
            self.first_block,
            self.shortcut,
            self.se,
            self.num_classes,
            self.in_channels,
        ).canonical()


SKELETON_KEYS = tuple(f.name for f in fields(Skeleton))


def repaired(width: int, cardinality: int) -> int:
    """The largest multiple of the cardinality that is not wider, at least the cardinality.

    Down, not to the nearest: a member is then never wider than the widest one, of which a supernet cuts it out.
    """
    return max(cardinality, width - width % cardinality)


@lru_cache(maxsize=1 << 16)
def _stage(planes: int, stride: int, scale: int, cardinality: int, blocks: int, width: int) -> Stage:
    return Stage(blocks, planes, repaired(planes * width // 64, cardinality), cardinality, scale, stride)
