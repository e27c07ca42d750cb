"""What an executor adds to a trial: seconds per trial that trains nothing, over a real study on disk.

    python -m studies.bench_executor --trials 10 1000 5000 --sampler random

Each trial is asked of the sampler, screened, run, written to SQLite with its attributes and `arch.json`, and told. One
search runs, and a row is printed at each of the sizes: the seconds of its last tenth of trials, and the driver's memory
then. The first trial of every worker is in no row, so Ray's and the workers' start is a column of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from res2net.errors import Parser, UserError, run_main
from search.driver import Driver
from search.execute.local import execute as execute_local
from search.groups import EXECUTORS, Resources
from search.objectives import ACCURACY
from search.report import dashboard
from search.settings import Settings
from search.study.sampler import SAMPLERS, factory
from search.study.storage import sqlite_url
from search.study.study import Study
from search.worker import Job, Work
from studies.synthetic import Synthetic
from trainers.datasets.data import Data, Split
from trainers.meta import cores

PROG = "python -m studies.bench_executor"
Execute = Callable[[Driver, Data, Work], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One executor's figures when `trials` had ended, of which the last `n` took `seconds`; `memory` in MB.

    start: until each worker has run a trial, of which `ray` is until Ray is there.
    """

    executor: str
    workers: int
    ray: float
    start: float
    trials: int
    n: int
    seconds: float
    memory: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row an executor."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """The command's body."""
    if args.executor not in (*EXECUTORS, "both"):
        raise UserError(f"--executor: {args.executor!r}; accepted: {', '.join(EXECUTORS)}, both")
    workers, sizes = args.workers or cores(), sorted(args.trials)
    if sizes[0] <= workers:
        raise UserError(f"--trials: {sizes[0]}; accepted: more than {workers}, the trials that warm the workers up")
    settings = Settings(
        space="scale_card_depth_width",
        per_stage=True,  # so large that hardly a network comes twice
        trials=sizes[-1],
        epochs=args.epochs,
        sampler=args.sampler,
        seed=args.seed,
    )
    space = settings.scope.space
    print(f"space {space}, per stage: {args.epochs} epochs, {args.sampler}, seed {args.seed}, {cores()} cores")
    print(f"{'executor':<10}{'workers':>8}{'Ray, s':>9}{'start, s':>10}{'trials':>8}{'n':>6}{'s/trial':>10}{'MB':>8}")
    for executor in EXECUTORS if args.executor == "both" else (args.executor,):
        (local if executor == "local" else tune)(settings, workers, sizes)


def show(row: Row) -> None:
    """Print a row."""
    print(
        f"{row.executor:<10}{row.workers:>8}{row.ray:>9.2f}{row.start:>10.2f}{row.trials:>8}{row.n:>6}"
        f"{row.seconds / row.n:>10.4f}{row.memory:>8.0f}",
        flush=True,
    )


def parser() -> Parser:
    """The command's options."""
    out = Parser(prog=PROG, description=__doc__.splitlines()[0])
    out.add_argument(
        "--trials", type=int, nargs="+", default=[100], metavar="N", help="sizes of study to print a row at"
    )
    out.add_argument("--executor", default="both", help=f"{', '.join(EXECUTORS)}, or both")
    out.add_argument("--workers", type=int, metavar="N", help="trials at a time with tune (default: as many as cores)")
    out.add_argument("--epochs", type=int, default=1, metavar="N", help="reports a trial")
    out.add_argument("--sampler", default="tpe", help=", ".join(SAMPLERS))
    out.add_argument("--seed", type=int, default=0, metavar="N", help="of the proposals")
    return out


def local(settings: Settings, workers: int, sizes: list[int]) -> None:
    """The trials in this process."""
    measure("local", settings, execute_local, 1, 0.0, sizes)


def tune(settings: Settings, workers: int, sizes: list[int]) -> None:
    """The trials in Ray's workers."""
    begun = time.perf_counter()
    with ray_cluster(workers) as execute:
        measure("tune", settings, execute, workers, time.perf_counter() - begun, sizes)


def measure(
    executor: str, settings: Settings, execute: Execute, workers: int, ray_seconds: float, sizes: list[int]
) -> None:
    """Run the trials in a temporary folder, note when each ended, and print the rows."""
    ended: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder, space = Path(name), settings.scope.get_space(10)
        (folder / "artifacts").mkdir()
        directions = {o.name: o.direction for o in (ACCURACY, settings.scope.cost)}
        make, seed = factory(settings.budget.sampler), settings.scope.seed
        study = Study(sqlite_url(folder), "bench", directions, make, seed, space.parameters)

        def keep(job: Job, weights: bytes | None) -> None:
            dashboard.attach_arch(study, job.number, job.arch, folder / "artifacts")

        def note() -> None:
            before = len(ended)
            ended.extend([time.perf_counter()] * (driver.ledger.spent - before))
            for size in sizes:
                if before < size <= len(ended):
                    first = max(workers, size - max(8, size // 10))
                    start, seconds = ray_seconds + ended[workers - 1] - begun, ended[size - 1] - ended[first - 1]
                    show(Row(executor, workers, ray_seconds, start, size, size - first, seconds, memory()))

        driver = Driver(settings, space, study, keep, note)
        begun = time.perf_counter()
        execute(driver, no_images(), Synthetic())
        study.close()


def memory() -> float:
    """What this process holds in memory, in MB; Linux alone says so."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def ray_cluster(workers: int) -> Iterator[Execute]:
    """Ray on this machine, as `search.execute.tune` starts it; yields that executor."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        from search.execute.tune import execute

        yield lambda driver, data, work: execute(driver, data, work, Resources(workers=workers))
    finally:
        ray.shutdown()


def no_images() -> Data:
    """What has to be there for a work that looks at no image."""
    empty = Split(np.zeros((1, 3, 32, 32), np.uint8), np.zeros(1, np.int64))
    return Data("shapes", tuple("0123456789"), empty, empty, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


if __name__ == "__main__":
    sys.exit(main())
