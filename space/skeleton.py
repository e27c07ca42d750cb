"""The common part of all members of a space, and the stages that chosen values give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

from res2net.arch import Arch, Stage
from res2net.errors import UserError
from res2net.heads.value import Head
from space.dimensions import DIMENSIONS, NETWORK_DIMENSIONS, STAGE_DIMENSIONS, is_whole

PER_STAGE_LISTS = ("planes", "strides", "pattern")


class Slot(NamedTuple):
    """The fixed sizes of one stage.

    pattern: number of blocks at a depth of `pattern_unit`. Other depths give proportional numbers.
    """

    planes: int
    stride: int
    pattern: int
    pattern_unit: int

    def blocks(self, depth: int) -> int:
        """Return the number of blocks at a depth: `depth * pattern / pattern_unit`, rounded, at least 1."""
        # Use integers, because `round` rounds halves to even, and float quotients are inexact for large depths.
        return max(1, (2 * depth * self.pattern + self.pattern_unit) // (2 * self.pattern_unit))

    def counted(self) -> Slot:
        """Return a copy of this slot for which the depth equals the number of blocks."""
        return self._replace(pattern=1, pattern_unit=1)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The description of a network apart from its searched dimensions.

    planes: planes of each stage. A stage has 4 times as many output channels.
    strides: stride of each stage.
    pattern: relative number of blocks in each stage. A depth of `d` gives `d` blocks in the first stage and
        `d * pattern[i] / pattern[0]`, rounded, in stage `i`. ResNet-50 has the pattern 3, 4, 6, 3 and depth 3.
    width: channels of one split at 64 planes, over all groups. The paper's 6c24w is a width of 144.
    depth: number of blocks in the first stage.
    image_size: side length in pixels of the images for which costs are counted.

    The other fields are those of `Arch` and `Stage`. A space that searches a dimension ignores the field of that name.
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
    head: Head | None = None

    def __post_init__(self) -> None:
        for name in PER_STAGE_LISTS:
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not values or not all(is_whole(v, 1) for v in values):
                accepted = "a list of whole numbers of at least 1, one for each stage"
                raise UserError(f"{name} is {values!r}; accepted: {accepted}")
            if len(values) != len(self.planes):
                raise UserError(
                    f"{name} has {len(values)} values; accepted: {len(self.planes)}, one for each stage, as in planes"
                )
            object.__setattr__(self, name, tuple(values))
        for name, least in (*((d.name, d.least) for d in DIMENSIONS.values()), ("image_size", 1)):
            if not is_whole(getattr(self, name), least):
                raise UserError(f"{name} is {getattr(self, name)!r}; accepted: a whole number of at least {least}")
        # `Arch` checks the other fields.
        self.network({name: dimension.least for name, dimension in DIMENSIONS.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return the skeleton as plain lists, numbers and strings, for JSON."""
        out = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.head is None:
            del out["head"]
        else:
            out["head"] = self.head.to_dict()
        return out

    @property
    def fixed(self) -> dict[str, int]:
        """Return the value that each dimension has in spaces that do not search it."""
        return {name: getattr(self, name) for name in DIMENSIONS}

    @property
    def frame(self) -> dict[str, Any]:
        """Return the fields of `Arch` that the skeleton sets (all but the stages)."""
        return {name: getattr(self, name) for name in _FRAME}

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Return the fixed sizes of each stage."""
        unit = self.pattern[0]
        return tuple(Slot(*sizes, unit) for sizes in zip(self.planes, self.strides, self.pattern, strict=True))

    def arch(self, stages: tuple[Stage, ...], **whole: int) -> Arch:
        """Return the canonical network of the stages. `whole` replaces values of whole-network dimensions."""
        return Arch(stages, **{**self.frame, **whole}).canonical()

    def network(self, values: Mapping[str, int]) -> Arch:
        """Return the canonical network with these values in all stages. Missing dimensions have their fixed values."""
        values = {**self.fixed, **values}
        stages = tuple(stage(slot, *(values[name] for name in STAGE_DIMENSIONS)) for slot in self.slots)
        return self.arch(stages, **{name: values[name] for name in NETWORK_DIMENSIONS})


SKELETON_KEYS = tuple(f.name for f in fields(Skeleton))
_FRAME = tuple(f.name for f in fields(Arch) if f.name in SKELETON_KEYS)


# A search meets the same few stages again and again. The cache avoids repeated repair and validation.
@lru_cache(maxsize=1 << 16)
def stage(slot: Slot, *values: int) -> Stage:
    """Return the stage with these values, in the order of `STAGE_DIMENSIONS`.

    The depth is converted to blocks by the slot's pattern. The width is scaled from 64 planes to the stage's planes,
    then `repaired`.
    """
    chosen = dict(zip(STAGE_DIMENSIONS, values, strict=True))
    chosen["depth"] = slot.blocks(chosen["depth"])
    chosen["width"] = repaired(slot.planes * chosen["width"] // 64, chosen["cardinality"])
    return Stage(planes=slot.planes, stride=slot.stride, **chosen)


def repaired(width: int, cardinality: int) -> int:
    """Return the width rounded down to a multiple of the cardinality, at least the cardinality.

    Do not round to the nearest multiple: the result could exceed the width of the widest member. A supernet has no
    weights for such a width.
    """
    return max(cardinality, width - width % cardinality)
