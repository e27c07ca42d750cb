"""The one exception for users' mistakes, and the parser that reports them in one line."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn


class UserError(ValueError):
    """A mistake the user can mend: names the option or key, the value, and what would be accepted."""


def unknown(what: str, value: object, accepted: Iterable[str]) -> UserError:
    """The error for a name that is not in a list: with the nearest one first."""
    accepted = [str(a) for a in accepted]
    near = difflib.get_close_matches(str(value), accepted, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"{what}: unknown value {str(value)!r}; {hint}accepted: {', '.join(accepted)}")


class Parser(argparse.ArgumentParser):
    """An argument parser whose help shows defaults, and whose errors are one line and exit code 2."""

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def spelled(self, message: str) -> str:
        """The message with each field in backticks (`max_macs`) written as its option (--max-macs), if it has one."""
        return re.sub(r"`(\w+)`", lambda field: self._options().get(field[1], field[0]), message)

    def _options(self) -> dict[str, str]:
        return {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def run_main(
    body: Callable[[argparse.Namespace], int | None], build: Callable[[], Parser], argv: Sequence[str] | None = None
) -> int:
    """Parse the options and run a command's body; return the exit code.

    A `UserError` becomes one line on stderr and exit code 2, Ctrl-C one line and 130.
    """
    parser = build()
    args = parser.parse_args(argv)
    try:
        return body(args) or 0
    except UserError as error:
        print(f"{parser.prog}: error: {parser.spelled(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
