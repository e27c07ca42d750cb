"""The named spaces. Each searches some dimensions over one of four bases.

A base has a skeleton (the fixed part of the networks) and choices (the values of each dimension).
"""

from __future__ import annotations

from res2net.errors import unknown
from res2net.named import PLANES
from space.skeleton import Skeleton
from space.space import Space

_SKELETONS = {
    # These networks train in minutes on a CPU, where time depends more on activations than on MACs. The stem is thin,
    # because it computes maps of full size. The first stage halves the size. Splits have 8, 16 and 32 channels. Strides
    # of 4, 2, 1 would be faster for the same MACs, but far less accurate.
    "micro": Skeleton(
        planes=(4, 8, 16),
        strides=(2, 2, 2),
        pattern=(1, 1, 1),
        width=128,
        depth=2,
        stem_channels=4,
        shortcut="avgpool",
    ),
    # These networks train fastest for their accuracy, among the bases that `studies/LOG.md` compares. The stem strides,
    # and stages have maps of 8, 4 and 2 pixels for images of 32: only the stem computes larger maps.
    "thin": Skeleton(
        planes=(8, 16, 32),
        strides=(2, 2, 2),
        pattern=(1, 2, 1),
        width=64,
        depth=1,
        stem="strided",
        stem_channels=8,
        shortcut="avgpool",
    ),
    "cifar": Skeleton(
        planes=PLANES[:3],
        strides=(1, 2, 2),
        pattern=(3, 3, 3),
        width=48,  # a third of the paper's width (6c24w, 4 GMACs): spaces get members below 300 MMACs
        depth=3,
        cardinality=6,
        first_block="conv",
        num_classes=100,
    ),
    "imagenet": Skeleton(
        planes=PLANES,
        strides=(1, 2, 2, 2),
        pattern=(3, 4, 6, 3),
        width=26,
        depth=3,
        stem="imagenet",
        num_classes=1000,
        image_size=224,
    ),
}
_CHOICES = {
    "micro": {
        "scale": (1, 2, 3, 4, 6, 8),
        "cardinality": (1, 2, 4, 8),
        "depth": (1, 2, 3, 4),
        "width": (64, 96, 128, 160),
    },
    "thin": {
        "scale": (1, 2, 3, 4, 6, 8),
        "cardinality": (1, 2, 4, 8),
        "depth": (1, 2, 3, 4),
        "width": (64, 96, 128, 160),
    },
    "cifar": {
        "scale": (1, 2, 4, 6, 8),
        "cardinality": (1, 2, 4, 6, 8),
        "depth": (1, 2, 3, 4),
        "width": (24, 48, 96, 144, 192),
    },
    "imagenet": {
        "scale": (1, 2, 4, 6, 8),
        "cardinality": (1, 2, 4, 8),
        "depth": (2, 3, 4),
        "width": (14, 18, 26, 32, 48, 64),
    },
}
_SEARCHED = {
    "scale": ("scale",),
    "scale_card": ("scale", "cardinality"),
    "scale_depth": ("scale", "depth"),
    "scale_card_depth": ("scale", "cardinality", "depth"),
    "scale_card_depth_width": ("scale", "cardinality", "depth", "width"),
}
BASES = tuple(_SKELETONS)
DEFAULT_BASE = "cifar"


def names() -> tuple[str, ...]:
    """Return the names of the named spaces."""
    return tuple(_SEARCHED)


def bases_like(base: str) -> tuple[str, ...]:
    """Return the bases with the same image size as this base."""
    size = skeleton(base).image_size
    return tuple(b for b, frame in _SKELETONS.items() if frame.image_size == size)


def skeleton(base: str) -> Skeleton:
    """Return the skeleton of a base. For an unknown base, raise `UserError` with the nearest name."""
    if base not in BASES:
        raise unknown("base", base, BASES)
    return _SKELETONS[base]


def named(name: str, base: str, per_stage: bool) -> Space:
    """Return the named space over a base. For an unknown name, raise `UserError` with the nearest name."""
    if name not in names():
        raise unknown("`space`", name, (*names(), "FILE.yaml"))
    frame = skeleton(base)
    return Space(name, base, frame, {d: _CHOICES[base][d] for d in _SEARCHED[name]}, per_stage)
