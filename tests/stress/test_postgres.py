"""A study in PostgreSQL, and several drivers of one."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from searches import DIRECTIONS
from storages import ALL, Open, StorageContract, opener, records_of

import search.driver
from res2net.errors import UserError
from search import export, runs
from search.api import search as search_
from search.driver import KILLED, Driver
from search.execute.local import execute
from search.settings import Settings
from search.study.storage import read
from search.study.trials import FAILED, ORPHAN, REPEATED, SCORED, Record
from search.study.turns import join
from search.worker import Job, Report
from studies.synthetic import Synthetic
from trainers.datasets.data import Data

from . import many_drivers
from .postgres import Server


def vanish(driver: Driver) -> None:
    """Close the driver's connections without notice, as a kill of its process does."""
    driver.study._turns.close()


@pytest.fixture
def shared(postgres: Server, tmp_path: Path) -> Open:
    return opener(postgres.url, tmp_path.name)


class TestPostgres(StorageContract):
    @pytest.fixture
    def open_(self, shared: Open) -> Open:
        return shared


class TestSeveralDrivers:
    def test_none_tries_what_another_runs_or_ran(self, shared: Open, make_settings: Callable, data: Data) -> None:
        settings = make_settings(trials=100)
        with shared(settings) as one, shared(settings) as two:
            jobs = []
            for driver in itertools.cycle((one, two)):
                if (job := driver.next_job()) is None:
                    break
                jobs.append((driver, job))
            assert len(jobs) == len({job.arch.key() for _, job in jobs}) == ALL
            for driver, job in jobs:
                for report in Synthetic()(job, data):
                    driver.on_report(job.number, report)
            assert (one.next_job(), two.next_job()) == (None, None)
            assert one.ledger.spent == two.ledger.spent == ALL
            assert one.ledger.scored == two.ledger.scored
            assert one.ledger.front == two.ledger.front

    def test_trials_are_counted_over_all_drivers(self, shared: Open, make_settings: Callable) -> None:
        settings = make_settings(trials=5)
        with shared(settings) as one, shared(settings) as two:
            assert sum(driver.next_job() is not None for driver in (one, two) * 4) == 5

    def test_who_is_there_keeps_its_trials(self, shared: Open, make_settings: Callable, data: Data) -> None:
        settings = make_settings(trials=3)
        with shared(settings) as one:
            job = one.next_job()
            with shared(settings) as two:
                execute(two, data, Synthetic())
                assert [r.number for r in two.study.running()] == [job.number]
                assert two.study.orphans() == []
            assert [one.on_report(job.number, report) for report in Synthetic()(job, data)] == [True, False]
            assert one.ledger.spent == 3

    def test_what_one_left_behind_is_taken_over_by_exactly_one(
        self, shared: Open, make_settings: Callable, data: Data
    ) -> None:
        settings = make_settings(trials=ALL)
        with shared(settings) as gone, shared(settings) as one, shared(settings) as two:
            left = [gone.next_job() for _ in range(3)]
            gone.study.optuna_study.ask(gone.study._distributions)  # killed before it recorded the trial's driver
            vanish(gone)
            again = [driver.next_job() for driver in (one, two, one)]
            assert [job.arch for job in again] == [job.arch for job in left]
            for driver in (one, two):
                driver.release_all("the search was interrupted")
                execute(driver, data, Synthetic())
            assert {r.attrs["reason"] for r in records_of(one, ORPHAN)} == {KILLED, "the search was interrupted"}
            retried = Counter(r.attrs["retry_of"] for r in records_of(one) if "retry_of" in r.attrs)
            assert set(retried.values()) == {1}
            assert {r.outcome for r in records_of(one)} <= {SCORED, ORPHAN, REPEATED}
            assert len({r.key for r in records_of(one, SCORED)}) == len(records_of(one, SCORED)) == ALL

    @pytest.mark.parametrize("epoch", [1, 2])
    def test_a_trial_that_was_taken_over_is_let_go(
        self, epoch: int, shared: Open, make_settings: Callable, data: Data
    ) -> None:
        """The server has dropped the connection of a driver that still runs."""
        settings = make_settings(trials=2)
        with shared(settings) as slow, shared(settings) as other:
            job = slow.next_job()
            vanish(slow)
            again = other.next_job()
            assert again.arch == job.arch
            assert slow.on_report(job.number, Report(epoch, 99.0, 1.0, 1.0)) is False
            slow.on_lost(job.number, "told late")
            assert slow.running == {}
            execute(other, data, Synthetic())
            other.on_report(again.number, Report(2, 50.0, 1.0, 1.0))
            assert [r.outcome for r in records_of(other) if r.key == job.arch.key()] == [ORPHAN, SCORED]
            assert other.study.record(again.number).quality == 50.0

    def test_a_network_that_ends_its_driver_is_given_up(self, shared: Open, make_settings: Callable) -> None:
        settings = make_settings(trials=1)
        for _ in range(1 + search.driver.RETRIES + 1):  # the last one runs it alone
            with shared(settings) as driver:
                job = driver.next_job()
        with shared(settings) as driver:
            assert driver.next_job() is None
            (failed,) = records_of(driver, FAILED)
            assert (failed.key, driver.ledger.spent) == (job.arch.key(), 1)


