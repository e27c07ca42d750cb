"""Search a space for its front of accuracy against MACs: `python -m search.run --space scale_card_depth`."""

from __future__ import annotations

import argparse
import atexit
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

import space as spaces
import trainers.datasets.data
from res2net.commands import Parser, run_main
from res2net.errors import UserError
from search import runs
from search.api import Result, search
from search.export import front_of
from search.report import dashboard, progress
from search.scheduler import SCHEDULERS
from search.settings import CONFIRM_BY, EVALUATORS, EXECUTORS, SAMPLERS, Settings
from search.study.study import SCORED
from search.units import format_seconds, parse_count, parse_seconds

# Defaults that suit an evaluator: a score by shared weights takes a second, and tuning starts from trained weights.
FITTING: dict[str, dict[str, Any]] = {"supernet": {"trials": 200}, "inherit": {"lr": 0.02}}
COUNTS = ("max_macs", "min_macs", "max_params", "max_activations", "match_macs")


def build_parser() -> Parser:
    """All options; those not given are left out of the namespace, so that a resume takes them from the run's folder."""
    parser = Parser(
        prog="python -m search.run",
        description="Search a space of Res2Nets for the front of accuracy against multiply-accumulates (MACs).",
        epilog="Run it again with the same --out to go on with a search that was stopped, or with more --trials.",
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.HelpFormatter,
    )
    d = Settings()
    what = parser.add_argument_group("what is searched")
    what.add_argument("--space", help=f"{', '.join(spaces.names())}, or a YAML file (default: {d.space})")
    what.add_argument("--base", help=f"{', '.join(spaces.BASES)} (default: what suits the data set)")
    what.add_argument("--per-stage", action="store_true", help="every stage has its own values")
    what.add_argument("--max-macs", metavar="N", help="no network of more MACs (20M, 4.2G)")
    what.add_argument("--min-macs", metavar="N", help="no network of fewer MACs")
    what.add_argument("--max-params", metavar="N", help="no network of more weights")
    what.add_argument("--max-activations", metavar="N", help="no network whose layers put out more values an image")
    what.add_argument("--match-macs", metavar="N", help="compare shapes at so many MACs: the width is solved for each")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", help=f"{', '.join(trainers.datasets.data.names())} (default: {d.data}, which needs no files)"
    )
    data.add_argument("--data-dir", metavar="DIR", help="where the data set's files are")
    data.add_argument("--download", action="store_true", help="fetch the data set into --data-dir first")
    data.add_argument("--train-images", type=int, metavar="N", help="train on so many images only (default: all)")
    data.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="pixels along a side that images of a folder are resized to (default: a guess, 224 at most)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--sampler", help=f"{', '.join(SAMPLERS)} (default: {d.sampler})")
    how.add_argument(
        "--trials", type=int, metavar="N", help=f"networks to score in all (default: {_default('trials')})"
    )
    how.add_argument("--time", metavar="T", help="stop after so long (90s, 30m, 6h; default: no limit)")
    how.add_argument("--epochs", type=int, metavar="N", help=f"full budget of a trial, in epochs (default: {d.epochs})")
    how.add_argument("--scheduler", help=f"{', '.join(SCHEDULERS)}: which trials stop early (default: {d.scheduler})")
    how.add_argument("--eta", type=int, metavar="N", help=f"one trial in N goes on at each rung (default: {d.eta})")
    how.add_argument("--min-epochs", type=int, metavar="N", help=f"epochs to the first rung (default: {d.min_epochs})")
    how.add_argument("--batch-size", type=int, metavar="N", help=f"images a step (default: {d.batch_size})")
    how.add_argument("--lr", type=float, metavar="X", help=f"peak learning rate (default: {_default('lr')})")
    how.add_argument("--seed", type=int, metavar="N", help=f"of split, proposals and training (default: {d.seed})")
    score = parser.add_argument_group("how networks are scored")
    score.add_argument("--evaluator", help=f"{', '.join(EVALUATORS)} (default: {d.evaluator}, each is trained)")
    score.add_argument(
        "--supernet", metavar="DIR", help="shared weights of search.supernet (default: train them first)"
    )
    score.add_argument(
        "--supernet-epochs", type=int, metavar="N", help=f"epochs of shared weights (default: {d.supernet_epochs})"
    )
    score.add_argument(
        "--confirm",
        type=int,
        metavar="K",
        help=f"train K networks of the front that shared weights found (default: {d.confirm})",
    )
    score.add_argument(
        "--confirm-by",
        help=f"{', '.join(CONFIRM_BY)}: train those K so (default: {d.confirm_by}, on from their slices)",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--storage", metavar="URL", help="keep the study in PostgreSQL, for several drivers (see README)"
    )
    where.add_argument("--study", metavar="NAME", help="its name there (default: that of the run's folder)")
    where.add_argument("--executor", help=f"{', '.join(EXECUTORS)} (default: {d.executor}, which is Ray Tune)")
    where.add_argument("--workers", type=int, metavar="N", help="trials at a time (default: the most that fit)")
    where.add_argument(
        "--cpus-per-trial", type=int, metavar="N", help=f"cores, and threads, of a trial (default: {d.cpus_per_trial})"
    )
    where.add_argument("--gpus-per-trial", type=float, metavar="X", help="0.25 shares a GPU (default: 1 where one is)")
    where.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="a running cluster: auto, or HOST:PORT of its head (default: local, a Ray of its own)",
    )
    where.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: a new one under runs/)")
    return parser


