"""A whole search, from settings to a folder with the front, plots and the best network."""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from res2net.errors import UserError
from search import calibration, included, runs
from search.checkpoints import TRUNKS, Checkpoints
from search.driver import Driver
from search.included import Included
from search.interrupts import held
from search.ledger import Ledger
from search.lock import locked
from search.model_folder import export
from search.prepared import Prepared, prepared
from search.proposals import all_tried
from search.report import dashboard
from search.report.figures import pareto_figure
from search.report.files import title_of, write
from search.report.page import interactive_front
from search.report.progress import Progress, Silent
from search.report.tables import front_frame, hypervolume_of, trials_frame
from search.settings import Settings
from search.shared_weights import TimeUp
from search.study.sampler import Factory, factory
from search.study.storage import Direction, connection_watched, sqlite_url
from search.study.study import Study
from search.study.trials import Record
from search.study.turns import join
from search.timetable import Timetable
from search.worker import Job, Work
from space import Space
from trainers.datasets.data import Data

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

# While a search runs, its tables and plots are rewritten every REPORT_SECONDS. Slow reports are written less often, so
# that reports take at most REPORT_SHARE of the driver's time.
REPORT_SECONDS = 30.0
REPORT_SHARE = 0.03
# Seconds of the setting `time` that are reserved for the last tables, plots and `best/`, by executor. Ray needs two
# more seconds to shut down.
RESERVE = {"local": 2.0, "tune": 4.0}
# The dashboard's plot shows only the front and the last SHOWN trials: each 2 KB of the plot costs a transaction.
SHOWN = 500


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a search.

    folder: the run's folder.
    settings, space: the settings and the space of the search.
    trials: a table with a row for each trial.
    front: the rows of `trials` on the front, cheapest first.
    hypervolume: the hypervolume of the front in %; see `search.front`.
    ledger: the ledger over all trials.
    seconds: the wall time of this call.
    why_stopped: the reason why the search ended, in words.
    interrupted: whether Ctrl-C ended the search.
    unfinished: whether trials are left; then the same call resumes the search.
    """

    folder: Path
    settings: Settings
    space: Space
    trials: pd.DataFrame
    front: pd.DataFrame
    hypervolume: float
    ledger: Ledger
    seconds: float = 0.0
    why_stopped: str = ""
    interrupted: bool = False
    unfinished: bool = False

    def plot(self) -> Figure:
        """Return the picture of the front as a matplotlib figure; notebooks show it."""
        return pareto_figure(self.trials, self.ledger, title_of(self.ledger, self.space, self.settings), self.settings)


def load(folder: str | Path) -> Result:
    """Return the result stored in a run's folder; write nothing. Raise `UserError` if the folder holds no run."""
    folder = Path(folder)
    settings, space = runs.settings_of(folder), runs.space_of(folder)
    records = runs.records_of(folder)
    books = Ledger.of(settings.rules, records)
    trials = trials_frame(records, books)
    front, value = front_frame(trials, settings.scope.cost), hypervolume_of(books, space, settings)
    left = _unfinished(settings, space, books, records)
    return Result(folder, settings, space, trials, front, value, books, why_stopped="loaded", unfinished=left)


def _unfinished(
    settings: Settings, space: Space, books: Ledger, records: Sequence[Record], exhausted: bool = False
) -> bool:
    """Return whether trials are left. Missing confirmations do not count: every resume runs them anyway.

    exhausted: whether the driver has found no new network.
    """
    trials, left = settings.budget.trials, any(r.state in ("WAITING", "RUNNING") for r in records)
    if trials is None:
        return left
    if books.spent >= trials:
        return False
    return left or bool(books.suspects) or not (exhausted or all_tried(settings, space, books))


