"""What a study costs as it grows: milliseconds of a proposal and of a trial that trains nothing, seconds of its plots.

    python -m studies.bench_study --trials 10 1000 5000

A driver fills one study on disk by random proposals, in a space so large that hardly a network comes twice. At each
size it measures its last trials; then a copy is opened, gone on with by TPE, and written as a report. Memory is the
process's, after a first report: what grows with the study is what matters. The processor's time is a column of its own,
as on a machine that does other things the clock says little.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from res2net.errors import Parser, UserError, run_main
from search.api import SHOWN
from search.driver import Driver
from search.objectives import ACCURACY
from search.report import dashboard, files
from search.report.page import interactive_front
from search.settings import Settings
from search.study.sampler import factory
from search.study.storage import STUDY_FILE, sqlite_url
from search.study.study import Study
from search.worker import Job
from studies.bench import check_positive
from studies.synthetic import Synthetic
from trainers.meta import cores

PROG = "python -m studies.bench_study"
SAMPLERS = ("random", "tpe")
MEGA = 2**20


@dataclass(slots=True)
class Times:
    """Of each trial, in ms: until Optuna answered, until there was a job, until it was told and forgotten."""

    ask: list[float] = field(default_factory=list)
    proposal: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # of the proposal
    trial: list[float] = field(default_factory=list)

    def medians(self, last: int) -> str:
        columns = (self.ask, self.proposal, self.processor, self.trial)
        return "".join(f"{statistics.median(v[-last:]):>11.1f}" for v in columns)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each size and sampler."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """The command's body."""
    check_positive(args, "measured")
    sizes = sorted(set(args.trials))
    if sizes[0] < 1:
        raise UserError(f"--trials: {sizes[0]}; accepted: at least 1")
    settings = Settings(space="scale_card_depth_width", per_stage=True, sampler="random", epochs=1, trials=sizes[-1])
    space = settings.scope.get_space(10)
    print(f"space {space.name}, per stage ({space.size:,} combinations), seed 0, {cores()} cores")
    print(f"medians of the last {args.measured} trials (ms); open: study and driver (s); report and dashboard (s)")
    names = ("ask", "proposal", "its CPU", "trial", "open", "report", "dashboard", "RSS, MB")
    print(f"{'trials':<8}{'sampler':<9}" + "".join(f"{name:>11}" for name in names))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        warm_up(folder / "warm", settings)
        with opened(folder / "whole", settings) as driver:
            times = Times()
            for size in sizes:
                run(driver, size - driver.ledger.spent, times)
                memory = resident()
                print(f"{size:<8}{'random':<9}{times.medians(args.measured)}{'':>33}{memory:>11.0f}", flush=True)
                for sampler in SAMPLERS[1:]:
                    grown = settings.replace(sampler=sampler, trials=size + args.measured)
                    print(f"{size:<8}{sampler:<9}{measure(folder, grown)}", flush=True)


def parser() -> Parser:
    """The command's options."""
    out = Parser(prog=PROG, description=__doc__.splitlines()[0])
    out.add_argument("--trials", type=int, nargs="+", default=[10, 1000, 5000], metavar="N", help="sizes of the study")
    out.add_argument("--measured", type=int, default=50, metavar="N", help="trials that a median is of")
    return out


def measure(folder: Path, settings: Settings) -> str:
    """What comes after a sampler's name: a copy of the study is opened, gone on with, and reported."""
    copy = folder / "copy"
    copy.mkdir()
    for file in (folder / "whole").glob(f"{STUDY_FILE}*"):
        shutil.copy(file, copy)
    times, begun = Times(), time.perf_counter()
    with opened(copy, settings) as driver:
        start = time.perf_counter() - begun
        run(driver, settings.budget.trials - driver.ledger.spent, times)
        begun = time.perf_counter()
        trials = files.write(copy, driver.study.records(), driver.ledger, driver.space, settings)
        written = time.perf_counter() - begun
        last = trials[trials.front | (trials.index >= len(trials) - SHOWN)]
        dashboard.show_front(driver.study, interactive_front(last, driver.ledger, "bench", settings))
        shown = time.perf_counter() - begun - written
    shutil.rmtree(copy)
    return f"{times.medians(len(times.ask))}{start:>11.2f}{written:>11.2f}{shown:>11.2f}{resident():>11.0f}"


def warm_up(folder: Path, settings: Settings) -> None:
    """A report of a small study, so that the libraries are there."""
    with opened(folder, settings) as driver:
        run(driver, 3, Times())
        trials = files.write(folder, driver.study.records(), driver.ledger, driver.space, settings)
        dashboard.show_front(driver.study, interactive_front(trials, driver.ledger, "bench", settings))


def run(driver: Driver, count: int, times: Times) -> None:
    """So many trials, as the local executor runs them."""
    ask = driver.study.ask

    def timed_ask(*args: object):
        begun = time.perf_counter()
        proposal = ask(*args)
        asked.append(1000 * (time.perf_counter() - begun))
        return proposal

    driver.study.ask = timed_ask
    for _ in range(count):
        asked: list[float] = []
        begun, used = time.perf_counter(), time.process_time()
        job = driver.next_job()
        proposed, processor = time.perf_counter(), time.process_time() - used
        for one in Synthetic()(job, None):
            driver.on_report(job.number, one)
        times.ask.append(asked[-1])
        times.proposal.append(1000 * (proposed - begun))
        times.processor.append(1000 * processor)
        times.trial.append(1000 * (time.perf_counter() - begun))
    driver.study.ask = ask


@contextlib.contextmanager
def opened(folder: Path, settings: Settings) -> Iterator[Driver]:
    """A driver over the study in the folder, that attaches each network to its trial as a search does."""
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    space = settings.scope.get_space(10)
    directions = {o.name: o.direction for o in (ACCURACY, settings.scope.cost)}
    make, seed = factory(settings.budget.sampler), settings.scope.seed
    study = Study(sqlite_url(folder), "bench", directions, make, seed, space.parameters)

    def keep(job: Job, weights: bytes | None) -> None:
        dashboard.attach_arch(study, job.number, job.arch, folder / "artifacts")

    try:
        yield Driver(settings, space, study, keep)
    finally:
        study.close()


def resident() -> float:
    """The process's memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGA


if __name__ == "__main__":
    sys.exit(main())
