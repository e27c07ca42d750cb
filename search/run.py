"""Search a space for its front of accuracy against cost: `python -m search.run --space scale_card_depth`."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

import trainers.datasets.data
from res2net.commands import Parser, run_main, typed
from res2net.console import COMMANDS, PROG
from res2net.errors import UserError
from res2net.options import HelpAll, add_options, fields_of, parsed, written
from search import runs
from search.api import Result, plan_of, search
from search.evaluators import EVALUATORS
from search.groups import Budget, Scope, Scoring
from search.report import dashboard, progress
from search.resources import Resources
from search.settings import GROUP_OF, Settings
from search.units import format_seconds
from trainers.recipes import RECIPES

# The settings of three groups of the help. `build_parser` gives each group a title.
DATA = ("data", "data_dir", "task", "train_images", "image_size")
BUDGET = ("sampler", "trials", "time", "epochs", "repeat", "scheduler", "eta", "min_epochs")
HOW = (*BUDGET, "recipe", "batch_size", "lr", "seed")
SCORES = ("metric", "evaluator", "include", "from_run", "supernet", "supernet_epochs", "confirm", "confirm_by")


def build_parser(everything: bool = False) -> Parser:
    """Return the command's options. everything: whether the help shows all options, or only the common ones.

    The namespace lacks options that are not given, because a resumed search takes them from the run's folder.
    """
    parser = Parser(
        prog="python -m search.run",
        description="Search a space of Res2Nets for the front of accuracy against multiply-accumulates (MACs).",
        epilog="Run it again with --out alone to resume a search that was stopped; --time or --trials extend it.",
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.HelpFormatter,
    )
    if not everything:
        parser.add_argument("--help-all", action=HelpAll, full=lambda: build_parser(everything=True))
    every = {f.name: (f, kind) for cls in (Scope, Scoring, Budget, Resources) for f, kind in fields_of(cls)}
    what = [f.name for f in fields(Scope) if f.name not in (*DATA, *HOW)]
    where = [f.name for f in fields(Resources)]
    notes = _notes()
    for title, names in (
        ("what is searched", what),
        ("data", DATA),
        ("how", HOW),
        ("how networks are scored", SCORES),
        ("where", where),
    ):
        group = parser.add_argument_group(title)
        add_options(group, [every[name] for name in names], everything, notes, {"evaluator": tuple(EVALUATORS)})
        if title == "data":
            group.add_argument("--download", action="store_true", help="download the data set into --data-dir first")
        if title == "where":
            group.add_argument("--dry-run", action="store_true", help="print the plan of a search by --time, and end")
            group.add_argument(
                "--out", type=Path, metavar="DIR", help="the run's folder (default: a new one under runs/)"
            )
    return parser


def _notes() -> dict[str, str]:
    """Return the text that follows a setting's default in the help: the evaluators' own defaults for the setting."""
    out: dict[str, str] = {}
    recipes = {recipe: name for name, recipe in RECIPES.items()}
    for name, evaluator in EVALUATORS.items():
        for key, value in evaluator.defaults.items():
            out[key] = out.get(key, "") + f"; {recipes.get(value, value)} with --evaluator {name}"
    return out


def settings_of(options: dict[str, Any], out: Path | None) -> Settings:
    """Return the settings: from the options, else from the search in `out`, else the defaults.

    `time` limits a single call. A resumed search has no time limit unless the options set a new one. A planned search
    has the time that its last call left.
    """
    values = parsed(options, (Scope, Scoring, Budget, Resources))
    if out is None or not (out / runs.RUN_FILE).is_file():
        return Settings(**values)
    recorded = runs.settings_of(out)
    for name in ("trials", "epochs"):
        if recorded.planned and name in values:
            raise UserError(f"`{name}`: the search in {str(out)!r} follows a plan; accepted: `time`, or a new folder")
    left = runs.time_left(out) if recorded.planned else None
    if left is not None and left < 1 and "time" not in values:
        raise UserError(
            f"`time`: the search in {str(out)!r} has used its time; accepted: how much longer to search (5m)"
        )
    return recorded.replace(**({"time": left} | values))


def _age() -> float:
    """Return the seconds since this process began: `--time` counts the start of Python and the imports too."""
    return time.time() - psutil.Process().create_time()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _main(args: argparse.Namespace) -> int:
    begun = time.monotonic() - _age()
    options = vars(args)
    if threading.current_thread() is threading.main_thread():  # Python sets signal handlers only in this thread
        signal.signal(signal.SIGTERM, _interrupt)
    out, download, dry_run = options.pop("out", None), options.pop("download", False), options.pop("dry_run", False)
    settings = settings_of({k: v for k, v in options.items() if k in GROUP_OF}, out)
    if download:
        if settings.scope.data_dir is None:
            raise UserError("`download`: needs `data_dir`, the folder to put the data set in")
        trainers.datasets.data.download(settings.scope.data, settings.scope.data_dir)
    console = Console()
    if dry_run:
        for line in progress.plan_lines(plan_of(settings, out, progress.default(console), begun), settings):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return 0
    result = search(settings, out, progress.default(console), begun=begun)
    show(console, result)
    return 130 if result.interrupted else 0


def show(console: Console, result: Result) -> None:
    """Print the front, and the commands that use it."""
    settings, books = result.settings, result.ledger
    console.print(f"\n{result.why_stopped} after {format_seconds(result.seconds)}.", highlight=False)
    if books.front:
        if not books.trained:
            console.print("no network was trained: these scores are by shared weights (--confirm K trains K of them)")
        console.print(progress.front_table(books.front, books))
        if (noise := books.noise) is not None and (maybe := books.maybe):
            trials = ", ".join(str(r.number) for r in maybe)
            text = f"may be on the front too, within the spread of the seeds (+-{noise[0]:.2f}): trial {trials}"
            console.print(text, highlight=False, soft_wrap=True)
        units = " and ".join(o.unit for o in settings.scope.costs)
        measured = f"best {books.rules.quality.name} averaged over budgets of {units}"
        console.print(f"hypervolume {result.hypervolume:.2f} % ({measured})", highlight=False)
    elif settings.planned and not result.interrupted:
        console.print("no network has a score: the time was too short to train one")
    for name, text in _commands(result):
        console.print(f"{name:>9}: {text}", highlight=False, soft_wrap=True, markup=False)


def _commands(result: Result) -> list[tuple[str, str]]:
    """Return the commands that a user may run next, each with a label."""
    folder, settings, books = result.folder, result.settings, result.ledger
    path = str(folder)
    trials = settings.budget.trials
    if trials is None:  # planned: without `--time`, it resumes for the time that is left
        longest = max(session.get("time") or 0.0 for session in runs.read(folder)["sessions"])
        more = [] if runs.time_left(folder) >= 1 else ["--time", f"{longest:.0f}s"]
    else:
        more = [] if result.unfinished else ["--trials", str(2 * trials)]
    chosen = ("task",) if settings.scope.task != "classification" else ()
    data = written(settings.values(), ("data", "data_dir", "image_size", *chosen))
    exhausted = trials is not None and books.spent < trials and not result.unfinished
    lines = [] if exhausted else [("resume", _python("search.run", "--out", path, *more))]
    if books.front:
        page = shlex.quote(f"{folder}/pareto.html")
        lines.append(("look", f"{page}, or {dashboard.command(folder, settings.resources.storage)}"))
    if books.trained:  # else there is nothing to export yet
        lines.append(("export", _python("search.export", path, "--pick", "knee", "--to", "exported")))
        lines.append(("train on", _python("trainers.fit", f"{folder}/best", *data, "--out", "trained")))
    return lines


def _python(module: str, *words: str) -> str:
    """Return the command that runs a module, in the form that the user typed, quoted for a shell."""
    names = {module: name for name, (module, _) in COMMANDS.items()}
    first = [PROG, names[module]] if typed("").startswith(PROG) else ["python", "-m", module]
    return shlex.join([*first, *words])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
