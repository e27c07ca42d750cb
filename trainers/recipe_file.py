"""Read a recipe file: YAML with keys and values. `trainers.recipes` describes its content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from res2net.errors import UserError, unknown


def read_values(path: Path, keys: Sequence[str], recipes: Sequence[str]) -> dict[str, Any]:
    """Return the keys and values of a recipe file. Raise `UserError` for an unknown key or a file that is no recipe.

    keys: accepted keys, besides `recipe`. recipes: names of recipes, for errors.
    """
    accepted = (*keys, "recipe")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror}); accepted: {', '.join(recipes)}, or a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict):
        raise UserError(f"holds a {type(data).__name__}; accepted: keys and values ({', '.join(accepted)})")
    for key in data:
        if key not in accepted:
            raise unknown("key", key, accepted)
    return data


def converted(key: str, value: object, default: object) -> object:
    """Return a value of a recipe file, converted to the type of the key's default.

    Raise `UserError` for a value that cannot be converted.
    """
    try:
        good = _cast(value, default)
    except (TypeError, ValueError, OverflowError):
        good = None
    if good is None:
        kinds = {bool: "true or false", tuple: "a list of epochs", str: "a word", int: "a whole number"}
        raise UserError(f"`{key}`: {value!r}; accepted: {kinds.get(type(default), 'a number')}")
    return good


def _cast(value: Any, default: object) -> object:
    """Return the value converted to the type of `default`. Return None, or raise, if that is impossible."""
    if isinstance(default, bool | str):
        return value if isinstance(value, type(default)) else None
    if isinstance(default, tuple):
        return tuple(float(v) for v in value) if isinstance(value, list) else None
    if isinstance(value, bool):  # in Python, a bool is also an int
        return None
    number = float(value)  # accepts text too, because YAML 1.1 reads 1e-4 as text
    if isinstance(default, float):
        return number
    return int(number) if number.is_integer() else None
