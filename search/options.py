"""Options of commands, made from the fields of settings: their names, types, defaults, help texts and choices."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, Protocol, get_args, get_type_hints


class Adder(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *names: str, **how: Any) -> Any:
        """Add an option."""
        ...


def fields_of(cls: type, names: Iterable[str] | None = None) -> list[tuple[Field[Any], type]]:
    """Return the fields of a group with their types, or those of the names, in that order."""
    types = get_type_hints(cls)
    every = {f.name: (f, _plain(types[f.name])) for f in fields(cls)}
    return [every[name] for name in (every if names is None else names)]


def _plain(kind: Any) -> type:
    """Return the type of a value that is given: `int` for `int | None`."""
    return next((t for t in get_args(kind) if t is not type(None)), kind)


def add_options(
    group: Adder,
    found: Sequence[tuple[Field[Any], type]],
    everything: bool = True,
    notes: Mapping[str, str] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Add one option for each field. Options that are not given are left out of the parsed namespace.

    everything: whether the help shows all fields; else only the common ones. notes: what follows a default in the help.
    choices: accepted names that a group cannot know by itself.
    """
    for field, kind in found:
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        if everything or field.metadata.get("common"):
            how["help"] = describe(field, (notes or {}).get(field.name, ""), (choices or {}).get(field.name))
        if kind is bool:
            how["action"] = "store_true"
        else:
            how["metavar"] = field.metadata.get("metavar")
            if "parse" not in field.metadata and kind is not str:
                how["type"] = kind
        group.add_argument(f"--{field.name.replace('_', '-')}", **how)


def describe(field: Field[Any], note: str = "", choices: Sequence[str] | None = None) -> str:
    """Return the help text of a field, with its choices (the field's own if None) and its default."""
    own: Callable[[], Sequence[str]] = field.metadata.get("choices", tuple)
    text = field.metadata["help"].replace("{choices}", ", ".join(own() if choices is None else choices))
    if "default:" in text:
        return text
    default = "none" if field.default is None else "off" if field.default is False else field.default
    return f"{text} (default: {default}{note})"


def written(values: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the options that set the named values, ready for `shlex.join`. None and False need no option."""
    out = []
    for name in names:
        if (value := values[name]) is not None and value is not False:
            out += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return out


def parsed(options: Mapping[str, Any], groups: Iterable[type]) -> dict[str, Any]:
    """Return the options with texts such as 20M or 6h turned into numbers; raise `UserError` for any other text."""
    known = {f.name: f.metadata["parse"] for group in groups for f in fields(group) if "parse" in f.metadata}
    return {k: known[k](v, k) if k in known and isinstance(v, str) else v for k, v in options.items()}


class HelpAll(argparse.Action):
    """`--help-all`: print the help of the parser that `full` builds, and exit."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, full: Callable[[], argparse.ArgumentParser], **_: Any
    ) -> None:
        text = "show all options and exit"
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=text)
        self.full = full

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        self.full().print_help()
        parser.exit()
