"""The pieces of a network: its stem, its blocks and its head, as values. Does not import torch.

Two blocks with equal layers and equal input maps are one piece. So a piece is measured once, and its time is used for
all networks that contain it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache

from res2net.arch import RESIDUAL, Arch, BaseArch, Stage, se_channels
from res2net.errors import UserError, unknown
from res2net.layer_cost import down, has_projection
from res2net.residual_cost import stem as stem_cost

KINDS = ("stem", "block", "head")


@dataclass(frozen=True, slots=True)
class Piece:
    """The stem, one block, or the head of a network. Fields without an effect on the layers have their defaults.

    kind: `stem`, `block` or `head`. The head is the mean over the last map, and the classifier.
    size: side length of the input map in pixels.
    c_in, channels: channels of the input and of the output. For the head, `channels` is the number of classes.
    stem: the field of `Arch`, for a stem.
    width, scale, cardinality: the fields of `Stage`, for a block.
    stride: the block's own stride: the stage's stride for a first block, 1 for a later block.
    first: whether the splits are convolved independently, as in a stage's first block. False for a scale of 1.
    first_block: the field of `Arch` if `first`, else empty.
    shortcut: the field of `Arch` for a block with a projection, else empty.
    se: hidden channels of squeeze-and-excitation, or 0.
    """

    kind: str
    size: int
    c_in: int
    channels: int
    stem: str = ""
    width: int = 0
    scale: int = 0
    cardinality: int = 0
    stride: int = 1
    first: bool = False
    first_block: str = ""
    shortcut: str = ""
    se: int = 0

    @property
    def key(self) -> str:
        """The piece as text: the kind, then every field that differs from its default (`block size=8 c_in=64 ...`)."""
        words = [f"{f.name}={_plain(v)}" for f in fields(self)[1:] if (v := getattr(self, f.name)) != f.default]
        return " ".join((self.kind, *words))

    @classmethod
    def from_key(cls, key: str) -> Piece:
        """Return the piece of a key. Raise `UserError` for a text that is no key."""
        kind, *words = key.split(" ")
        if kind not in KINDS:
            raise unknown("piece: kind", kind, KINDS)
        known = {f.name: f for f in fields(cls)[1:]}
        values = {}
        for word in words:
            name, _, text = word.partition("=")
            if name not in known:
                raise unknown("piece: field", name, known)
            is_text = isinstance(known[name].default, str)
            if not is_text and not text.isdecimal():
                raise UserError(f"piece: {name} is {text!r}; accepted: a whole number")
            values[name] = text if is_text else bool(int(text)) if name == "first" else int(text)
        missing = [name for name, f in known.items() if f.default is MISSING and name not in values]
        if missing:
            raise UserError(f"piece: field {missing[0]!r} is missing in {key!r}")
        return cls(kind, **values)


def _plain(value: object) -> object:
    return int(value) if isinstance(value, bool) else value


def sequence(arch: BaseArch, image_size: int) -> tuple[Piece, ...]:
    """Return the pieces of a network in the order of the forward pass: stem, blocks, head.

    Raise `UserError` for a kind of network other than "residual".
    """
    if not isinstance(arch, Arch):
        raise UserError(f"arch: kind is {arch.kind!r}; accepted: {RESIDUAL}, for a latency from a table")
    if arch.head is not None:
        raise UserError(f"arch: head is {arch.head.kind!r}; accepted: a classifier, for a latency from a table")
    arch = arch.canonical()
    size = stem_cost(arch, image_size)[1]
    out = [Piece("stem", image_size, arch.in_channels, arch.stem_channels, arch.stem)]
    c_in = arch.stem_channels
    for stage in arch.stages:
        first, later = _stage(stage, c_in, size, arch.first_block, arch.shortcut, arch.se)
        out += [first, *[later] * (stage.depth - 1)]
        size, c_in = down(size, stage.stride), stage.channels
    out.append(Piece("head", size, c_in, arch.num_classes))
    return tuple(out)


def pieces(arch: BaseArch, image_size: int) -> Counter[Piece]:
    """Return the pieces of a network, and how often the network contains each.

    Raise `UserError` for a kind of network other than "residual".
    """
    return Counter(sequence(arch, image_size))


# The networks of a search share stages, and building a piece takes longer than its lookup.
@lru_cache(maxsize=1 << 16)
def _stage(stage: Stage, c_in: int, size: int, first_block: str, shortcut: str, reduction: int) -> tuple[Piece, Piece]:
    """Return the first block and a later block of a stage. The input map is `size` x `size`."""
    shape = (stage.width, stage.scale, stage.cardinality)
    se = se_channels(stage.channels, reduction) if reduction else 0
    splits, projects = stage.scale > 1, has_projection(stage, c_in)
    first = Piece(
        "block",
        size,
        c_in,
        stage.channels,
        "",
        *shape,
        stage.stride,
        splits,
        first_block if splits else "",
        shortcut if projects else "",
        se,
    )
    later = Piece("block", down(size, stage.stride), stage.channels, stage.channels, "", *shape, se=se)
    return first, later
