"""Compare searches by the volume of their fronts over time, in equal wall time.

    python -m studies.bench_front --data cifar10 --data-dir DIR --time 90s 15m --seeds 0 1 2 --out FOLDER

An entry is a command. `ours` is the search with `--time` alone, and other entries change one part of it. `peer` is
stock Ray Tune with Optuna's TPE and ASHA over the same space. The runs follow one another, each in a new process. No
other work may run on the machine. Runs that are already in the folder are not repeated.

The volume is the best accuracy within a budget of MACs, averaged over budgets on a logarithmic axis. It is scaled from
chance (0) to an accuracy of 100 % at every budget (1). Volumes over time use validation accuracies. After a run, the
test split is read once. The test volume uses the test accuracies of the networks on the validation front.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

import trainers.datasets.data
from res2net.commands import Parser, run_main
from res2net.errors import UserError
from res2net.files import write_atomic
from search.groups import Scope
from search.report.figures import label_counts, new_figure, png, tidy
from search.units import format_count, format_seconds, parse_count, parse_seconds
from studies.bench import first_line
from studies.front_runs import (
    ENTRIES,
    PEER,
    Case,
    Run,
    Span,
    case_of,
    entries_of,
    measure,
    record,
    recorded,
    tested,
    volume_over_time,
)
from trainers.meta import environment

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes

PROG = "python -m studies.bench_front"


def build_parser() -> Parser:
    """Return the command's options."""
    out, scope = Parser(prog=PROG, description=first_line(__doc__)), Scope()
    out.add_argument("--data", default=scope.data, help=", ".join(trainers.datasets.data.names()))
    out.add_argument("--data-dir", metavar="DIR", help="the folder of the data set's files")
    out.add_argument("--space", default="scale_card_depth_width", help="the space")
    out.add_argument("--max-macs", default="20M", metavar="N", help="search networks of at most N MACs")
    out.add_argument("--time", nargs="+", default=["90s"], metavar="T", help="the times to compare (90s 15m)")
    out.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="the seeds of each")
    known = ", ".join(f"{name} ({words})" if words else name for name, words in ENTRIES.items())
    out.add_argument("--entries", nargs="+", default=["ours", PEER], metavar="NAME", help=f"what to compare: {known}")
    out.add_argument(
        "--entry",
        action="append",
        default=[],
        metavar="NAME=WORDS",
        help="an additional entry, or other options for a known one",
    )
    out.add_argument("--low", default="0.3125M", metavar="N", help="the volume's least budget in MACs")
    out.add_argument("--high", metavar="N", help="the volume's greatest budget in MACs (default: --max-macs)")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the runs, tables and the plot")
    return out


def span_of(args: argparse.Namespace) -> Span:
    """Return the range of the volume. Raise `UserError` for an empty range, and for data without classes."""
    most = parse_count(args.max_macs, "max_macs")
    low, high = parse_count(args.low, "low"), parse_count(args.high, "high") if args.high else most
    if low >= high:
        raise UserError(f"`low`: {format_count(low)} is not below `high` {format_count(high)}; accepted: less")
    return Span(low, high, 100 / len(trainers.datasets.data.classes_of(args.data, args.data_dir)))


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Return the cases in their order: for each time and seed, all entries. So a stopped benchmark can be compared."""
    entries = entries_of(args.entries, args.entry)
    times = [parse_seconds(text, "time") for text in args.time]
    shared = {"space": args.space, "data": args.data, "data-dir": args.data_dir, "max-macs": args.max_macs}
    return [
        case_of(entry, words, shared, seconds, seed)
        for seconds in times
        for seed in args.seeds
        for entry, words in entries.items()
    ]


def run_all(cases: Sequence[Case], args: argparse.Namespace, span: Span, say: Callable[[str], object]) -> list[Run]:
    """Return the runs of all cases that succeed. Measure the missing runs, and write the tables after each run.

    After a run, test its networks once. The run's record stores the test accuracies.
    """
    for case in cases:
        recorded(case, args.out)  # raises `UserError` for a record of another command, before anything is run
    runs: list[Run] = []
    for i, case in enumerate(cases, 1):
        run = recorded(case, args.out)
        if run is None:
            say(f"{i} of {len(cases)}: {case.entry}, {format_seconds(case.time)}, seed {case.seed}")
            run = measure(case, args.out, say)
        if run is None:
            continue
        if run.test_top1 is None:
            record(run, args.out)  # record the run before its test, so that an interrupted test does not repeat the run
            run = tested(run, args.data, args.data_dir, args.out)
            record(run, args.out)
        runs.append(run)
        write(runs, span, args)
    return runs


def table(runs: Sequence[Run], span: Span) -> pd.DataFrame:
    """Return a row for each run."""
    rows = []
    for run in runs:
        top1 = run.test_top1 or {}
        rows.append(
            {
                "entry": run.case.entry,
                "time": run.case.time,
                "seed": run.case.seed,
                "volume_test": run.volume(span, test=True),
                "volume_val": run.volume(span, test=False),
                "late": run.late,
                "busy": run.busy,
                "trained": len({s.number for s in run.scored}),
                "networks": ", ".join(f"{format_count(s.macs)}: {top1[s.number]:.1f}" for s in run.front),
                "commit": run.commit,
                "cpu": run.cpu,
                "cores": run.cores,
            }
        )
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and the standard deviation of the volumes, and the greatest delay, for each entry and time."""
    return rows.groupby(["time", "entry"], sort=False, as_index=False).agg(
        n=("seed", "size"),
        test=("volume_test", "mean"),
        test_sd=("volume_test", "std"),
        val=("volume_val", "mean"),
        val_sd=("volume_val", "std"),
        latest=("late", "max"),
    )


