"""One contract for every storage of a study; in PostgreSQL, several drivers of one."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import search.study.sampler
import search.study.study
from res2net.errors import UserError
from search import export, run, runs
from search.api import search as search_
from search.driver import Driver
from search.execute.local import execute
from search.ledger import KILLED, RETRIES
from search.settings import Settings
from search.study.sampler import factory
from search.study.storage import read, sqlite_url
from search.study.study import Study
from search.study.trials import FAILED, INFEASIBLE, ORPHAN, REPEATED, SCORED, Record
from search.study.turns import join
from search.worker import Job, Report
from studies import many_drivers
from studies.postgres import Server
from studies.synthetic import Synthetic
from trainers.datasets.data import Data

ALL = 12  # networks of the tiny space
DIRECTIONS = {"val_top1": "maximize", "macs": "minimize"}
Open = Callable[..., contextlib.AbstractContextManager[Driver]]


class Killed(BaseException):
    """Stands for a `kill -9` of the driver."""


def opener(url: str, name: str) -> Open:
    """Opens drivers over one study."""

    @contextlib.contextmanager
    def open_(settings: Settings, **callbacks: Callable) -> Iterator[Driver]:
        space = settings.scope.get_space(10)
        where = {"host": "here", "folder": "runs/here"}
        make, seed = factory(settings.budget.sampler), settings.scope.seed
        study = Study(url, name, DIRECTIONS, make, seed, space.parameters, where)
        with contextlib.closing(study):
            yield Driver(settings, space, study, **callbacks)

    return open_


def records_of(driver: Driver, *outcomes: str) -> list[Record]:
    return [r for r in driver.study.records() if not outcomes or r.outcome in outcomes]


def answered(records: list[Record]) -> list[tuple[dict[str, int], str, float | None]]:
    return [(r.params, r.outcome, r.val_top1) for r in records if r.outcome not in (ORPHAN, "waiting")]


def vanish(driver: Driver) -> None:
    """As if the driver's process had been killed: its connections end without a word."""
    driver.study._turns.close()


