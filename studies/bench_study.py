"""Measure the cost of a growing study: ms of a proposal, ms of a trial without training, seconds of a report.

    python -m studies.bench_study --trials 10 1000 5000

A driver fills one study on disk with random proposals, in a space so large that repeats are rare. At each size, the
benchmark prints the medians of the last trials. Then a copy of the study is opened, continued by TPE and written as a
report. The last line is the ratio of the medians at the largest and the smallest size. Memory is the growth of the
process's memory after a first report, which loads the libraries. CPU time has a separate column, because wall time says
little on a busy machine.
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
from typing import Any

from res2net.commands import Parser, run_main
from res2net.errors import UserError
from search.api import SHOWN, open_study
from search.driver import Driver
from search.report import dashboard
from search.report.files import write
from search.report.page import interactive_front
from search.settings import Settings
from search.study.storage import STUDY_FILE, sqlite_url
from search.study.trials import Proposal
from search.worker import Job
from studies.bench import check_positive, first_line
from studies.synthetic import Synthetic, no_images
from trainers.meta import cores

PROG = "python -m studies.bench_study"
SAMPLERS = ("random", "tpe")
MEGA = 2**20


@dataclass(slots=True)
class Times:
    """Milliseconds of each trial: Optuna's answer, the whole proposal (clock and CPU), the whole trial."""

    ask: list[float] = field(default_factory=list)
    proposal: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)  # CPU time of the proposal
    trial: list[float] = field(default_factory=list)

    def medians(self, last: int) -> str:
        """Return the medians of the last trials, as columns of a row."""
        columns = (self.ask, self.proposal, self.processor, self.trial)
        return "".join(f"{statistics.median(v[-last:]):>11.1f}" for v in columns)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each size and sampler; return the exit code."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    check_positive(args, "measured")
    sizes = sorted(set(args.trials))
    if sizes[0] < 1:
        raise UserError(f"`trials`: {sizes[0]}; accepted: at least 1")
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
            times, first = Times(), 0.0
            for size in sizes:
                run(driver, size - driver.ledger.spent, times)
                memory, latest = resident(), statistics.median(times.trial[-args.measured :])
                first = first or latest
                print(f"{size:<8}{'random':<9}{times.medians(args.measured)}{'':>33}{memory:>11.0f}", flush=True)
                for sampler in SAMPLERS[1:]:
                    grown = Settings(**{**settings.to_dict(), "sampler": sampler, "trials": size + args.measured})
                    print(f"{size:<8}{sampler:<9}{measure(folder, grown)}", flush=True)
            print(f"ms per trial, {sizes[-1]} trials / {sizes[0]} trials: {latest / first:.2f}")


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--trials", type=int, nargs="+", default=[10, 1000, 5000], metavar="N", help="sizes of the study")
    out.add_argument("--measured", type=int, default=50, metavar="N", help="trials in a median")
    return out


def measure(folder: Path, settings: Settings) -> str:
    """Open a copy of the study, continue it and report it; return the columns of the row."""
    copy = folder / "copy"
    copy.mkdir()
    for file in (folder / "whole").glob(f"{STUDY_FILE}*"):
        shutil.copy(file, copy)
    times, begun = Times(), time.perf_counter()
    with opened(copy, settings) as driver:
        start = time.perf_counter() - begun
        run(driver, (settings.budget.trials or 0) - driver.ledger.spent, times)
        begun = time.perf_counter()
        trials = write(copy, driver.study.records(), driver.ledger, driver.space, settings)
        written = time.perf_counter() - begun
        last = trials.loc[trials.front | (trials.index >= len(trials) - SHOWN)]
        dashboard.show_front(driver.study, interactive_front(last, driver.ledger, "bench", settings))
        shown = time.perf_counter() - begun - written
    shutil.rmtree(copy)
    return f"{times.medians(len(times.ask))}{start:>11.2f}{written:>11.2f}{shown:>11.2f}{resident():>11.0f}"


def warm_up(folder: Path, settings: Settings) -> None:
    """Report a small study, so that plotting libraries are loaded before memory is measured."""
    with opened(folder, settings) as driver:
        run(driver, 3, Times())
        trials = write(folder, driver.study.records(), driver.ledger, driver.space, settings)
        dashboard.show_front(driver.study, interactive_front(trials, driver.ledger, "bench", settings))


def run(driver: Driver, count: int, times: Times) -> None:
    """Run `count` trials as the local executor does."""
    ask = driver.study.ask

    def timed_ask(*args: Any) -> Proposal:
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
        assert job is not None  # the space is larger than any study here
        for one in Synthetic()(job, no_images()):
            driver.on_report(job.number, one)
        times.ask.append(asked[-1])
        times.proposal.append(1000 * (proposed - begun))
        times.processor.append(1000 * processor)
        times.trial.append(1000 * (time.perf_counter() - begun))
    driver.study.ask = ask


@contextlib.contextmanager
def opened(folder: Path, settings: Settings) -> Iterator[Driver]:
    """Yield a driver over the study in the folder; it attaches `arch.json` to trials, as a search does."""
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    space = settings.scope.get_space(10)
    study = open_study(sqlite_url(folder), "bench", settings, space)

    def keep(job: Job, weights: bytes | None) -> None:
        dashboard.attach_arch(study, job.number, job.arch, folder / "artifacts")

    try:
        yield Driver(settings, space, study, keep)
    finally:
        study.close()


def resident() -> float:
    """Return the resident memory of this process in MB; 0 on other systems than Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / MEGA


if __name__ == "__main__":
    sys.exit(main())