def search(
    settings: Settings,
    out: str | Path | None = None,
    progress: Progress | None = None,
    work: Work | None = None,
    sampler: Factory | None = None,
    begun: float | None = None,
) -> Result:
    """Search a space as the settings say, and return the result.

    out: the run's folder. None creates a folder under `runs/`. The folder of an earlier search resumes that search.
    progress: the display of the search; None shows nothing.
    work: the function that workers run for each job; None takes the evaluator's function.
    sampler: a factory `seed -> sampler` in place of the settings' sampler. A resumed search must pass it again.
    begun: the time (`time.monotonic`) from which the setting `time` counts; None takes the time of the call.

    Before anything is written, raise `UserError` if settings, data and folder contradict each other.
    Ctrl-C (KeyboardInterrupt) ends the search in good order: `Result.interrupted` is True, and the same call resumes.
    """
    begun = time.monotonic() if begun is None else begun
    folder = Path(out) if out is not None else Path("runs") / runs.new_name(settings)
    given = _with_study_name(settings, folder)
    ready = prepared(given, folder, progress.console if progress else None)
    settings, data, space, networks = ready.settings, ready.data, ready.space, ready.networks
    runs.check(folder, settings, space)
    storage, name = settings.resources.storage, settings.resources.study
    if storage and name:
        new = not (folder / runs.RUN_FILE).exists()
        described = runs.described(settings, space)
        runs.check_study(join(storage, name, directions(settings), described, new), settings, space)
    table = None
    if settings.planned:  # before the lock creates the folder: the time may be too short
        with connection_watched(storage):
            table = _timetable(ready, folder, begun)
    with runs.disk_watched(folder), locked(folder), connection_watched(storage):
        plan = None if table is None else calibration.recorded(table)
        number = runs.open_run(folder, settings, space, data.describe(), plan)
        included.keep(networks, folder)
        here = {"host": socket.gethostname(), "folder": str(folder.absolute())}
        url, name = storage or sqlite_url(folder), name or folder.absolute().name
        study = open_study(url, name, settings, space, here, sampler)
        session = _Session(number, settings, folder, space, data, progress or Silent(), study, table, begun, networks)
        with contextlib.closing(study):
            return session.run(ready.executor.execute, work)


def plan_of(
    settings: Settings, out: str | Path | None = None, progress: Progress | None = None, begun: float | None = None
) -> Timetable:
    """Return the timetable that `search` would follow; write nothing. Raise `UserError` as `search` does."""
    folder = Path(out) if out is not None else Path("runs") / runs.new_name(settings)
    if not settings.planned:
        raise UserError("`dry_run`: this search has no plan; accepted: with `time`, without `trials` and `epochs`")
    begun = time.monotonic() if begun is None else begun
    return _timetable(prepared(settings, folder, progress.console if progress else None), folder, begun)


def _timetable(ready: Prepared, folder: Path, begun: float) -> Timetable:
    """Return the last session's timetable if it left at least this session's time, else a new timetable.

    Another number of workers needs a new timetable too.
    """
    settings, space, data, networks = ready.settings, ready.space, ready.data, ready.networks
    resumes = (folder / runs.RUN_FILE).exists()
    # A search that was stopped early may have no study yet.
    books = Ledger.of(settings.rules, runs.records_of(folder, may_lack=True) if resumes else [])
    sessions = runs.read(folder)["sessions"] if resumes else []
    seconds = settings.budget.time or 0.0
    workers, last = ready.executor.places(), sessions[-1].get("plan") if sessions else None
    if last and seconds <= runs.time_left(folder) and last["plan"]["workers"] == workers:
        return calibration.restored(last, settings, space, data, books, networks)
    session = f"{len(sessions)}-{secrets.token_hex(4)}" if settings.resources.storage else len(sessions)
    left = (seconds - RESERVE[settings.resources.executor] - (time.monotonic() - begun)) / settings.budget.repeat
    return calibration.timetable(settings, space, data, books, left, workers, session, networks)


def directions(settings: Settings) -> dict[str, Direction]:
    """Return the direction of each objective of a search by name: quality first, then cost."""
    return {o.name: o.direction for o in (settings.scoring.quality, *settings.scope.costs)}


def open_study(
    url: str,
    name: str,
    settings: Settings,
    space: Space,
    here: Mapping[str, str] | None = None,
    sampler: Factory | None = None,
) -> Study:
    """Open the study of a search. here: this driver's host and folder. sampler: see `search`."""
    make = sampler or factory(settings.budget.sampler)
    return Study(url, name, directions(settings), make, settings.scope.seed, space.parameters, here)


def _with_study_name(settings: Settings, folder: Path) -> Settings:
    """Return the settings. A shared study without a name gets the run folder's name; a resume keeps the old name."""
    if not settings.resources.storage or settings.resources.study is not None:
        return settings
    known = (folder / runs.RUN_FILE).exists()
    return settings.replace(study=runs.settings_of(folder).resources.study if known else folder.absolute().name)


