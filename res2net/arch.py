"""What a Res2Net is: a frozen, validated, hashable value that can be written as JSON. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from res2net.errors import UserError, unknown

EXPANSION = 4
RESIDUAL = "residual"
STEMS = ("imagenet", "deep", "cifar")
FIRST_BLOCKS = ("pool", "conv")
SHORTCUTS = ("conv", "avgpool")


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of blocks at one resolution.

    A block maps its input to `width * scale` channels (1x1), treats them as `scale` splits of `width` channels with
    `cardinality` groups each (3x3, hierarchically, section 3.1), and maps them to `4 * planes` channels (1x1).
    """

    depth: int
    planes: int
    width: int
    cardinality: int = 1
    scale: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"stage: {field.name} is {value!r}; accepted: a whole number of at least 1")
        if self.width % self.cardinality:
            raise UserError(
                f"stage: width {self.width} is not divisible by cardinality {self.cardinality}; "
                f"accepted: a multiple of {self.cardinality}"
            )

    @property
    def channels(self) -> int:
        """Channels that the stage puts out."""
        return EXPANSION * self.planes

    @property
    def convs_per_block(self) -> int:
        """3x3 convolutions of a block: one split passes through where there are several (equation 1)."""
        return max(1, self.scale - 1)


class BaseArch:
    """What an architecture of every kind has besides its fields: a JSON round trip, a canonical key."""

    __slots__ = ()
    kind: ClassVar[str]
    stages: tuple[Stage, ...]
    num_classes: int
    in_channels: int
    stem_stride: int

    @property
    def num_features(self) -> int:
        """Channels of the last stage, which the classifier reads."""
        return self.stages[-1].channels

    def canonical(self) -> Self:
        """The same function with the choices that do nothing set to their defaults."""
        return self

    def key(self) -> str:
        """A short name of the function computed: equal for two descriptions of one network.

        Defaults are left out of what is hashed, so a field added later does not change the keys of earlier networks.
        """
        text = json.dumps(self.canonical()._hashed(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _hashed(self) -> dict[str, Any]:
        """What the key is made of."""
        data = _changed(self) | {"stages": [_changed(s) for s in self.stages]}
        return data if self.kind == RESIDUAL else data | {"kind": self.kind}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON; `kind` only where it is not the residual line."""
        data = {"kind": self.kind} | asdict(self) | {"stages": [asdict(s) for s in self.stages]}
        if self.kind == RESIDUAL:
            del data["kind"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`; `UserError` for a key that is unknown or missing, or a value that cannot be."""
        if isinstance(data, Mapping) and "kind" in data:
            if data["kind"] != cls.kind:
                raise unknown("arch: kind", data["kind"], (cls.kind,))
            data = {key: value for key, value in data.items() if key != "kind"}
        values = _checked(cls, data, "arch")
        if not isinstance(values["stages"], list | tuple):
            raise UserError(f"arch: stages is {values['stages']!r}; accepted: a list of stages")
        values["stages"] = tuple(_stage(s, f"stage {i}") for i, s in enumerate(values["stages"], 1))
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.from_dict(read_json(text))

    def __str__(self) -> str:
        """Stage by stage, depth, width of a split, scale and cardinality: `3x[26w 4s 1c] 4x[52w 4s 1c]`."""
        stages = " ".join(f"{s.depth}x[{s.width}w {s.scale}s {s.cardinality}c]" for s in self.stages)
        return stages if self.kind == RESIDUAL else f"{self.kind} {stages}"

    def _check_stages(self) -> None:
        """One stage or more, as a tuple."""
        object.__setattr__(self, "stages", tuple(self.stages) if isinstance(self.stages, list | tuple) else ())
        if not self.stages or not all(isinstance(s, Stage) for s in self.stages):
            raise UserError(f"arch: stages is {self.stages!r}; accepted: one or more stages")

    def _check_whole(self, **least: int) -> None:
        """Fields that are whole numbers, each with the least that is accepted."""
        for name, limit in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < limit:
                raise UserError(f"arch: {name} is {value!r}; accepted: a whole number of at least {limit}")


@dataclass(frozen=True, slots=True)
class Arch(BaseArch):
    """A whole network of the residual line.

    stem: `imagenet` (7x7 stride 2 and max-pool), `deep` (three 3x3 and max-pool, v1b), `cifar` (one 3x3, stride 1).
    first_block: of each stage with several splits, `pool` (the split that passes through is average-pooled, as
    released) or `conv` (all splits are convolved, as the sizes of Table 4 need).
    shortcut: `conv` (strided 1x1) or `avgpool` (average-pool, then 1x1, v1b).
    se: squeeze-and-excitation's reduction (16 as usual), 0 for none.
    """

    kind: ClassVar[str] = RESIDUAL
    stages: tuple[Stage, ...]
    stem: str = "imagenet"
    stem_channels: int = 64
    first_block: str = "pool"
    shortcut: str = "conv"
    se: int = 0
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        self._check_stages()
        for name, accepted in (("stem", STEMS), ("first_block", FIRST_BLOCKS), ("shortcut", SHORTCUTS)):
            if getattr(self, name) not in accepted:
                raise unknown(f"arch: {name}", getattr(self, name), accepted)
        self._check_whole(stem_channels=1, se=0, num_classes=0, in_channels=1)
        if self.stem == "deep" and self.stem_channels % 2:
            raise UserError(f"arch: stem_channels {self.stem_channels} is odd; accepted: even, for the deep stem")

    @property
    def stem_stride(self) -> int:
        return 1 if self.stem == "cifar" else 4

    def canonical(self) -> Arch:
        """The same function with the choices that do nothing set to their defaults.

        It computes the same, but its weights may have other names: take it before training, as spaces do.
        """
        changes: dict[str, Any] = {}
        if all(s.scale == 1 for s in self.stages):
            changes["first_block"] = "pool"
        if all(s.stride == 1 for s in self.stages):
            changes["shortcut"] = "conv"
        return replace(self, **changes) if changes else self

    def _hashed(self) -> dict[str, Any]:
        data = BaseArch._hashed(self)
        if self.se:  # different reductions of few channels can come to the same hidden channels
            data["se"] = [se_channels(s.channels, self.se) for s in self.stages]
        return data

    def __str__(self) -> str:
        return BaseArch.__str__(self) + (f" se{self.se}" if self.se else "")


def _stage(data: object, where: str) -> Stage:
    values = _checked(Stage, data, where)
    try:
        return Stage(**values)
    except UserError as error:
        raise UserError(str(error).replace("stage", where, 1)) from None


def _checked(cls: type, data: object, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: {data!r} is not a table of keys; accepted keys: {', '.join(_names(cls))}")
    for key in data:
        if key not in _names(cls):
            raise unknown(f"{where}: key", key, _names(cls))
    required = [f.name for f in fields(cls) if f.default is MISSING]
    for key in required:
        if key not in data:
            raise UserError(f"{where}: key {key!r} is missing; required: {', '.join(required)}")
    return dict(data)


def _changed(value: Stage | BaseArch) -> dict[str, Any]:
    """The fields that differ from their defaults (or have none)."""
    return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}


def read_json(text: str) -> Any:
    """The data of a JSON text; `UserError` for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"arch: not JSON ({error})") from None


def _names(cls: type) -> list[str]:
    return [f.name for f in fields(cls)]


def se_channels(channels: int, reduction: int) -> int:
    """Hidden channels of squeeze-and-excitation: a multiple of 8, at least 8, as timm rounds it."""
    return max(8, int(channels / reduction + 4) // 8 * 8)
