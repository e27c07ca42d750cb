"""Write the tables and plots of a run again: `python -m search.report RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from res2net.commands import Parser, run_main
from search import runs
from search.ledger import Ledger
from search.report.files import write
from search.report.progress import front_table


def build_parser() -> Parser:
    """Return the command's options."""
    parser = Parser(prog="python -m search.report", description="Write the tables and plots of a run again.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a search (its --out)")
    return parser


def _main(args: argparse.Namespace) -> None:
    folder: Path = args.run
    settings, space = runs.settings_of(folder), runs.space_of(folder)
    records = runs.records_of(folder)
    books = Ledger.of(settings.rules, records)
    write(folder, records, books, space, settings)
    console = Console()
    if books.front:
        console.print(front_table(books.front, books))
    text = f"{folder}: {len(records)} trials, {len(books.front)} on the front"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
