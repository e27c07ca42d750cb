"""Measure the overhead of the executors: seconds per trial without training, with a study on disk.

    python -m studies.bench_executor --trials 10 1000 5000 --sampler random

A trial is proposed, screened, run, written to SQLite with its attributes and `arch.json`, and told to Optuna. One
search runs for each executor. At each size of the study (`--trials`), it prints a row: the seconds of the last tenth of
the trials, and the driver's memory. Rows leave out each worker's first trial, because the starts of Ray and of workers
have their own columns. With both executors, an additional line shows the ratio of their seconds per trial at the
largest size. With several objectives, additional lines show the ratios to the first objective.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from res2net.commands import Parser, run_main
from res2net.errors import UserError
from search.api import open_study
from search.driver import Driver
from search.execute.local import execute as execute_local
from search.objectives import NAMES
from search.report import dashboard
from search.resources import EXECUTORS, Resources
from search.settings import Settings
from search.study.sampler import SAMPLERS
from search.study.storage import sqlite_url
from search.worker import Job, Work
from studies.bench import first_line
from studies.synthetic import Synthetic, latency_table, no_images
from trainers.datasets.data import Data
from trainers.meta import cores

PROG = "python -m studies.bench_executor"
Execute = Callable[[Driver, Data, Work], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One executor's figures at a size of the study.

    ray: the seconds until Ray runs.
    start: the seconds until each worker has run a trial, `ray` included.
    trials: the number of ended trials.
    seconds: the time of the last `n` ended trials.
    memory: the driver's memory in MB.
    """

    executor: str
    objective: str
    workers: int
    ray: float
    start: float
    trials: int
    n: int
    seconds: float
    memory: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each executor and size; return the exit code."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.executor not in (*EXECUTORS, "both"):
        raise UserError(f"`executor`: {args.executor!r}; accepted: {', '.join(EXECUTORS)}, both")
    workers, sizes = args.workers or cores(), sorted(args.trials)
    if sizes[0] <= workers:
        raise UserError(f"`trials`: {sizes[0]}; accepted: more than {workers}, one warm-up trial per worker")
    settings = Settings(
        space="scale_card_depth_width",
        per_stage=True,  # makes the space so large that repeats are rare
        trials=sizes[-1],
        epochs=args.epochs,
        sampler=args.sampler,
        seed=args.seed,
    )
    how = f"{args.epochs} epochs, {args.sampler}, seed {args.seed}, {cores()} cores"
    print(f"space {settings.scope.space}, per stage: {how}")
    titles = f"{'workers':>8}{'Ray, s':>9}{'start, s':>10}{'trials':>8}{'n':>6}{'s/trial':>10}{'MB':>8}"
    print(f"{'executor':<10}{'objective':<14}{titles}")
    table = latency_table(settings.scope.get_space(10))
    last: dict[tuple[str, str], float] = {}
    executors = EXECUTORS if args.executor == "both" else (args.executor,)
    for executor, objective in itertools.product(executors, args.objective):
        run = local if executor == "local" else tune
        row = run(settings.replace(objective=objective, latency=table), workers, sizes)
        last[executor, objective] = row.seconds / row.n
    if args.executor == "both":
        one, many = last["local", args.objective[0]], last["tune", args.objective[0]]
        print(f"seconds per trial, tune / local: {many / one:.2f}")
    for executor, objective in itertools.product(executors, args.objective[1:]):
        ratio = last[executor, objective] / last[executor, args.objective[0]]
        print(f"seconds per trial, {executor}, {objective} / {args.objective[0]}: {ratio:.3f}")


def show(row: Row) -> None:
    """Print a row."""
    print(
        f"{row.executor:<10}{row.objective:<14}{row.workers:>8}{row.ray:>9.2f}{row.start:>10.2f}{row.trials:>8}{row.n:>6}"
        f"{row.seconds / row.n:>10.4f}{row.memory:>8.0f}",
        flush=True,
    )


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument(
        "--trials", type=int, nargs="+", default=[100], metavar="N", help="sizes of the study at which a row is printed"
    )
    out.add_argument("--executor", default="both", help=f"{', '.join(EXECUTORS)}, or both")
    out.add_argument("--workers", type=int, metavar="N", help="concurrent trials of tune (default: all cores)")
    out.add_argument("--epochs", type=int, default=1, metavar="N", help="reports per trial")
    text = f"cost objectives, one search each: {', '.join(NAMES)}, or several with commas (latency: a formula)"
    out.add_argument("--objective", nargs="+", default=["macs"], metavar="NAME", help=text)
    out.add_argument("--sampler", default="tpe", help=", ".join(SAMPLERS))
    out.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the proposals")
    return out


def local(settings: Settings, workers: int, sizes: list[int]) -> Row:
    """Run the trials in this process; return the last row."""
    return measure("local", settings, execute_local, 1, 0.0, sizes)


def tune(settings: Settings, workers: int, sizes: list[int]) -> Row:
    """Run the trials in workers of Ray; return the last row."""
    begun = time.perf_counter()
    with ray_cluster(workers) as execute:
        return measure("tune", settings, execute, workers, time.perf_counter() - begun, sizes)


def measure(
    executor: str, settings: Settings, execute: Execute, workers: int, ray_seconds: float, sizes: list[int]
) -> Row:
    """Run the trials in a temporary folder, print a row at each size, and return the last row."""
    ended: list[float] = []
    objective = settings.scope.objective
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder, space = Path(name), settings.scope.get_space(10)
        (folder / "artifacts").mkdir()
        study = open_study(sqlite_url(folder), "bench", settings, space)

        def keep(job: Job, weights: bytes | None) -> None:
            dashboard.attach_arch(study, job.number, job.arch, folder / "artifacts")

        def note() -> None:
            before = len(ended)
            ended.extend([time.perf_counter()] * (driver.ledger.spent - before))
            for size in sizes:
                if before < size <= len(ended):
                    first = max(workers, size - max(8, size // 10))
                    start, seconds = ray_seconds + ended[workers - 1] - begun, ended[size - 1] - ended[first - 1]
                    count = size - first
                    row = Row(executor, objective, workers, ray_seconds, start, size, count, seconds, memory())
                    rows.append(row)
                    show(row)

        driver = Driver(settings, space, study, keep, note)
        begun = time.perf_counter()
        execute(driver, no_images(), Synthetic())
        study.close()
    return rows[-1]


def memory() -> float:
    """Return the resident memory of this process in MB; 0 on other systems than Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def ray_cluster(workers: int) -> Iterator[Execute]:
    """Start Ray on this machine; yield the executor that uses it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # slow to import, and not needed for the local executor

    ray.init(
        address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        from search.execute.tune import execute

        yield lambda driver, data, work: execute(driver, data, work, Resources(workers=workers))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
