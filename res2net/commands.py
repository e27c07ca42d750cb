"""The parser class of all commands, the function that runs a command, and the name that the user typed."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

from res2net.errors import UserError

# How the user typed the command that runs. Empty: as the command's own parser says (`python -m search.run`).
_typed: ContextVar[str] = ContextVar("typed", default="")


@contextlib.contextmanager
def typed_as(words: str) -> Iterator[None]:
    """Inside the block, let help and errors name the command by these words: `res2net-search fit`."""
    token = _typed.set(words)
    try:
        yield
    finally:
        _typed.reset(token)


def typed(command: str) -> str:
    """Return the command as the user typed it. command: its `python -m` form, if the user typed this one."""
    return _typed.get() or command


class Parser(argparse.ArgumentParser):
    """An argument parser whose help shows defaults, and whose errors print one line and exit with code 2."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        # An abbreviation would change its meaning as soon as another option begins with the same letters.
        options.setdefault("allow_abbrev", False)
        if "prog" in options:
            options["prog"] = typed(options["prog"])
        super().__init__(**options)

    def spelled(self, message: str) -> str:
        """Return the message with the option (--max-macs) in place of each field in backticks (`max_macs`).

        Fields without an option stay as they are.
        """
        return re.sub(r"`(\w+)`", lambda field: self._options().get(field[1], field[0]), message)

    def _options(self) -> dict[str, str]:
        """Return the option of each field. If an option has several spellings (`-q`, `--quiet`), take the last one."""
        return {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}

    def error(self, message: str) -> NoReturn:
        """Print the message in one line and exit with code 2, without argparse's usage text."""
        wrong = re.fullmatch(r"argument (\S+): invalid (int|float) value: (.+)", message)
        if wrong:
            kind = "a whole number" if wrong[2] == "int" else "a number"
            message = f"{wrong[1]}: {wrong[3]}; accepted: {kind}"
        self.exit(2, f"{self.prog}: error: {message}\n")


def run_main(
    body: Callable[[argparse.Namespace], int | None], build: Callable[[], Parser], argv: Sequence[str] | None = None
) -> int:
    """Parse the options, run a command's body and return the exit code.

    body: a function that takes the parsed options and returns an exit code, or None for 0.
    build: a function that returns the command's parser.
    argv: the command line without the program. None: the command line of this process.

    A `UserError` becomes one line on stderr and exit code 2. Ctrl-C becomes one line on stderr and exit code 130.
    If the reader of the output has gone (`| head`), the command ends with exit code 141, as after SIGPIPE.
    """
    parser = build()
    args = parser.parse_args(argv)
    try:
        code = body(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes stdout at its end, too: there is no reader for it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        print(f"{parser.prog}: error: {parser.spelled(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
