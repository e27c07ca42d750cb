"""Build command-line options from the fields of dataclasses: names, types, defaults, help texts and choices.

    @dataclass(frozen=True)
    class Config:
        epochs: int = field(default=10, metadata={"help": "epochs to train", "metavar": "N"})

    add_options(parser, fields_of(Config))  # --epochs N
    config = from_options(Config, parser.parse_args())

The keys of a field's metadata:
    help: the help text. `{choices}` in it stands for the accepted names. A field without `help` is not an option.
    metavar: the placeholder for the value in the help.
    group: the title of the option's group in the help.
    positional: whether the field is a positional argument.
    choices: a function that returns the accepted names.
    parse: a function `(text, field name) -> value` that reads a text such as 20M or 6h.
    shown: the text for the default in the help, in place of the default itself.
    common: whether `--help` shows the option. `--help-all` shows all options.
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
SIMPLE = (str, int, float, bool, Path)  # types that a field of an option may have
Option = tuple[Field[Any], type]  # a field and its type, without None


class Adder(Protocol):
    """A parser or an argument group."""

    def add_argument(self, *names: str, **how: Any) -> Any:
        """Add an option."""
        ...


def fields_of(cls: type, names: Iterable[str] | None = None) -> list[Option]:
    """Return the options of a dataclass: its fields with a help text. `names` selects and orders these fields."""
    hints = get_type_hints(cls)
    every = {f.name: (f, _plain(hints[f.name])) for f in fields(cls) if "help" in f.metadata}
    return [every[name] for name in (every if names is None else names)]


def _plain(kind: Any) -> type:
    """Return the type without None: `int` for `int | None`."""
    return get_args(kind)[0] if get_origin(kind) in (types.UnionType, Union) else kind


def add_options(
    target: Adder,
    found: Sequence[Option],
    everything: bool = True,
    notes: Mapping[str, str] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Add one option for each field. The parsed namespace has only the options that the user gives.

    everything: whether the help shows all fields, or only the common ones.
    notes: texts that follow the default in the help, by field name.
    choices: accepted names, by field name. They replace the names from the field's metadata.
    """
    groups: dict[str, Adder] = {}
    for field, kind in found:
        parses = "parse" in field.metadata
        assert parses or kind in SIMPLE, f"field {field.name!r} has type {kind}; an option may have {SIMPLE}"
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        if everything or field.metadata.get("common"):
            text = describe(field, (notes or {}).get(field.name, ""), (choices or {}).get(field.name))
            how["help"] = text.replace("%", "%%")  # argparse formats help texts with the % operator
        if kind is bool:
            how["action"] = "store_true"
        else:
            how["metavar"] = field.metadata.get("metavar")
            if not parses and kind is not str:
                how["type"] = kind
        title = field.metadata.get("group")
        if title and title not in groups and isinstance(target, argparse.ArgumentParser):
            groups[title] = target.add_argument_group(title)
        if field.metadata.get("positional"):
            del how["default"]
            target.add_argument(field.name, **how)
        else:
            required = {"required": True} if field.default is MISSING else {}
            groups.get(title or "", target).add_argument(f"--{field.name.replace('_', '-')}", **how, **required)


def from_options(cls: Callable[..., T], args: argparse.Namespace) -> T:
    """Return an instance with the parsed options. Fields that the user does not give keep their defaults."""
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # `cls` is a dataclass, typed as a callable
    return cls(**{name: value for name, value in vars(args).items() if name in names})


def describe(field: Field[Any], note: str = "", choices: Sequence[str] | None = None) -> str:
    """Return the help text of a field with its default.

    note: a text that follows the default.
    choices: the accepted names. None: the names in the field's metadata.
    """
    own: Callable[[], Sequence[str]] = field.metadata.get("choices", tuple)
    text = field.metadata["help"].replace("{choices}", ", ".join(own() if choices is None else choices))
    if "default:" in text:  # the help text itself ends with the default, in parentheses
        return f"{text.removesuffix(')')}{note})" if note else text
    if field.default is MISSING:
        return text
    default = "none" if field.default is None else "off" if field.default is False else field.default
    default = field.metadata.get("shown", default)
    return f"{text} (default: {default}{note})"


def written(values: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the command-line options that set the named values, ready for `shlex.join`. Skip None and False."""
    out = []
    for name in names:
        if (value := values[name]) is not None and value is not False:
            out += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return out


def parsed(options: Mapping[str, Any], groups: Iterable[type]) -> dict[str, Any]:
    """Return the options with texts such as 20M or 6h parsed to numbers. Raise `UserError` for an invalid text.

    groups: the dataclasses whose fields have `parse` functions.
    """
    known = {f.name: f.metadata["parse"] for group in groups for f in fields(group) if "parse" in f.metadata}
    return {k: known[k](v, k) if k in known and isinstance(v, str) else v for k, v in options.items()}


class HelpAll(argparse.Action):
    """The action of `--help-all`: print the help of the parser that `full` builds, and exit."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, full: Callable[[], argparse.ArgumentParser], **_: Any
    ) -> None:
        text = "show all options and exit"
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=text)
        self.full = full

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the full help, and exit."""
        self.full().print_help()
        parser.exit()