class TestWholeSearch:
    WORK = Synthetic(weights=True)

    @pytest.fixture
    def settings(self, postgres: Server, make_settings: Callable, tmp_path: Path) -> Settings:
        return make_settings(trials=4, storage=postgres.url, study=tmp_path.name)

    def test_a_second_folder_joins(self, loaded: Data, settings: Settings, tmp_path: Path) -> None:
        first = search_(settings, tmp_path / "one", work=self.WORK)
        second = search_(replace(settings, trials=12), tmp_path / "two", work=self.WORK)
        assert (len(first.ledger.front) > 0, len(second.trials)) == (True, len(read_all(settings)))
        assert second.trials.outcome.eq(SCORED).sum() == 12
        assert not (tmp_path / "one/study.db").exists()
        here = {int(p.stem) for p in (tmp_path / "two/weights").iterdir()}
        assert here == {r.number for r in read_all(settings) if r.outcome == SCORED} - set(first.trials.number)
        best = json.loads((tmp_path / "two/best/training.json").read_text())
        scored = {r.number: r.quality for r in read_all(settings) if r.outcome == SCORED}
        assert best["val_top1"] == max(scored[n] for n in here)

    def test_weights_of_another_driver_are_one_line_that_says_where(
        self, loaded: Data, settings: Settings, tmp_path: Path
    ) -> None:
        search_(settings, tmp_path / "one", work=self.WORK)
        search_(replace(settings, trials=5), tmp_path / "two", work=self.WORK)
        with pytest.raises(
            UserError, match=r"^`pick`: the weights of trial 0 are where it was trained, in '.*/one' on"
        ):
            export.export(tmp_path / "two", "0", tmp_path / "to")
        assert export.export(tmp_path / "one", "0", tmp_path / "to").number == 0

    def test_the_folder_alone_goes_on_under_the_name_it_had(
        self, loaded: Data, make_settings: Callable, postgres: Server, tmp_path: Path
    ) -> None:
        settings = make_settings(trials=2, storage=postgres.url)
        search_(settings, tmp_path / "before", work=self.WORK)
        (tmp_path / "before").rename(tmp_path / "after")
        result = search_(replace(settings, trials=3), tmp_path / "after", work=self.WORK)
        assert runs.settings_of(tmp_path / "after").resources.study == "before"
        assert result.trials.outcome.eq(SCORED).sum() == 3

    def test_a_server_that_goes_away_is_one_line_and_the_search_goes_on_later(
        self, loaded: Data, settings: Settings, postgres: Server, tmp_path: Path
    ) -> None:
        def stops(job: Job, data: Data) -> Iterator[Report]:
            for report in self.WORK(job, data):
                if job.number == 2 and report.epoch == 2:
                    postgres.stop()
                yield report

        try:
            with pytest.raises(UserError, match=r"^`storage`: .* cannot be reached any more: .*nothing is lost; accep"):
                search_(settings, tmp_path / "run", work=stops)
        finally:
            postgres.start()
        result = search_(settings, tmp_path / "run", work=self.WORK)
        assert [r.outcome for r in read_all(settings)] == [SCORED, SCORED, ORPHAN, SCORED, SCORED]
        assert result.trials.retry_of.dropna().tolist() == [2]


def read_all(settings: Settings) -> list[Record]:
    return list(read(Path(), settings.resources.storage, settings.resources.study))


class TestRefusals:
    """One line, and nothing written."""

    def test_a_wrong_password(self, refused: Callable, postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGPASSWORD", "secret")
        error = refused(f"--storage {postgres.url.replace('search@', 'stranger@')}")
        assert 'password authentication failed for user "stranger"' in error
        assert "secret" not in error

    def test_a_study_of_another_search(
        self, refused: Callable, postgres: Server, make_settings: Callable, tmp_path: Path
    ) -> None:
        settings = make_settings(trials=1, storage=postgres.url, study=tmp_path.name)
        space = settings.scope.get_space(10, 8)
        join(postgres.url, tmp_path.name, DIRECTIONS, runs.described(settings, space), new=True)
        same = f"--storage {postgres.url} --study {tmp_path.name} --trials 1 --batch-size 20"
        assert refused(f"{same} --seed 1") == (
            f"--study: '{tmp_path.name}' holds a search with --seed 0, not 1; "
            "accepted: the same settings, or another --study\n"
        )
        with pytest.raises(UserError, match="another content of `space`"):
            runs.check_study(runs.described(settings, settings.scope.get_space(10, 32)), settings, space)

    def test_a_folder_whose_study_is_not_there(
        self, loaded: Data, make_settings: Callable, postgres: Server, tmp_path: Path
    ) -> None:
        """A new study would have other networks under the numbers of the weights."""
        with pytest.raises(UserError, match="there is no study 'lost' in postgresql://"):
            join(postgres.url, "lost", DIRECTIONS, {}, new=False)


@pytest.mark.slow
def test_drivers_of_which_one_is_killed_lose_and_double_nothing(
    postgres: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = f"--drivers 3 --trials 12 --storage {postgres.url} --out {tmp_path} --seconds 280"
    assert many_drivers.main(options.split()) == 0
    out = capsys.readouterr().out
    assert "killed: driver" in out
    assert "lost: 0, doubled: 0, left running or waiting: 0, beyond --trials: 0" in out
