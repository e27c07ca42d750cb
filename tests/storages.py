"""The contract of every storage of a study, and helpers for tests of drivers over one."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from search.api import open_study
from search.driver import Driver
from search.execute.local import execute
from search.settings import Settings
from search.study.storage import sqlite_url
from search.study.trials import INFEASIBLE, ORPHAN, REPEATED, SCORED, Record
from search.worker import Job, Report
from studies.synthetic import Synthetic
from trainers.datasets.data import Data

ALL = 12  # networks of the tiny space
Open = Callable[..., contextlib.AbstractContextManager[Driver]]


class Killed(BaseException):
    """Stands for a SIGKILL of the driver."""


def opener(url: str, name: str) -> Open:
    """Return a function that opens drivers over one study."""

    @contextlib.contextmanager
    def open_(settings: Settings, **callbacks: Callable) -> Iterator[Driver]:
        space = settings.scope.get_space(10)
        where = {"host": "here", "folder": "runs/here"}
        study = open_study(url, name, settings, space, where)
        with contextlib.closing(study):
            yield Driver(settings, space, study, **callbacks)

    return open_


def records_of(driver: Driver, *outcomes: str) -> list[Record]:
    return [r for r in driver.study.records() if not outcomes or r.outcome in outcomes]


def answered(records: list[Record]) -> list[tuple[dict[str, int], str, float | None]]:
    return [(r.params, r.outcome, r.quality) for r in records if r.outcome not in (ORPHAN, "waiting")]


class StorageContract:
    """A subclass has a fixture `open_`, which opens drivers over one study."""

    def test_a_search_is_what_it_is_in_sqlite(
        self, open_: Open, make_settings: Callable, data: Data, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        settings = make_settings(trials=ALL, epochs=1, max_macs=300_000)
        found = []
        for open_driver in (open_, opener(sqlite_url(tmp_path_factory.mktemp("reference")), "run")):
            with open_driver(settings) as driver:
                execute(driver, data, Synthetic())
                found.append(answered(driver.study.records()))
                assert {r.outcome for r in driver.study.records()} <= {SCORED, REPEATED, INFEASIBLE}
        assert found[0] == found[1]

    def test_killed_and_resumed_is_as_never_killed(
        self, open_: Open, make_settings: Callable, data: Data, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        settings = make_settings(space="scale_card_depth_width", trials=10)

        jobs: list[int] = []

        def killed(job: Job, data: Data) -> Iterator[Report]:
            jobs.append(job.number)
            for report in Synthetic()(job, data):
                if len(jobs) == 7 and report.epoch == 2:
                    raise Killed
                yield report

        with opener(sqlite_url(tmp_path_factory.mktemp("whole")), "run")(settings) as driver:
            execute(driver, data, Synthetic())
            whole = answered(driver.study.records())
        with open_(settings) as driver, pytest.raises(Killed):
            execute(driver, data, killed)
        with open_(settings) as driver:
            execute(driver, data, Synthetic())
            assert answered(driver.study.records()) == whole
            assert [r.number for r in records_of(driver, ORPHAN)] == jobs[-1:]

    def test_books_of_a_driver_are_those_of_one_that_opens_the_study(
        self, open_: Open, make_settings: Callable, data: Data
    ) -> None:
        settings = make_settings(trials=9, max_macs=300_000)

        def work(job: Job, data: Data) -> Iterator[Report]:
            if job.number == 1:
                raise RuntimeError("no luck")
            if job.number % 4 == 2:
                raise MemoryError
            yield from Synthetic()(job, data)

        with open_(settings) as driver:
            execute(driver, data, work)
        with open_(settings) as again:
            for name in ("scored", "given_up", "lost", "counts", "front", "history", "spent"):
                assert getattr(again.ledger, name) == getattr(driver.ledger, name), name
            assert again.ledger.front == driver.ledger.front
            ended = Counter(r.outcome for r in again.study.records() if r.state != "WAITING")
            assert ended == again.ledger.counts

    def test_an_interruption_leaves_nothing_running(self, open_: Open, make_settings: Callable) -> None:
        with open_(make_settings()) as driver:
            jobs = [driver.next_job() for _ in range(3)]
            driver.release_all("the search was interrupted")
            assert driver.study.running() == []
            assert [driver.next_job().arch for _ in range(3)] == [job.arch for job in jobs]

    def test_what_ended_is_told_once(self, open_: Open, make_settings: Callable, data: Data) -> None:
        with open_(make_settings(trials=4)) as driver:
            execute(driver, data, Synthetic())
            assert driver.study.ended() == []
            assert driver.ledger.spent == len(records_of(driver, SCORED)) == 4
