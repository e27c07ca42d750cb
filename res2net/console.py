"""The console command `res2net-search`: each subcommand runs the `main` of a `python -m` command.

A subcommand's module is imported when the subcommand runs: importing torch, Optuna and Ray takes seconds.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import sys
from collections.abc import Sequence
from importlib import import_module, metadata, util
from pathlib import Path

from res2net.commands import Parser, typed_as
from res2net.errors import UserError, unknown

PROG, DISTRIBUTION = "res2net-search", "res2net-search"
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
# The packages that the commands of each package import, besides `res2net`. Other projects use these names too.
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
        for package in PACKAGES[module.partition(".")[0]]:
            check_ours(package)
    except UserError as error:
        parser.error(str(error))
    with typed_as(f"{PROG} {first.command}"):
        return import_module(module).main(words[1:])


def check_ours(package: str) -> None:
    """Raise `UserError` if Python finds another package or module of this name than the one beside `res2net`."""
    ours = Path(__file__).resolve().parents[1] / package
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"package {package!r} is not complete in {ours}; install {DISTRIBUTION} again")
    found = Path(spec.origin).resolve()
    if found.parent != ours:
        raise UserError(
            f"{found} hides the package {package!r} in {ours}; rename it, or take its folder out of PYTHONPATH"
        )
    if (other := _overwritten_by(found)) is not None:
        raise UserError(
            f"the package {other!r} wrote its own {found}; install {DISTRIBUTION} in an environment without {other!r}"
        )


def _overwritten_by(file: Path) -> str | None:
    """Return the distribution that installed its own file in the place of ours, or None.

    pip lets two distributions write the same file. It then has another hash than our distribution recorded.
    An editable install records no such file.
    """
    name = f"{file.parent.name}/{file.name}"
    recorded = next((f.hash for f in metadata.files(DISTRIBUTION) or () if str(f) == name), None)
    if recorded is None:
        return None
    digest = hashlib.new(recorded.mode, file.read_bytes()).digest()
    if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == recorded.value:
        return None
    # Without another owner, the user has edited the file.
    others = (d for d in metadata.distributions(path=[str(file.parents[1])]) if d.name != DISTRIBUTION)
    return next((d.name for d in others if any(str(f) == name for f in d.files or ())), None)
