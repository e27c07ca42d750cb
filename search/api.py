"""A whole search, from settings to a folder with the front, plots and the best network."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from search import export, runs, supernet
from search.checkpoints import Checkpoints
from search.driver import Driver
from search.execute.local import execute as execute_local
from search.report import dashboard, tables
from search.report.progress import Progress, Silent
from search.settings import RESOURCES, Settings, check_limits
from search.study.study import SCORED, Study, join, reached, sqlite_url
from search.worker import Job, SharedWork, Work, train_trial
from space import Space
from trainers.datasets.data import Data

REPORT_SECONDS = 30.0  # how old tables and plots may be while a search runs; older, where they
REPORT_SHARE = 0.03  # would take more than this share of the driver's time
SHOWN = 500  # of the last trials on the dashboard, beside the front: each 2 KB of its plot are a transaction


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
    data = settings.load_data(progress.console if progress else None)
    space = runs.space_for(folder, settings, data)
    check_limits(space, settings)
    if settings.supernet is not None:
        work = SharedWork(supernet.load(Path(settings.supernet), space, data, settings))
    if settings.executor == "tune":
        from search.execute import tune as execute_tune  # Ray is imported where it is asked for

        execute_tune.check(**_where(settings))
    if settings.storage and settings.study is None:
        known = (folder / runs.RUN_FILE).exists()
        settings = replace(settings, study=runs.settings_of(folder).study if known else folder.absolute().name)
    runs.check(folder, settings, space)
    if settings.storage:
        new = not (folder / runs.RUN_FILE).exists()
        runs.check_study(join(settings.storage, settings.study, runs.described(settings, space), new), settings, space)
    with runs.disk_watched(folder), runs.locked(folder), reached(settings.storage):
        number = runs.open_run(folder, settings, space, _describe(data))
        session = _Session(number, settings, folder, space, data, progress or Silent(), work)
        with contextlib.closing(session.study):
            return session.run()


class _Session:
    """One driver's time with a run's folder."""

    def __init__(
        self, number: int, settings: Settings, folder: Path, space: Space, data: Data, progress: Progress, work: Work
    ) -> None:
        self.settings, self.folder, self.space, self.data = settings, folder, space, data
        self.progress, self.work = progress, work
        here = {"host": socket.gethostname(), "folder": str(folder.absolute())}
        url, name = settings.storage or sqlite_url(folder), settings.study or folder.absolute().name
        self.study = Study(url, name, settings.sampler, settings.seed, space.parameters, here)
        self.driver = Driver(settings, space, self.study, self._keep, self._changed, number, Checkpoints(folder))
        self.report_at = time.monotonic() + REPORT_SECONDS

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
        found = tables.front_frame(trials)
        self._export_best(trials)
        value = tables.hypervolume_of(trials, self.space, self.settings)
        why = "interrupted" if interrupted else self.driver.why_stopped or "all trials are done"
        # Confirmations that are missing are asked for by any resume.
        unfinished = self.driver.spent < self.settings.trials
        return Result(self.folder, found, trials, value, time.monotonic() - begun, why, interrupted, unfinished)

    def _export_best(self, trials: pd.DataFrame) -> None:
        """Of the trials whose weights are in this folder, the best: other drivers keep theirs."""
        scored = trials[(trials.outcome == SCORED) & (trials.epochs == self.settings.epochs)]
        for number in scored.sort_values(["val_top1", "macs"], ascending=[False, True]).number:
            if runs.weights_path(self.folder, int(number)).is_file():
                export.export(self.folder, str(number), self.folder / "best")
                return

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
        from search.execute import tune as execute_tune

        execute_tune.execute(self.driver, self.data, self.work, **_where(self.settings))

    def _keep(self, job: Job, weights: bytes | None) -> None:
        dashboard.attach_arch(self.study, job.number, job.arch, self.folder / runs.ARTIFACTS)
        if weights is not None:
            front = {r.number for r in self.driver.front}
            runs.keep_weights(self.folder, job.number, weights, front)

    def _changed(self) -> None:
        self.progress.changed()
        begun = time.monotonic()
        if begun > self.report_at:
            self._report()
            now = time.monotonic()
            self.report_at = now + max(REPORT_SECONDS, (now - begun) / REPORT_SHARE)

    def _report(self) -> pd.DataFrame:
        trials = tables.write(self.folder, self.study.records(), self.space, self.settings)
        shown = trials[trials.front | (trials.index >= len(trials) - SHOWN)]
        dashboard.show_front(self.study, tables.pareto_figure(shown, self.folder.name, self.settings))
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
