"""Architectures as frozen, validated, hashable values that can be written as JSON.

This module does not import torch. Sections, tables and equations are those of the Res2Net paper (arXiv 1904.01169).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from res2net.errors import UserError, unknown
from res2net.heads.value import Head

EXPANSION = 4
RESIDUAL = "residual"
STEMS = ("imagenet", "deep", "cifar", "strided")
STEM_STRIDES = {"imagenet": 4, "deep": 4, "cifar": 1, "strided": 2}
FIRST_BLOCKS = ("pool", "conv")
SHORTCUTS = ("conv", "avgpool")


@dataclass(frozen=True, slots=True)
class Stage:
    """A sequence of `depth` blocks at one resolution. The first block applies `stride`.

    A block has three layers (section 3.1). A 1x1 convolution outputs `scale` splits of `width` channels each. 3x3
    convolutions with `cardinality` groups then map the splits one after the other. A last 1x1 convolution outputs
    `4 * planes` channels.
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
        """Output channels of the stage."""
        return EXPANSION * self.planes

    @property
    def convs_per_block(self) -> int:
        """Number of 3x3 convolutions in a block. With several splits, one split has no convolution (equation 1)."""
        return max(1, self.scale - 1)


class BaseArch:
    """The base class of architectures. It reads and writes JSON, computes the key of a network and checks fields.

    Each kind of network (residual, dla, biglittle) has its own subclass.
    """

    __slots__ = ()
    # Every subclass is a dataclass. This annotation lets type checkers accept `dataclasses.replace` for all of them.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    kind: ClassVar[str]
    stages: tuple[Stage, ...]
    num_classes: int
    in_channels: int
    head: Head | None = None  # replaces the classifier; kinds of network without this field have no head

    @property
    def stem_stride(self) -> int:
        """Stride of the stem's output map."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        """Channels of the last stage: the classifier's input."""
        return self.stages[-1].channels

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the stem's map and of each stage's map, in image pixels, without an output stride."""
        own = [self.stem_stride]
        for stage in self.stages:
            own.append(own[-1] * stage.stride)
        return tuple(own)

    @property
    def head_kind(self) -> str | None:
        """The kind of the head. None: a classifier."""
        return None if self.head is None else self.head.kind

    @property
    def output_stride(self) -> int | None:
        """Stride of the last map that the head asks for. None: the network's own stride."""
        return None if self.head is None else self.head.output_stride

    @property
    def classifier_size(self) -> int:
        """Number of outputs of the classifier: 0 if a head takes its place."""
        return 0 if self.head is not None else self.num_classes

    def canonical(self) -> Self:
        """Return an equivalent architecture in which every field without an effect has its default."""
        return self

    def key(self) -> str:
        """Return a hash of the network. All architectures that describe the same network have the same key.

        Fields with their default value are not hashed, so a new field does not change the keys of earlier networks.
        """
        text = json.dumps(self.canonical()._hashed(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _hashed(self) -> dict[str, Any]:
        """Return the data that `key` hashes."""
        data = _changed(self) | {"stages": [_changed(s) for s in self.stages]}
        if self.head is not None:
            data["head"] = self.head.to_dict()
        return data if self.kind == RESIDUAL else data | {"kind": self.kind}

    def to_dict(self) -> dict[str, Any]:
        """Return the architecture as a dictionary of plain lists, numbers and strings. For an `Arch`, omit "kind"."""
        data = {"kind": self.kind} | asdict(self) | {"stages": [asdict(s) for s in self.stages]}
        if self.head is not None:
            data["head"] = self.head.to_dict()
        else:  # omit the key, as versions without heads did
            data.pop("head", None)
        if self.kind == RESIDUAL:
            del data["kind"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the architecture that `to_dict` wrote. Raise `UserError` for wrong values or keys."""
        if isinstance(data, Mapping) and "kind" in data:
            if data["kind"] != cls.kind:
                raise unknown("arch: kind", data["kind"], (cls.kind,))
            data = {key: value for key, value in data.items() if key != "kind"}
        values = _checked(cls, data, "arch")
        if not isinstance(values["stages"], list | tuple):
            raise UserError(f"arch: stages is {values['stages']!r}; accepted: a list of stages")
        values["stages"] = tuple(_stage(s, f"stage {i}") for i, s in enumerate(values["stages"], 1))
        if values.get("head") is not None:
            values["head"] = Head.from_dict(values["head"])
        return cls(**values)

    def to_json(self) -> str:
        """Return the architecture as JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the architecture that `to_json` wrote."""
        return cls.from_dict(read_json(text))

    def __str__(self) -> str:
        """Return depth, width, scale and cardinality of each stage: `3x[26w 4s 1c] 4x[52w 4s 1c]`."""
        stages = " ".join(f"{s.depth}x[{s.width}w {s.scale}s {s.cardinality}c]" for s in self.stages)
        stages += f" se{se}" if (se := getattr(self, "se", 0)) else ""
        text = stages if self.kind == RESIDUAL else f"{self.kind} {stages}"
        return text if self.head is None else f"{text} + {self.head.kind}"

    def _check_stages(self) -> None:
        """Turn the stages into a tuple. Raise `UserError` unless there is at least one stage."""
        # A frozen dataclass rejects plain assignment, even in its own methods.
        object.__setattr__(self, "stages", tuple(self.stages) if isinstance(self.stages, list | tuple) else ())
        if not self.stages or not all(isinstance(s, Stage) for s in self.stages):
            raise UserError(f"arch: stages is {self.stages!r}; accepted: one or more stages")

    def _check_head(self) -> None:
        """Raise `UserError` for a head that is not a `Head`, or that cannot have `num_classes` outputs."""
        if self.head is not None:
            if not isinstance(self.head, Head):
                raise UserError(f"arch: head is {self.head!r}; accepted: a head of res2net.heads, or None")
            self.head.check(self.num_classes)

    def _check_own_stride(self) -> None:
        """Raise `UserError` for a head that sets an output stride: only `Res2Net` supports output strides."""
        if self.output_stride is not None:
            raise UserError(f"arch: head: output_stride is {self.output_stride}; accepted for kind {self.kind}: null")

    def _check_whole(self, **least: int) -> None:
        """Raise `UserError` unless each named field is a whole number of at least the given limit."""
        for name, limit in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < limit:
                raise UserError(f"arch: {name} is {value!r}; accepted: a whole number of at least {limit}")


@dataclass(frozen=True, slots=True)
class Arch(BaseArch):
    """An architecture of the kind "residual": ResNet, ResNeXt, Res2Net and their relatives.

    stem: the layers before the first stage.
        `imagenet`: a 7x7 convolution of stride 2, then a max-pool.
        `deep`: three 3x3 convolutions, then a max-pool, as in the released variant v1b.
        `cifar`: one 3x3 convolution of stride 1.
        `strided`: one 3x3 convolution of stride 2, for small images and small budgets.
    first_block: the treatment of the last split in each stage's first block, if the block has several splits.
        `pool`: average-pool this split and convolve the others, as in the released code.
        `conv`: convolve all splits. Only this choice gives the sizes of Table 4.
    shortcut: the projection in each stage's first block.
        `conv`: a strided 1x1 convolution.
        `avgpool`: an average pool, then a 1x1 convolution, as in v1b.
    se: the reduction of squeeze-and-excitation, usually 16. 0 means no squeeze-and-excitation.
    head: the head in place of the classifier, for tasks other than classification.
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
    head: Head | None = None

    def __post_init__(self) -> None:
        self._check_stages()
        for name, accepted in (("stem", STEMS), ("first_block", FIRST_BLOCKS), ("shortcut", SHORTCUTS)):
            if getattr(self, name) not in accepted:
                raise unknown(f"arch: {name}", getattr(self, name), accepted)
        self._check_whole(stem_channels=1, se=0, num_classes=0, in_channels=1)
        self._check_head()
        if self.stem == "deep" and self.stem_channels % 2:
            raise UserError(
                f"arch: stem_channels {self.stem_channels} is odd; accepted: an even number, for the deep stem"
            )

    @property
    def stem_stride(self) -> int:
        return STEM_STRIDES[self.stem]

    def canonical(self) -> Arch:
        """Return an equivalent architecture in which every field without an effect has its default.

        The state-dict keys of the two networks may differ. So make an architecture canonical before training it, as
        spaces do.
        """
        changes: dict[str, Any] = {}
        if all(s.scale == 1 for s in self.stages):
            changes["first_block"] = "pool"
        if all(s.stride == 1 for s in self.stages):
            changes["shortcut"] = "conv"
        if self.head is not None and self.head.output_stride == self.strides[-1]:
            changes["head"] = replace(self.head, output_stride=None)
        return replace(self, **changes) if changes else self

    def _hashed(self) -> dict[str, Any]:
        data = BaseArch._hashed(self)
        if self.se:  # several reductions may give equal hidden channels, so hash the hidden channels instead
            data["se"] = [se_channels(s.channels, self.se) for s in self.stages]
        return data


def _stage(data: object, where: str) -> Stage:
    """Return the stage that a table of keys describes. `where` names the stage in errors."""
    values = _checked(Stage, data, where)
    try:
        return Stage(**values)
    except UserError as error:  # a `Stage` does not know its number, so add the number to the error here
        raise UserError(str(error).replace("stage", where, 1)) from None


def _checked(cls: type, data: object, where: str) -> dict[str, Any]:
    """Return the data as arguments of the dataclass. Raise `UserError` for an unknown or missing key."""
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
    """Return the fields without a default, and the fields with a value other than the default."""
    return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}


def read_json(text: str) -> Any:
    """Return the data of a JSON text. Raise `UserError` if the text is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"arch: not JSON ({error})") from None


def _names(cls: type) -> list[str]:
    """Return the names of a dataclass's fields."""
    return [f.name for f in fields(cls)]


def se_channels(channels: int, reduction: int) -> int:
    """Return squeeze-and-excitation's number of hidden channels: a multiple of 8, at least 8, rounded as in timm."""
    return max(8, int(channels / reduction + 4) // 8 * 8)
