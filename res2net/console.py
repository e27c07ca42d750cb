"""The console command `res2net-search`: each subcommand runs the `main` of a `python -m` command.

A subcommand's module is imported when the subcommand runs: importing torch, Optuna and Ray takes seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

from res2net.clash import DISTRIBUTION, check_ours
from res2net.commands import Parser, typed_as
from res2net.errors import UserError, unknown

PROG = "res2net-search"
# Each subcommand, with its module and its line in the help.
COMMANDS = {
    "describe": ("search.describe", "describe a space and plan a search, before anything is trained"),
    "search": ("search.run", "search a space for its front of accuracy against cost"),
    "supernet": ("search.supernet", "train the weights that all networks of a space share"),
    "latency": ("search.latency", "measure the latency table of a space on a device"),
    "report": ("search.report.__main__", "write the tables and plots of a search again"),
    "measure": ("search.measure", "measure the front of a search on a device"),
    "export": ("search.export", "write networks of a search as model folders"),
    "fit": ("trainers.fit", "train one network, and test it once"),
    "evaluate": ("trainers.evaluate", "score a model folder on a test split"),
    "explain": ("trainers.explain", "draw which regions of an image raise the score of a class (Grad-CAM)"),
    "models": ("res2net.__main__", "list the networks of the Res2Net paper"),
}
# The packages that the commands of each package import, besides `res2net`.
PACKAGES = {"search": ("search", "space", "trainers"), "trainers": ("trainers",), "res2net": ()}


def build_parser() -> Parser:
    """Return the parser of the first word. The subcommand's own parser reads the others."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = Parser(
        prog=PROG,
        usage=f"{PROG} COMMAND ...",
        description="Neural architecture search over Res2Net's depth, width, cardinality and scale.",
        epilog=f"commands:\n{rows}\n\n`{PROG} COMMAND --help` shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit code. argv: the words after `res2net-search`; None: of this process."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser()
    first = parser.parse_args(words[:1])
    if first.version:
        print(f"{PROG} {metadata.version(DISTRIBUTION)}")
        return 0
    if first.command is None:
        parser.print_help()
        return 0
    try:
        if first.command not in COMMANDS:
            raise unknown("command", first.command, COMMANDS)
        module = COMMANDS[first.command][0]
        packages = PACKAGES[module.partition(".")[0]]
        check_ours(packages)
    except UserError as error:
        parser.error(str(error))
    for package in packages:  # before the current folder is on the path, which may hold packages of the same names
        import_module(package)
    # A user's own module may lie in the current folder, as with `python -m`.
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)
    with typed_as(f"{PROG} {first.command}"):
        return import_module(module).main(words[1:])