class _Session:
    """One call of `search`: it runs a driver and writes the run's folder."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        folder: Path,
        space: Space,
        data: Data,
        progress: Progress,
        study: Study,
        table: Timetable | None,
        begun: float,
        networks: Sequence[Included],
    ) -> None:
        self.number, self.begun = number, begun
        self.settings, self.folder, self.space, self.data = settings, folder, space, data
        self.progress, self.study = progress, study
        seconds = settings.budget.time
        ends = None if seconds is None else begun + seconds - RESERVE[settings.resources.executor]
        files = Checkpoints(folder), Checkpoints(folder, TRUNKS) if settings.evaluator.grows else None
        self.driver = Driver(settings, space, study, self._keep, self._changed, number, *files, table, ends, networks)
        self.report_at = time.monotonic() + REPORT_SECONDS

    def run(self, execute: Callable[[Driver, Data, Work], None], work: Work | None) -> Result:
        interrupted = False
        try:
            if work is None:
                console = self.progress.console
                work = self.settings.evaluator.prepare(self.space, self.data, self.folder, console, self.driver.ends)
            with self._shown():
                execute(self.driver, self.data, work)
        except TimeUp:
            self.driver.choice.why_stopped = "the time was up before the shared weights were trained"
        except KeyboardInterrupt:
            interrupted = True
            self.driver.release_all("the search was interrupted")
        except UserError:
            self.driver.release_all("the search ended with an error")
            raise
        trials: pd.DataFrame | None = None
        while trials is None:
            try:
                with held():  # an interrupt waits until all is written
                    trials, seconds = self._report(), self._finish(interrupted)
            except KeyboardInterrupt:
                interrupted = True
        books, ended = self.driver.ledger, "the time is up" if self.settings.planned else "all trials are done"
        return Result(
            self.folder,
            self.settings,
            self.space,
            trials,
            front_frame(trials, self.settings.scope.cost),
            hypervolume_of(books, self.space, self.settings),
            books,
            seconds,
            "interrupted" if interrupted else self.driver.why_stopped or ended,
            interrupted,
            _unfinished(self.settings, self.space, books, self.study.records(), self.driver.proposals.exhausted),
        )

    def _finish(self, interrupted: bool) -> float:
        """Export the best network, and record the time that the search has used. Return the seconds of this call."""
        self._export_best()
        seconds = time.monotonic() - self.begun
        # A search that ends by itself has used all its time: the rest was too short for another network.
        spent = seconds if interrupted else max(seconds, self.settings.budget.time or 0.0)
        runs.note_spent(self.folder, self.number, spent)
        return seconds

    def _export_best(self) -> None:
        """Export the best trial whose weights are in this folder. Other drivers store weights in their own folders."""
        for record in self.driver.ledger.best:
            if runs.weights_path(self.folder, record.number).is_file():
                export(self.folder, str(record.number), self.folder / "best")
                return

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        s, n = self.settings, self.space.size
        where = f"{self.space.name} ({self.space.base}, {n:,} combinations) on {s.scope.data}"
        self.progress.start(self.driver, f"{where}, {s.budget.sampler}, -> {self.folder}")
        try:
            yield
        finally:
            self.progress.stop()

    def _keep(self, job: Job, weights: bytes | None) -> None:
        dashboard.attach_arch(self.study, job.number, job.arch, self.folder / runs.ARTIFACTS)
        if weights is not None:
            front = {r.number for r in self.driver.ledger.front}
            runs.keep_weights(self.folder, job.number, weights, front)

    def _changed(self) -> None:
        self.progress.changed()
        begun = time.monotonic()
        if begun > self.report_at:
            self._report()
            runs.note_spent(self.folder, self.number, begun - self.begun)
            now = time.monotonic()
            self.report_at = now + max(REPORT_SECONDS, (now - begun) / REPORT_SHARE)

    def _report(self) -> pd.DataFrame:
        books = self.driver.ledger
        trials = write(self.folder, self.study.records(), books, self.space, self.settings)
        shown = trials.loc[trials.front | (trials.index >= len(trials) - SHOWN)]
        figure = interactive_front(shown, books, self.folder.name, self.settings)
        dashboard.show_front(self.study, figure)
        return trials
