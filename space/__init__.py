"""Spaces: the sets of networks that a search chooses from. This package does not import torch."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from res2net.errors import UserError, unknown
from space.catalogue import BASES, DEFAULT_BASE, bases_like, named, names
from space.dimensions import DIMENSIONS
from space.skeleton import Skeleton
from space.space import Space
from space.yaml_file import load

__all__ = ["BASES", "DIMENSIONS", "Skeleton", "Space", "bases_like", "get", "names"]


def get(
    name_or_yaml: str | Path,
    base: str | None = None,
    per_stage: bool = False,
    *,
    num_classes: int | None = None,
    image_size: int | None = None,
    in_channels: int | None = None,
) -> Space:
    """Return a named space (see `names`), or the space of a YAML file.

    name_or_yaml: the name of a space, or the path of a file. A string is a path if it contains a path separator or ends
        in .yaml or .yml.
    base: the base of the space, one of `BASES` (see `space.catalogue`). None: `cifar`. A key `base` in the file takes
        precedence.
    per_stage: whether each stage has its own parameters. A key `per_stage` in the file takes precedence.
    num_classes: number of classes of the data set. None: as in the base or the file.
    image_size: side length of the data set's images in pixels. None: as in the base or the file.
    in_channels: number of channels of the data set's images. None: as in the base or the file.

    Raise `UserError` for an unknown name, an unreadable file or an invalid space.
    """
    if base is None:
        base = DEFAULT_BASE
    elif base not in BASES:  # check now, because a key `base` in the file would hide the mistake
        raise unknown("`base`", base, BASES)
    text = os.fspath(name_or_yaml)
    if isinstance(name_or_yaml, Path) or text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        try:
            path = Path(text).expanduser()
        except RuntimeError:
            raise UserError(f"`space` {text}: starts at an unknown home; accepted: a YAML file") from None
        space = load(path, base, per_stage)
    else:
        space = named(text, base, per_stage)
    known = {"num_classes": num_classes, "image_size": image_size, "in_channels": in_channels}
    return replace(space, skeleton=replace(space.skeleton, **{k: v for k, v in known.items() if v is not None}))
