"""What an executor adds to a trial: seconds per trial that trains nothing, over a real study on disk.

    python -m studies.bench_executor --trials 100

Each trial is asked of the sampler, screened, run, written to SQLite with its attributes and `arch.json`, and told. The
clock starts when the first trial of every worker has ended, so Ray's and the workers' start is a column of its own.
"""

from __future__ import annotations

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
from search import dashboard
from search.driver import Driver
from search.execute_local import execute as execute_local
from search.settings import EXECUTORS, SAMPLERS, Settings
from search.study import Study, sqlite_url
from search.worker import Job, Work
from studies.synthetic import Synthetic
from trainers.data import Data, Split
from trainers.meta import cores

PROG = "python -m studies.bench_executor"
Execute = Callable[[Driver, Data, Work], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One executor's figures. `start` is until each worker has run a trial, of which `ray` is until Ray is there."""

    executor: str
    workers: int
    ray: float
    start: float
    asked: int
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row an executor."""
    return run_main(bench, PROG, argv)


def bench(argv: Sequence[str] | None = None) -> None:
    """The command's body."""
    args = parser().parse_args(argv)
    if args.executor not in (*EXECUTORS, "both"):
        raise UserError(f"--executor: {args.executor!r}; accepted: {', '.join(EXECUTORS)}, both")
    workers = args.workers or cores()
    if args.trials <= workers:
        raise UserError(f"--trials: {args.trials}; accepted: more than {workers}, the trials that warm the workers up")
    settings = Settings(
        space="scale_card",
        per_stage=True,  # so large that hardly a network comes twice
        trials=args.trials,
        epochs=args.epochs,
        sampler=args.sampler,
        seed=args.seed,
    )
    shown = f"{args.trials} trials of {args.epochs} epochs, {args.sampler}, seed {args.seed}, {cores()} cores"
    print(f"space {settings.space}, per stage: {shown}")
    print(f"{'executor':<10}{'workers':>8}{'Ray, s':>9}{'start, s':>10}{'asked':>7}{'s/trial':>10}")
    for executor in EXECUTORS if args.executor == "both" else (args.executor,):
        row = local(settings) if executor == "local" else tune(settings, workers)
        print(
            f"{row.executor:<10}{row.workers:>8}{row.ray:>9.2f}{row.start:>10.2f}{row.asked:>7}{row.seconds:>10.4f}",
            flush=True,
        )


def parser() -> Parser:
    """The command's options."""
    out = Parser(prog=PROG, description=__doc__.splitlines()[0])
    out.add_argument("--trials", type=int, default=100, metavar="N", help="trials to run with each executor")
    out.add_argument("--executor", default="both", help=f"{', '.join(EXECUTORS)}, or both")
    out.add_argument("--workers", type=int, metavar="N", help="trials at a time with tune (default: as many as cores)")
    out.add_argument("--epochs", type=int, default=1, metavar="N", help="reports a trial")
    out.add_argument("--sampler", default="tpe", help=", ".join(SAMPLERS))
    out.add_argument("--seed", type=int, default=0, metavar="N", help="of the proposals")
    return out


def local(settings: Settings) -> Row:
    """The trials in this process."""
    return measure("local", settings, execute_local, 1, 0.0)


def tune(settings: Settings, workers: int) -> Row:
    """The trials in Ray's workers."""
    begun = time.perf_counter()
    with ray_cluster(workers) as execute:
        return measure("tune", settings, execute, workers, time.perf_counter() - begun)


def measure(executor: str, settings: Settings, execute: Execute, workers: int, ray_seconds: float) -> Row:
    """Run the trials in a temporary folder and note when each ended."""
    ended: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder, space = Path(name), settings.get_space(10)
        (folder / "artifacts").mkdir()
        study = Study(sqlite_url(folder), "bench", settings.sampler, settings.seed, space.parameters)

        def keep(job: Job, weights: bytes | None) -> None:
            dashboard.attach_arch(study, job.number, job.arch, folder / "artifacts")

        def note() -> None:
            ended.extend([time.perf_counter()] * (driver.spent - len(ended)))

        driver = Driver(settings, space, study, keep, note)
        begun = time.perf_counter()
        execute(driver, no_images(), Synthetic())
        asked = len(study.records())
        study.close()
    warm, n = ended[workers - 1], len(ended)
    return Row(executor, workers, ray_seconds, ray_seconds + warm - begun, asked, (ended[-1] - warm) / (n - workers))


@contextlib.contextmanager
def ray_cluster(workers: int) -> Iterator[Execute]:
    """Ray on this machine, as `search.execute_tune` starts it; yields that executor."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        from search.execute_tune import execute

        yield lambda driver, data, work: execute(driver, data, work, workers)
    finally:
        ray.shutdown()


def no_images() -> Data:
    """What has to be there for a work that looks at no image."""
    empty = Split(np.zeros((1, 3, 32, 32), np.uint8), np.zeros(1, np.int64))
    return Data("shapes", tuple("0123456789"), empty, empty, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


if __name__ == "__main__":
    sys.exit(main())
