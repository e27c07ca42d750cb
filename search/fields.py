"""Fields of settings with metadata for the commands, and the checks that many fields need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

from res2net.errors import UserError, unknown


def option(default: Any, text: str, metavar: str | None = None, **more: Any) -> Any:
    """Return a field with a default, and with a help text and other metadata for the commands."""
    return field(default=default, metadata={"help": text, "metavar": metavar, **more})


def check_least(name: str, value: int | None, least: int = 1) -> None:
    """Raise `UserError` for a value below `least`. None is accepted."""
    if value is not None and value < least:
        raise UserError(f"`{name}`: {value} is too small; accepted: at least {least}")


def check_choice(name: str, value: str, accepted: Sequence[str]) -> None:
    """Raise `UserError` for a value that is not accepted."""
    if value not in accepted:
        raise unknown(f"`{name}`", value, accepted)
