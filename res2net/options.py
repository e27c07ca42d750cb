"""Command-line options from the fields of a dataclass: names, types, defaults and help stand in one place.

@dataclass(frozen=True)
class Settings:
    epochs: int = field(default=10, metadata={"help": "epochs to train", "metavar": "N"})

add_options(parser, Settings)  # --epochs N
settings = from_options(Settings, parser.parse_args())
"""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SIMPLE = (str, int, float, Path)  # types whose constructor reads the text of an option


def add_options(parser: argparse.ArgumentParser, cls: type) -> None:
    """Add an option to the parser for each field of a dataclass that has a help text: `--batch-size` for `batch_size`.

    A field is of type str, int, float, Path or bool, or of a union that starts with one of them (`int | None`). A bool
    becomes a flag without a value. A field without a default is required.
    metadata: `help`; `metavar`, the value's name in the help; `group`, the title that the option stands under;
    `positional`, true for an argument without a name.
    """
    hints = typing.get_type_hints(cls)
    groups: dict[str, Any] = {}  # argparse has no public name for their class
    for field in fields(cls):
        about = field.metadata
        if "help" not in about:
            continue
        if (title := about.get("group")) and title not in groups:
            groups[title] = parser.add_argument_group(title)
        target = groups[title] if title else parser
        if about.get("positional"):
            target.add_argument(field.name, **_value(field, hints[field.name]))
        else:
            how = {"required": True} if field.default is MISSING else {"default": field.default}
            name = "--" + field.name.replace("_", "-")
            target.add_argument(name, **how, **_value(field, hints[field.name]))


def from_options(cls: type[T], args: argparse.Namespace) -> T:
    """Return the dataclass of the parsed options. Fields without an option keep their defaults."""
    make: Callable[..., T] = cls
    names = [f.name for f in fields(make) if "help" in f.metadata]  # type: ignore[arg-type]  # T is a dataclass
    return make(**{name: getattr(args, name) for name in names})


def _value(field: Field[Any], hint: Any) -> dict[str, Any]:
    """Return the arguments of `add_argument` that say how the value is written."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kind = typing.get_args(hint)[0] if union else hint
    about = {"help": field.metadata["help"]}
    if kind is bool:
        return about | {"action": "store_true"}
    assert kind in SIMPLE, f"field {field.name!r} has type {hint}; an option may have {SIMPLE} or bool"
    return about | {"type": kind, "metavar": field.metadata.get("metavar")}
