"""Spaces that users write down: one YAML file each (`example.yaml` shows every key)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from res2net.errors import UserError
from space.catalogue import DEFAULT_BASE, skeleton
from space.dimensions import STAGE_DIMENSIONS, checked_keys
from space.skeleton import SKELETON_KEYS, Skeleton
from space.space import Space

OVERRIDES = tuple(key for key in SKELETON_KEYS if key not in STAGE_DIMENSIONS)
KEYS = ("name", "base", "per_stage", "choices", "defaults", *OVERRIDES)


def load(path: Path, base: str | None, per_stage: bool) -> Space:
    """The space of a file, whose own `base` and `per_stage` win; `UserError` names the file, the key and the value."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--space {path}: cannot be read ({error.strerror}); accepted: a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--space {path}: not YAML ({' '.join(str(error).split())})") from None
    try:
        return _space(data, path.stem, base, per_stage)
    except UserError as error:
        raise UserError(f"--space {path}: {error}") from None


def _space(data: object, stem: str, base: str | None, per_stage: bool) -> Space:
    data = checked_keys(data, KEYS, "space", required=("choices",))
    chosen: str = data.get("base", DEFAULT_BASE if base is None else base)
    name = data.get("name", re.sub(r"[^\w.-]", "_", stem))
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"name is {name!r}; accepted: letters, digits and _ . - (it may name a folder)")
    return Space(name, chosen, _skeleton(data, chosen), data["choices"], data.get("per_stage", per_stage))


def _skeleton(data: dict[str, Any], base: str) -> Skeleton:
    """The base's skeleton with what the file says otherwise."""
    frame = skeleton(base)
    changes = {key: data[key] for key in OVERRIDES if key in data}
    planes = changes.get("planes", frame.planes)
    if "pattern" not in data and isinstance(planes, list) and len(planes) != len(frame.pattern):
        changes["pattern"] = [1] * len(planes)  # other stages than the base's: its ratio says nothing about them
    return replace(frame, **changes, **checked_keys(data.get("defaults", {}), STAGE_DIMENSIONS, "defaults"))