def lines(rows: pd.DataFrame) -> Iterator[str]:
    """Yield the printed report: a line for each run, a line for each entry and time, and the hardware."""
    width = max(6, *(len(name) for name in rows.entry)) + 2
    numbers = "".join(f"{name:>8}" for name in ("test", "val", "late s", "busy %"))
    yield f"{'entry':{width}}{'time':>8}{'seed':>6}{numbers}  test top-1 of the front"
    for r in rows.to_dict("records"):
        numbers = f"{r['volume_test']:8.3f}{r['volume_val']:8.3f}{r['late']:8.1f}{r['busy']:8.0f}"
        yield f"{r['entry']:{width}}{r['time']:7g}s{r['seed']:6}{numbers}  {r['networks']}"
    yield ""
    yield f"{'entry':{width}}{'time':>8}{'n':>6}{'volume by test':>18}{'by validation':>18}{'latest s':>10}"
    for r in summary(rows).to_dict("records"):
        test, val = (f"{r[name]:.3f} +- {_spread(r[name + '_sd'])}" for name in ("test", "val"))
        yield f"{r['entry']:{width}}{r['time']:7g}s{r['n']:6}{test:>18}{val:>18}{r['latest']:10.1f}"
    yield ""
    for cpu, cores, commit in rows[["cpu", "cores", "commit"]].drop_duplicates().itertuples(index=False):
        yield f"{cpu}, {cores} cores, commit {commit}"


def _spread(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def points(runs: Sequence[Run], span: Span) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the networks of all fronts, and the volumes over time."""
    fronts, curves = [], []
    for run in runs:
        name = {"entry": run.case.entry, "time": run.case.time, "seed": run.case.seed}
        top1 = run.test_top1 or {}
        fronts += [name | asdict(s) | {"test_top1": top1[s.number]} for s in run.front]
        curves += [name | {"seconds": at, "volume_val": v} for at, v in volume_over_time(run.scored, span)]
    return pd.DataFrame(fronts), pd.DataFrame(curves)


def plot(runs: Sequence[Run], span: Span, title: str) -> bytes:
    """Return a PNG with a row for each time: the volume over time, and the final fronts.

    Each entry has a colour, and each seed a line.
    """
    times = list(dict.fromkeys(run.case.time for run in runs))
    names = list(dict.fromkeys(run.case.entry for run in runs))
    highest = max(run.volume(span, test=False) for run in runs)
    figure = new_figure(12, 1 + 4 * len(times))
    axes = figure.subplots(len(times), 2, squeeze=False)
    for (left, right), seconds in zip(axes, times, strict=True):
        seen: set[str] = set()
        for run in (run for run in runs if run.case.time == seconds):
            style: dict[str, Any] = {"color": f"C{names.index(run.case.entry) % 10}", "lw": 1.4, "alpha": 0.8}
            if run.case.entry not in seen:
                style["label"] = run.case.entry
            seen.add(run.case.entry)
            _draw(left, right, run, span, style)
        left.axvline(seconds, color="0.3", ls="--", lw=1)
        left.set(xlabel="seconds since the start (dashed: the given time)", ylabel="volume by validation accuracy")
        left.set_xlim(0)
        left.set_ylim(0, min(1, max(0.1, 1.25 * highest)))  # the legend stands above the curves
        left.legend(frameon=False, fontsize=9, loc="upper left", ncols=4)
        right.set_xscale("log")
        right.set_xlim(span.low * 0.9, span.high * 1.1)
        label_counts(right.xaxis)
        right.set(xlabel="multiply-accumulates of one image", ylabel="top-1 of the final front, test split (%)")
        for ax in (left, right):
            tidy(ax)
    figure.suptitle(title, fontsize=10)
    return png(figure)


def _draw(left: Axes, right: Axes, run: Run, span: Span, style: dict[str, Any]) -> None:
    """Draw a run's volume over time (left), and its final front by test accuracy (right)."""
    at, volumes = zip(*volume_over_time(run.scored, span), strict=True)
    left.step([*at, run.seconds], [*volumes, volumes[-1]], where="post", **style)
    macs = [s.macs for s in run.front]
    top1 = [(run.test_top1 or {})[s.number] for s in run.front]
    best = list(accumulate(top1, max))
    right.step([*macs, span.high], [*best, best[-1]] if best else [math.nan], where="post", **style)
    right.scatter(macs, top1, color=style["color"], s=20)


def write(runs: Sequence[Run], span: Span, args: argparse.Namespace) -> None:
    """Write `runs.csv`, `fronts.csv`, `curves.csv`, `front.png` and `about.json`."""
    fronts, curves = points(runs, span)
    for name, frame in (("runs", table(runs, span)), ("fronts", fronts), ("curves", curves)):
        write_atomic(args.out / f"{name}.csv", frame.to_csv(index=False, float_format="%.5g"))
    title = f"{args.space} on {args.data}, volume from {format_count(span.low)} to {format_count(span.high)} MACs"
    write_atomic(args.out / "front.png", plot(runs, span, title))
    about = {"options": {k: str(v) for k, v in vars(args).items()}, "volume": asdict(span), **environment()}
    write_atomic(args.out / "about.json", json.dumps(about, indent=2) + "\n")


def bench(args: argparse.Namespace) -> int:
    """Run the command; return 1 if a run failed."""
    span, cases = span_of(args), cases_of(args)
    say = partial(Console().print, highlight=False, markup=False, soft_wrap=True)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = run_all(cases, args, span, say)
    if runs:
        for line in lines(table(runs, span)):
            say(line)
    return int(len(runs) < len(cases))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each run and the means; write the tables and the plot."""
    return run_main(bench, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
