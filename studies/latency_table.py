"""Compare latencies from a table with measured latencies of random members of a space.

    python -m studies.latency_table --base micro --form optimized --batch-sizes 1 8 --members 40 --out DIR

For each batch size, the study measures the latency table of a space. Then it draws random members and times each of
them end to end, in two passes. It draws no network on which the table was fitted. The study prints and writes to
`latency.csv`: the median absolute error in %, Kendall's tau between the table and the measurements (the mean of both
passes), tau between both passes, and the seconds to make the table. `members.csv` has a row for each member.
`latency.png` shows predicted against measured latencies. Each table and each measurement is written at once, and the
same command does not repeat it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import Progress

import space as spaces
from res2net.arch import Arch
from res2net.commands import Parser, run_main
from res2net.deploy.timing import measured
from res2net.files import write_atomic
from res2net.latency import LatencyTable
from search.carriers import plan
from search.latency import FORM, check, load, make
from search.measuring import Target
from search.report.figures import label_counts, tidy
from search.units import format_ms, parse_seconds
from space import Space
from studies.bench import check_positive, first_line
from studies.rank import kendall
from trainers.meta import environment

PROG = "python -m studies.latency_table"
SPACE = "scale_card_depth_width"
TIMES = ("arch", "pass", "ms")  # columns of the measurements
TABLE_PASS, PASSES = 0, (1, 2)  # the row of pass 0 holds the time to make the table


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--space", default=SPACE, metavar="NAME", help="the space")
    out.add_argument("--base", default="micro", metavar="NAME", help=f"the base: {', '.join(spaces.BASES)}")
    out.add_argument("--form", default=FORM, metavar="NAME", help="how networks run")
    out.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N")
    out.add_argument("--batch-sizes", nargs="+", type=int, default=(1, 8), metavar="N", help="images of a batch")
    out.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a CPU")
    out.add_argument("--members", type=int, default=40, metavar="N", help="random members to time end to end")
    out.add_argument("--seed", type=int, default=0, metavar="N", help="the seed of the members")
    out.add_argument("--time", metavar="T", help="a bound on the time of each table; none: no bound")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the results")
    return out


def study(args: argparse.Namespace) -> None:
    """Run the command."""
    check_positive(args, "members", "threads")
    seconds = None if args.time is None else parse_seconds(args.time, "time")
    space = spaces.get(args.space, args.base)
    args.out.mkdir(parents=True, exist_ok=True)
    console, rows, members = Console(), [], []
    for batch_size in args.batch_sizes:
        target = Target.of(args.form, args.device, batch_size, args.threads)
        name = f"{args.space}-{args.base}-{args.device}-{args.threads}-{args.form}-{batch_size}".replace(":", "")
        path, log = args.out / f"table-{name}.json", args.out / f"times-{name}.csv"
        if path.exists():
            table = load(path)
            check(table, space)
        else:
            start = time.monotonic()
            table = make(space, args.form, args.device, batch_size, args.threads, seconds, console=console)
            took = time.monotonic() - start
            write_atomic(path, table.to_json())
            write_atomic(
                log, pd.DataFrame([("table", TABLE_PASS, 1e3 * took)], columns=list(TIMES)).to_csv(index=False)
            )
        times = pd.read_csv(log) if log.exists() else pd.DataFrame(columns=list(TIMES))
        archs = drawn(space, args.members, args.seed)
        times = timed(times, log, target, archs, space.image_size, console)
        took = times[times["pass"] == TABLE_PASS].ms.sum() / 1e3
        found = pd.DataFrame(compared(table, times, archs, space.image_size))
        rows.append(
            {
                "space": space.name,
                "base": args.base,
                "form": args.form,
                "batch": batch_size,
                **summary(found),
                "table_s": took,
            }
        )
        members.append(found.assign(batch=batch_size))
        console.print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), highlight=False, soft_wrap=True)
        console.print(f"overhead {table.overhead:.4f} ms, factor {table.factor:.4f}; {table.text}", highlight=False)
    env = environment()
    results = pd.DataFrame(rows).assign(members=args.members, commit=env["commit"], cpu=env["hardware"]["cpu"])
    write_atomic(args.out / "latency.csv", results.to_csv(index=False))
    every = pd.concat(members)
    write_atomic(args.out / "members.csv", every.to_csv(index=False))
    plot(every, f"{args.base}, {args.form}", args.out / "latency.png")


def drawn(space: Space, count: int, seed: int) -> list[Arch]:
    """Return different random members. None of them takes part in the fit of a table."""
    rng, used = random.Random(seed), {arch.key() for arch in plan(space).whole}
    found: dict[str, Arch] = {}
    for _ in range(100 * count):
        arch = space.arch(space.sample(rng))
        if arch.key() not in used:
            found.setdefault(arch.key(), arch)
        if len(found) == count:
            break
    return list(found.values())


def timed(
    times: pd.DataFrame, log: Path, target: Target, archs: Sequence[Arch], size: int, console: Console
) -> pd.DataFrame:
    """Return the times with two measurements of each network, and write them to `log` one by one."""
    known = set(zip(times.arch, times["pass"], strict=True))
    with Progress(console=console, transient=True) as bar:
        for number in PASSES:
            for arch in bar.track(archs, description=f"pass {number}"):
                if (str(arch), number) not in known:
                    times.loc[len(times)] = [str(arch), number, measured(target.runner(arch, size), target.threads)[0]]
                    write_atomic(log, times.to_csv(index=False))
    return times


def compared(table: LatencyTable, times: pd.DataFrame, archs: Sequence[Arch], size: int) -> Iterator[dict[str, Any]]:
    """Yield for each network its latency by the table, and two measurements, in ms."""
    found = times.set_index(["arch", "pass"]).ms
    for arch in archs:
        first, second = (float(found[str(arch), number]) for number in PASSES)
        yield {"arch": str(arch), "predicted": table.of(arch, size), "first": first, "second": second}


def summary(found: pd.DataFrame) -> dict[str, float]:
    """Return the errors and the correlations of a batch size."""
    predicted, first, second = (found[name].to_numpy() for name in ("predicted", "first", "second"))
    truth = (first + second) / 2
    error = 100 * (predicted / truth - 1)
    return {
        "median_error_%": float(np.median(np.abs(error))),
        "p90_error_%": float(np.quantile(np.abs(error), 0.9)),
        "bias_%": float(np.median(error)),
        "tau": kendall(predicted, truth),
        "tau_first": kendall(predicted, first),
        "tau_repeat": kendall(first, second),
        "repeat_error_%": float(100 * np.median(np.abs(first / second - 1))),
    }


def plot(found: pd.DataFrame, title: str, path: Path) -> None:
    """Write a scatter plot of predicted against measured latencies."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for batch, rows in found.groupby("batch"):
        axes.scatter((rows["first"] + rows["second"]) / 2, rows["predicted"], s=14, label=f"batch {batch}")
    ends = [float(np.min(found["predicted"])), float(np.max(found["predicted"]))]
    axes.plot(ends, ends, color="grey", linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="measured latency (ms)", ylabel="predicted latency (ms)", title=title)
    for axis in (axes.xaxis, axes.yaxis):
        label_counts(axis, format_ms)
    tidy(axes)
    axes.legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; return the exit code."""
    return run_main(study, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
