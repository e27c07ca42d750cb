"""A whole search, from settings to a folder with the front, plots and the best network."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

import trainers.data
from search import dashboard, export, report, runs, supernet
from search.driver import Driver
from search.execute_local import execute as execute_local
from search.progress import Progress, Silent, front_records
from search.settings import RESOURCES, Settings, check_limits
from search.study import Study, sqlite_url
from search.worker import Job, SharedWork, Work, train_trial
from space import Space
from trainers.data import Data

REPORT_SECONDS = 30.0  # how old tables and plots may be while a search runs


@dataclass(frozen=True, slots=True)
class Result:
    """What a search found. `front` has a row a network, cheapest first; `hypervolume` is in % (see `search.front`).

    interrupted: by Ctrl-C. unfinished: before `--trials` were spent, so that the same call goes on.
    """

    folder: Path
    front: pd.DataFrame
    trials: pd.DataFrame
    hypervolume: float
    seconds: float
    why_stopped: str
    interrupted: bool = False
    unfinished: bool = False


def search(
    settings: Settings, out: str | Path | None = None, progress: Progress | None = None, work: Work = train_trial
) -> Result:
    """Search as the settings say, in the folder `out` (a new one under `runs/` if None; an earlier search goes on).

    `UserError` for settings, data or a folder that do not go together, before anything is written. Ctrl-C
    (KeyboardInterrupt) ends the search in good order: the result says so, and the same call goes on.
    """
    folder = Path(out) if out is not None else Path("runs") / runs.new_name(settings)
    data = trainers.data.load(settings.data, settings.data_dir, seed=settings.seed, train_images=settings.train_images)
    space = runs.space_for(folder, settings, data)
    check_limits(space, settings)
    if settings.supernet is not None:
        work = SharedWork(supernet.load(Path(settings.supernet), space, data, settings))
    if settings.executor == "tune":
        from search import execute_tune  # Ray is imported where it is asked for

        execute_tune.check(**_where(settings))
    runs.check(folder, settings, space)
    with runs.locked(folder):
        number = runs.open_run(folder, settings, space, _describe(data))
        return _Session(number, settings, folder, space, data, progress or Silent(), work).run()


class _Session:
    """One driver's time with a run's folder."""

    def __init__(
        self, number: int, settings: Settings, folder: Path, space: Space, data: Data, progress: Progress, work: Work
    ) -> None:
        self.settings, self.folder, self.space, self.data = settings, folder, space, data
        self.progress, self.work = progress, work
        self.study = Study(
            sqlite_url(folder), folder.absolute().name, settings.sampler, settings.seed, space.parameters
        )
        self.driver = Driver(settings, space, self.study, self._keep, self._changed, number)
        self.reported = time.monotonic()

    def run(self) -> Result:
        begun, interrupted = time.monotonic(), False
        try:
            self._train_supernet()
            with self._shown():
                self._execute()
        except KeyboardInterrupt:
            interrupted = True
            self.driver.release_all("the search was interrupted")
        trials = self._report()
        found = report.front_frame(trials)
        if len(found) and runs.weights_path(self.folder, int(found.number.iloc[-1])).is_file():
            export.export(self.folder, "best", self.folder / "best")
        self.study.close()
        value = report.hypervolume_of(trials, self.space, self.settings)
        why = "interrupted" if interrupted else self.driver.why_stopped or "all trials are done"
        # Confirmations that are missing are asked for by any resume.
        unfinished = self.driver.spent < self.settings.trials
        return Result(self.folder, found, trials, value, time.monotonic() - begun, why, interrupted, unfinished)

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        s, n = self.settings, self.space.size
        title = f"{self.space.name} ({self.space.base}, {n:,} combinations) on {s.data}, {s.sampler}, -> {self.folder}"
        self.progress.start(self.driver, title)
        try:
            yield
        finally:
            self.progress.stop()

    def _train_supernet(self) -> None:
        """The weights that trials share, in the run's folder, if they were not brought along."""
        s = self.settings
        if s.evaluator == "scratch" or s.supernet is not None:
            return
        how = replace(s, epochs=s.supernet_epochs, lr=Settings().lr if s.evaluator == "inherit" else s.lr)
        self.work = SharedWork(
            supernet.train(how, self.space, self.data, self.folder / supernet.FOLDER, self.progress.console)
        )

    def _execute(self) -> None:
        if self.settings.executor == "local":
            execute_local(self.driver, self.data, self.work)
            return
        from search import execute_tune

        execute_tune.execute(self.driver, self.data, self.work, **_where(self.settings))

    def _keep(self, job: Job, weights: bytes | None) -> None:
        dashboard.attach_arch(self.study, job.number, job.arch, self.folder / runs.ARTIFACTS)
        if weights is not None:
            front = {r.number for r in front_records(self.driver)}
            runs.keep_weights(self.folder, job.number, weights, front)

    def _changed(self) -> None:
        self.progress.changed()
        if time.monotonic() - self.reported > REPORT_SECONDS:
            self._report()
            self.reported = time.monotonic()

    def _report(self) -> pd.DataFrame:
        trials = report.write(self.folder, self.study.records(), self.space, self.settings)
        dashboard.show_front(self.study, report.pareto_figure(trials, self.folder.name, self.settings))
        return trials


def _where(settings: Settings) -> dict[str, Any]:
    """The settings that are Ray's."""
    return {name: getattr(settings, name) for name in RESOURCES}


def _describe(data: Data) -> dict[str, object]:
    return {
        "name": data.name,
        "classes": list(data.classes),
        "train_images": len(data.train.labels),
        "val_images": len(data.val.labels),
        "mean": list(data.mean),
        "std": list(data.std),
        "image_size": data.image_size,
    }