@pytest.fixture(params=["sqlite", "postgres"])
def open_(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "sqlite":
        return opener(sqlite_url(tmp_path), "run")
    return opener(request.getfixturevalue("postgres").url, tmp_path.name)


@pytest.fixture
def shared(postgres: Server, tmp_path: Path) -> Open:
    return opener(postgres.url, tmp_path.name)


class TestEveryStorage:
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
            gone.study.optuna_study.ask(gone.study._distributions)  # killed before it said whose the trial is
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
        """The server lost sight of a driver that goes on."""
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
            assert other.study.record(again.number).val_top1 == 50.0

    def test_a_network_that_ends_its_driver_is_given_up(self, shared: Open, make_settings: Callable) -> None:
        settings = make_settings(trials=1)
        for _ in range(1 + RETRIES + 1):  # the last one runs it alone
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
        second = search_(settings.replace(trials=12), tmp_path / "two", work=self.WORK)
        assert (len(first.front) > 0, len(second.trials)) == (True, len(read_all(settings)))
        assert second.trials.outcome.eq(SCORED).sum() == 12
        assert not (tmp_path / "one/study.db").exists()
        here = {int(p.stem) for p in (tmp_path / "two/weights").iterdir()}
        assert here == {r.number for r in read_all(settings) if r.outcome == SCORED} - set(first.trials.number)
        best = json.loads((tmp_path / "two/best/training.json").read_text())
        scored = {r.number: r.val_top1 for r in read_all(settings) if r.outcome == SCORED}
        assert best["val_top1"] == max(scored[n] for n in here)

    def test_weights_of_another_driver_are_one_line_that_says_where(
        self, loaded: Data, settings: Settings, tmp_path: Path
    ) -> None:
        search_(settings, tmp_path / "one", work=self.WORK)
        search_(settings.replace(trials=5), tmp_path / "two", work=self.WORK)
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
        result = search_(settings.replace(trials=3), tmp_path / "after", work=self.WORK)
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

    @pytest.fixture
    def refused(self, loaded: Data, tiny_space: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable:
        def run_(options: str) -> str:
            arguments = ["--space", str(tiny_space), "--executor", "local", "--out", str(tmp_path / "run")]
            assert run.main([*arguments, *options.split()]) == 2
            out, error = capsys.readouterr()
            assert (out, error.count("\n")) == ("", 1)
            assert not (tmp_path / "run").exists()
            return error.removeprefix("python -m search.run: error: ")

        return run_

    @pytest.mark.parametrize(
        ("url", "named"),
        [
            ("sqlite:///study.db", "--storage: no URL of a PostgreSQL database; accepted: postgresql://"),
            ("postgresql://host", "--storage: no URL of a PostgreSQL database; accepted: postgresql://"),
            ("postgresql://me:secret@host/db", "--storage: holds a password"),
            ("postgresql://host/db?user=me&password=secret", "--storage: holds a password"),
        ],
    )
    def test_a_url_that_will_not_do(self, url: str, named: str, refused: Callable) -> None:
        error = refused(f"--storage {url}")
        assert error.startswith(named)
        assert "secret" not in error

    def test_a_name_without_a_storage(self, refused: Callable) -> None:
        assert refused("--study mine").startswith("--study: has no effect without --storage")

    def test_shared_weights_that_each_driver_would_train(self, refused: Callable) -> None:
        error = refused("--storage postgresql://me@host/db --evaluator supernet")
        assert error.startswith("--storage: with --evaluator supernet all drivers need the same shared weights")

    def test_a_server_that_is_not_there(self, refused: Callable) -> None:
        error = refused("--storage postgresql://me@127.0.0.1:1/db")
        assert error.startswith("--storage: postgresql://me@127.0.0.1:1/db cannot be opened: ")
        assert "accepted: a database that you may write" in error

    def test_a_wrong_password(self, refused: Callable, postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGPASSWORD", "secret")
        error = refused(f"--storage {postgres.url.replace('search@', 'stranger@')}")
        assert 'password authentication failed for user "stranger"' in error
        assert "secret" not in error

    def test_the_package_is_missing(self, refused: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        assert "pip install 'res2net-search[postgres]'" in refused("--storage postgresql://me@host/db")

    def test_a_study_of_another_search(
        self, refused: Callable, postgres: Server, make_settings: Callable, tmp_path: Path
    ) -> None:
        settings = make_settings(trials=1, storage=postgres.url, study=tmp_path.name)
        space = settings.scope.get_space(10, 8)
        join(postgres.url, tmp_path.name, DIRECTIONS, runs.described(settings, space), new=True)
        same = f"--storage {postgres.url} --study {tmp_path.name} --batch-size 20"
        assert refused(f"{same} --seed 1") == (
            f"--study: '{tmp_path.name}' holds a search with --seed 0, not 1; "
            "accepted: the same settings, or another --study\n"
        )
        with pytest.raises(UserError, match="another content of `space`"):
            runs.check_study(runs.described(settings, settings.scope.get_space(10, 32)), settings, space)

    def test_a_folder_whose_study_is_not_there(
        self, loaded: Data, make_settings: Callable, postgres: Server, tmp_path: Path
    ) -> None:
        """A new one would have other networks under the numbers of the weights."""
        with pytest.raises(UserError, match="there is no study 'lost' in postgresql://"):
            join(postgres.url, "lost", DIRECTIONS, {}, new=False)


def test_what_is_done_for_a_trial_does_not_grow_with_the_study(
    open_driver: Callable, make_settings: Callable, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial is read out of the study a bounded number of times, however many there are."""
    monkeypatch.setattr(search.study.sampler, "REMEMBERED", 10)
    given, read_, seen = search.study.study.record_of, [], []
    monkeypatch.setattr(search.study.study, "record_of", lambda trial: read_.append(trial.number) or given(trial))
    settings = make_settings(space="scale_card_depth_width", trials=60, epochs=1, sampler="tpe")
    with open_driver(settings) as driver:
        while (job := driver.next_job()) is not None:
            for report in Synthetic()(job, data):
                driver.on_report(job.number, report)
            seen.append(len(search.study.sampler.remembered(driver.study._trials, driver.study._front)))
        trials = len(driver.study._trials)
        front = len(driver.study._front)
    assert len(read_) < 12 * trials
    assert max(Counter(read_).values()) < 20
    assert 10 <= seen[-1] <= 10 + front < 60


@pytest.mark.slow
def test_drivers_of_which_one_is_killed_lose_and_double_nothing(
    postgres: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = f"--drivers 3 --trials 12 --storage {postgres.url} --out {tmp_path} --seconds 280"
    assert many_drivers.main(options.split()) == 0
    out = capsys.readouterr().out
    assert "killed: driver" in out
    assert "lost: 0, doubled: 0, left running or waiting: 0, beyond --trials: 0" in out
