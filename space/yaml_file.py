"""Read a space from a YAML file. `example.yaml` shows every key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from res2net.errors import UserError
from space.catalogue import skeleton
from space.dimensions import STAGE_DIMENSIONS, checked_keys
from space.skeleton import SKELETON_KEYS, Skeleton
from space.space import Space

# The keys of a file that replace fields of the skeleton. Stage dimensions are keys of `defaults` instead.
OVERRIDES = tuple(key for key in SKELETON_KEYS if key not in (*STAGE_DIMENSIONS, "head"))  # the task sets the head
KEYS = ("name", "base", "per_stage", "choices", "defaults", *OVERRIDES)


def load(path: Path, base: str, per_stage: bool) -> Space:
    """Return the space of a YAML file. The file's own `base` and `per_stage` take precedence over the arguments.

    Raise `UserError` for an invalid file. The error names the file, the key and the value.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"`space` {path}: cannot be read ({error.strerror}); accepted: a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"`space` {path}: not YAML ({' '.join(str(error).split())})") from None
    try:
        return _space(data, path.stem, base, per_stage)
    except UserError as error:
        raise UserError(f"`space` {path}: {error}") from None


def _space(data: object, stem: str, base: str, per_stage: bool) -> Space:
    data = checked_keys(data, KEYS, "space", required=("choices",))
    name = data.get("name", re.sub(r"[^\w.-]", "_", stem))
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"name is {name!r}; accepted: letters, digits and _ . - (it may name a folder)")
    base = data.get("base", base)
    return Space(name, base, _changed(skeleton(base), data), data["choices"], data.get("per_stage", per_stage))


def _changed(frame: Skeleton, data: Mapping[str, Any]) -> Skeleton:
    """Return the base's skeleton with the values that the file replaces."""
    changes = {key: data[key] for key in OVERRIDES if key in data}
    planes = changes.get("planes", frame.planes)
    if "pattern" not in data and isinstance(planes, list) and len(planes) != len(frame.pattern):
        # The base's pattern does not fit, because the file has another number of stages. Use equal depths.
        changes["pattern"] = [1] * len(planes)
    return replace(frame, **changes, **checked_keys(data.get("defaults", {}), STAGE_DIMENSIONS, "defaults"))