def _default(name: str) -> str:
    """A setting's default in words, with those that suit an evaluator."""
    fitting = "".join(f"; {values[name]} with --evaluator {e}" for e, values in FITTING.items() if name in values)
    return f"{getattr(Settings(), name)}{fitting}"


def settings_of(options: dict[str, Any], out: Path | None) -> Settings:
    """The settings of the options given, over those of the search in `out`, over the defaults."""
    values = dict(options)
    for name in COUNTS:
        if values.get(name) is not None:
            values[name] = parse_count(values[name], f"--{name.replace('_', '-')}")
    if "time" in values:
        values["time"] = parse_seconds(values["time"], "--time")
    if out is not None and (out / runs.RUN_FILE).is_file():
        before = runs.settings_of(out)
        known = {f.name: getattr(before, f.name) for f in fields(before)}
        given = Settings(**{**known, **values})
        return given if "time" in values else replace(given, time=None)
    return Settings(**(FITTING.get(values.get("evaluator", ""), {}) | values))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _main(args: argparse.Namespace) -> int:
    options = vars(args)
    signal.signal(signal.SIGTERM, _interrupt)
    out, download = options.pop("out", None), options.pop("download", False)
    settings = settings_of(options, out)
    if download:
        if settings.data_dir is None:
            raise UserError("--download: needs --data-dir, the folder to put the data set in")
        trainers.datasets.data.download(settings.data, settings.data_dir)
    console = Console()
    result = search(settings, out, progress.default(console))
    show(console, result)
    return 130 if result.interrupted else 0


def show(console: Console, result: Result) -> None:
    """The front, and what to do with it."""
    folder, trials = result.folder, runs.settings_of(result.folder).trials
    console.print(f"\n{result.why_stopped} after {format_seconds(result.seconds)}.", highlight=False)
    trained = runs.settings_of(folder).evaluator != "supernet" or (result.trials.outcome == SCORED).any()
    if len(result.front):
        if not trained:
            console.print("no network was trained: these scores are by shared weights (--confirm K trains K of them)")
        console.print(progress.table_of_front(front_of(folder, estimates=not trained)))
        console.print(
            f"hypervolume {result.hypervolume:.2f} % (best top-1 averaged over budgets of MACs)", highlight=False
        )
    path, best = shlex.quote(str(folder)), shlex.quote(f"{folder}/best")
    lines = [
        ("go on", f"python -m search.run --out {path}" + ("" if result.unfinished else f" --trials {2 * trials}")),
        ("look", f"{folder}/pareto.html, or {dashboard.command(folder, runs.settings_of(folder).storage)}"),
        ("export", f"python -m search.export {path} --pick knee --to exported"),
        ("train on", f"python -m trainers.fit {best} --data {runs.settings_of(folder).data} --out trained"),
    ]
    shown = lines if trained else lines[:2]  # there is nothing to export yet
    for name, text in shown if len(result.front) else lines[:1]:
        console.print(f"{name:>9}: {text}", highlight=False, soft_wrap=True, markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_main, build_parser, argv)


def leave(code: int) -> NoReturn:
    """End the process with that code.

    Where Ray was used, past what C++ does in `exit`: it destroys Ray's core worker while a timer of its own still runs
    (2.60), and one interrupted search in four ended with a segmentation fault after its last word.
    """
    if "ray" in sys.modules:
        atexit._run_exitfuncs()  # Python's own, Ray's among them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
