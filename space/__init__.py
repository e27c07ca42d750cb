"""Which networks are allowed: the spaces that a search chooses from. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from space.catalogue import BASES, DEFAULT_BASE, named, names
from space.dimensions import DIMENSIONS
from space.skeleton import Skeleton
from space.space import Space
from space.yaml_file import load

__all__ = ["BASES", "DIMENSIONS", "Skeleton", "Space", "get", "names"]


def get(
    name_or_yaml: str | Path,
    base: str | None = None,
    per_stage: bool = False,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    in_channels: int | None = None,
) -> Space:
    """The space of that name (see `names`), or of a YAML file: a name with a path separator or ending in .yaml or .yml.

    base: one of `BASES`, `cifar` if None. per_stage: each stage has its own parameters. What a file itself says about
    these two wins. num_classes, image_size, in_channels: of the data set, instead of the base's or the file's.
    `UserError` for what does not exist or cannot be.
    """
    text = os.fspath(name_or_yaml)
    if isinstance(name_or_yaml, Path) or text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        space = load(Path(text).expanduser(), base, per_stage)
    else:
        space = named(text, base or DEFAULT_BASE, per_stage)
    known = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels}
    return replace(space, skeleton=replace(space.skeleton, **{k: v for k, v in known.items() if v is not None}))
