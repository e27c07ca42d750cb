"""What a Res2Net is: a frozen, validated, hashable value that can be written as JSON. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from res2net.errors import UserError, unknown

EXPANSION = 4
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


@dataclass(frozen=True, slots=True)
class Arch:
    """A whole network.

    stem: `imagenet` (7x7 stride 2 and max-pool), `deep` (three 3x3 and max-pool, v1b), `cifar` (one 3x3, stride 1).
    first_block: of each stage with several splits, `pool` (the split that passes through is average-pooled, as
    released) or `conv` (all splits are convolved, as the sizes of Table 4 need).
    shortcut: `conv` (strided 1x1) or `avgpool` (average-pool, then 1x1, v1b).
    se: squeeze-and-excitation's reduction (16 as usual), 0 for none.
    """

    stages: tuple[Stage, ...]
    stem: str = "imagenet"
    stem_channels: int = 64
    first_block: str = "pool"
    shortcut: str = "conv"
    se: int = 0
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages) if isinstance(self.stages, list | tuple) else ())
        if not self.stages or not all(isinstance(s, Stage) for s in self.stages):
            raise UserError(f"arch: stages is {self.stages!r}; accepted: one or more stages")
        for name, accepted in (("stem", STEMS), ("first_block", FIRST_BLOCKS), ("shortcut", SHORTCUTS)):
            if getattr(self, name) not in accepted:
                raise unknown(f"arch: {name}", getattr(self, name), accepted)
        for name, least in (("stem_channels", 1), ("se", 0), ("num_classes", 0), ("in_channels", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"arch: {name} is {value!r}; accepted: a whole number of at least {least}")
        if self.stem == "deep" and self.stem_channels % 2:
            raise UserError(f"arch: stem_channels {self.stem_channels} is odd; accepted: even, for the deep stem")

    @property
    def num_features(self) -> int:
        """Channels of the last stage, which the classifier reads."""
        return self.stages[-1].channels

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

    def key(self) -> str:
        """A short name of the function computed: equal for two descriptions of one network.

        Defaults are left out of what is hashed, so a field added later does not change the keys of earlier networks.
        """
        same = self.canonical()
        data: dict[str, Any] = _changed(same) | {"stages": [_changed(s) for s in same.stages]}
        if same.se:  # different reductions of few channels can come to the same hidden channels
            data["se"] = [se_channels(s.channels, same.se) for s in same.stages]
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON."""
        out = asdict(self)
        out["stages"] = [asdict(s) for s in self.stages]
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Arch:
        """The reverse of `to_dict`; `UserError` for a key that is unknown or missing, or a value that cannot be."""
        values = _checked(cls, data, "arch")
        if not isinstance(values["stages"], list | tuple):
            raise UserError(f"arch: stages is {values['stages']!r}; accepted: a list of stages")
        values["stages"] = tuple(_stage(s, f"stage {i}") for i, s in enumerate(values["stages"], 1))
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Arch:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"arch: not JSON ({error})") from None
        return cls.from_dict(data)

    def __str__(self) -> str:
        """Stage by stage, depth, width of a split, scale and cardinality: `3x[26w 4s 1c] 4x[52w 4s 1c]`."""
        stages = " ".join(f"{s.depth}x[{s.width}w {s.scale}s {s.cardinality}c]" for s in self.stages)
        return stages + (f" se{self.se}" if self.se else "")


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
    required = ("stages",) if cls is Arch else ("depth", "planes", "width")
    for key in required:
        if key not in data:
            raise UserError(f"{where}: key {key!r} is missing; required: {', '.join(required)}")
    return dict(data)


def _changed(value: Stage | Arch) -> dict[str, Any]:
    """The fields that differ from their defaults (or have none)."""
    return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}


def _names(cls: type) -> list[str]:
    return [f.name for f in fields(cls)]


def se_channels(channels: int, reduction: int) -> int:
    """Hidden channels of squeeze-and-excitation: a multiple of 8, at least 8, as timm rounds it."""
    return max(8, int(channels / reduction + 4) // 8 * 8)
