"""A planned search by formula: levels in order, epochs of their own, retries and kills, networks of the sampler."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from res2net import contains
from search import api, runs, search
from search.driver import Driver
from search.execute.local import execute
from search.objectives import MACS
from search.plan import Level, Pace, Plan, Terms
from search.settings import Settings
from search.study.storage import read
from search.study.trials import AGAIN, FAILED, INFEASIBLE, ORPHAN, REPEATED, SCORED, STOPPED, Record
from search.timetable import Member, Timetable, members
from search.worker import Job, Report, Work
from studies.synthetic import Synthetic, accuracy
from trainers.datasets.data import Data

SECONDS = 60.0  # of an epoch of the cheapest network
LEFT = 3600.0  # until the end of the search
SESSION = 3


class Killed(BaseException):
    """Stands for a `kill -9` of the driver: nothing that handles failures or interruptions may handle it."""


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(trials=None, epochs=None, time=LEFT, sampler="random")


@pytest.fixture
def ladder(settings: Settings) -> list[Member]:
    """Four networks of the tiny space, by rising cost."""
    space = settings.scope.get_space(10)
    found = members(space, settings.scope.limits, MACS, 0)
    return [found[i] for i in (0, 1, len(found) // 2, len(found) - 1)]


@pytest.fixture
def make_table(ladder: list[Member]) -> Callable[..., Timetable]:
    """Returns a function that makes the timetable of some networks of the ladder (default: all)."""

    def make(*places: int, workers: int = 1) -> Timetable:
        chosen = [ladder[i] for i in places or range(len(ladder))]
        pace = Pace(tuple(m.cost for m in ladder), tuple(SECONDS * (i + 1) for i in range(len(ladder))), 1.0)
        levels = tuple(Level(m.params, m.cost, 3.0, 0.0, 3 * pace.of(m.cost) + 1) for m in chosen)
        terms = Terms(ladder[0].cost, 2 * ladder[-1].cost, 45_000)
        return Timetable(Plan(LEFT, workers, levels, 0, 50.0, 0.0), pace, terms, steps_per_epoch=2, session=SESSION)

    return make


@pytest.fixture
def as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pace stays as it was measured, although trials by formula take no time."""
    monkeypatch.setattr(Timetable, "note", lambda *args: None)


@pytest.fixture
def run(open_driver: Callable, settings: Settings, data: Data, as_measured: None) -> Callable[..., Driver]:
    """Returns a function that runs a planned search."""

    def run_(table: Timetable, work: Work | None = None, **more: object) -> Driver:
        with open_driver(settings, timetable=table, ends=time.monotonic() + LEFT, **more) as driver:
            execute(driver, data, work or Synthetic())
        return driver

    return run_


@pytest.fixture
def only_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ends after the plan's levels."""
    monkeypatch.setattr(Timetable, "explores", lambda self, left: False)


def of(folder: Path, *outcomes: str) -> list[Record]:
    return [r for r in read(folder) if r.outcome in outcomes]


def places(records: list[Record]) -> list[list[int] | None]:
    return [r.attrs.get("plan") for r in records]


def in_full(job: Job) -> float:
    """Return the accuracy of a network after all epochs of its job."""
    return accuracy(job.arch, job.config.epochs)


def noting(jobs: list[Job]) -> Work:
    """Return a work by formula that appends its jobs to a list."""

    def work(job: Job, data: Data) -> Iterator[Report]:
        jobs.append(job)
        yield from Synthetic()(job, data)

    return work


@pytest.mark.usefixtures("only_levels")
class TestLevels:
    def test_are_trained_in_order_for_their_epochs(
        self, run: Callable, make_table: Callable, ladder: list[Member], tmp_path: Path
    ) -> None:
        jobs: list[Job] = []
        driver = run(make_table(), noting(jobs))
        scored = of(tmp_path, SCORED)
        assert places(scored) == [[SESSION, i] for i in range(len(ladder))]
        assert [r.key for r in scored] == [m.arch.key() for m in ladder] == [j.arch.key() for j in jobs]
        for record, job in zip(scored, jobs, strict=True):
            budget = record.attrs["budget"]
            assert record.attrs["epochs"] == budget >= 1
            assert job.config.steps == round(2 * budget)
            assert job.config.epochs == math.ceil(job.config.steps / 2)
            assert record.quality == in_full(job)
            assert job.fits
            assert 0 < job.seconds <= LEFT
        assert driver.why_stopped == "the time is up"
        assert [r.key for r in driver.ledger.front] == [m.arch.key() for m in ladder]

    def test_a_shortened_training_counts_for_what_it_trained(
        self, run: Callable, make_table: Callable, tmp_path: Path
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            yield Report(1, 30.0, 2.0)
            yield Report(2, 40.0, 1.8, budget=1.5)

        run(make_table(0, 1), work)
        scored = of(tmp_path, SCORED)
        assert [(r.attrs["epochs"], r.quality) for r in scored] == [(1.5, 40.0)] * 2
        assert places(scored) == [[SESSION, 0], [SESSION, 1]]

    def test_a_trial_corrects_the_pace(
        self, open_driver: Callable, settings: Settings, make_table: Callable, data: Data, monkeypatch: Any
    ) -> None:
        noted: list[tuple[float, float]] = []
        monkeypatch.setattr(Timetable, "note", lambda self, cost, epochs, seconds: noted.append((cost, epochs)))
        table = make_table()
        with open_driver(settings, timetable=table, ends=time.monotonic() + LEFT) as driver:
            execute(driver, data, Synthetic())
            trained = [(driver.ledger.cost(r), r.attrs["budget"]) for r in driver.ledger.history]
        assert noted == trained

    def test_a_failed_network_is_not_trained_again(self, run: Callable, make_table: Callable, tmp_path: Path) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            if job.number == 1:
                raise RuntimeError("no luck")
            yield from Synthetic()(job, data)

        run(make_table(), work)
        assert places(of(tmp_path, SCORED)) == [[SESSION, i] for i in (0, 2, 3)]
        assert places(of(tmp_path, FAILED)) == [[SESSION, 1]]


@pytest.mark.usefixtures("only_levels")
class TestPreview:
    """The same network first for a short time, then for longer."""

    def test_is_trained_again_for_a_longer_budget(
        self, run: Callable, make_table: Callable, ladder: list[Member], tmp_path: Path
    ) -> None:
        driver = run(make_table(0, 0, 2))
        short, long, other = of(tmp_path, SCORED)
        assert short.key == long.key == ladder[0].arch.key()
        assert short.attrs["budget"] < long.attrs["budget"]
        assert short.quality < long.quality
        assert driver.ledger.scored[long.key] == long
        assert driver.ledger.front == [long, other]

    @pytest.mark.parametrize("share", [0.5, 1.0])
    def test_is_not_trained_again_for_the_same_budget_or_less(
        self,
        share: float,
        run: Callable,
        make_table: Callable,
        open_driver: Callable,
        settings: Settings,
        data: Data,
        tmp_path: Path,
    ) -> None:
        run(make_table(0, 2))
        first = of(tmp_path, SCORED)[0]
        table = make_table(0, 2)
        with open_driver(settings, timetable=table, ends=time.monotonic() + LEFT) as driver:
            driver.study.enqueue(first.params, plan=(SESSION, 7), budget=share * first.attrs["budget"])
            execute(driver, data, Synthetic())
        (repeated,) = of(tmp_path, REPEATED)
        assert repeated.attrs["repeat_of"] == first.number
        assert (repeated.quality, repeated.attrs["epochs"]) == (first.quality, first.attrs["epochs"])
        assert len(of(tmp_path, SCORED)) == 2


@pytest.mark.usefixtures("only_levels")
class TestRetries:
    @staticmethod
    def paused_at(number: int) -> Callable[[Job, Data], Iterator[Report]]:
        """Return a work in which the time of one trial ends after its first epoch."""

        def work(job: Job, data: Data) -> Iterator[Report]:
            work.jobs.append(job)
            reports = Synthetic()(job, data)
            if job.number == number:
                yield next(reports)
                yield Report(1, checkpoint=b"state", paused=True)
            else:
                yield from reports

        work.jobs = []
        return work

    def test_a_paused_trial_is_released_and_resumes(self, run: Callable, make_table: Callable, tmp_path: Path) -> None:
        work = self.paused_at(1)
        run(make_table(), work)
        (paused,) = of(tmp_path, ORPHAN)
        assert paused.attrs["plan"] == [SESSION, 1]
        assert "the time was up after epoch 1" in paused.attrs["reason"]
        scored = of(tmp_path, SCORED)
        assert places(scored) == [[SESSION, i] for i in range(4)]
        resumed = scored[1]
        assert (resumed.attrs["retry_of"], resumed.attrs["budget"]) == (paused.number, paused.attrs["budget"])
        first, again = (j for j in work.jobs if j.arch.key() == paused.key)
        assert (first.checkpoint, again.checkpoint) == (None, b"state")
        assert (first.config, first.rungs) == (again.config, again.rungs)

    def test_a_search_whose_time_is_over_resumes_the_plan(
        self, run: Callable, make_table: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first call ends with a paused trial; the next call resumes it before it starts further levels."""
        checkpoints: dict[int, bytes] = {}
        with monkeypatch.context() as patch:
            work = self.paused_at(1)

            def ends(job: Job, data: Data) -> Iterator[Report]:
                for report in work(job, data):
                    if report.paused:
                        patch.setattr(Driver, "seconds_left", property(lambda self: 0.0))
                    yield report

            assert run(make_table(), ends, checkpoints=checkpoints).why_stopped == "the time is up"
        assert [r.state for r in read(tmp_path)] == ["COMPLETE", "FAIL", "WAITING"]
        run(make_table(), checkpoints=checkpoints)
        scored = of(tmp_path, SCORED)
        assert places(scored) == [[SESSION, i] for i in range(4)]
        assert len({r.key for r in scored}) == 4

    def test_a_retry_may_use_the_time_that_is_reserved_for_seeds(
        self, open_driver: Callable, settings: Settings, make_table: Callable, as_measured: None
    ) -> None:
        ends = time.monotonic() + LEFT
        with open_driver(settings.replace(repeat=2), timetable=make_table(), ends=ends) as driver:
            job = driver.next_job()
            assert job is not None
            driver.ends -= LEFT / 2 + 60
            assert not driver.on_report(job.number, Report(1, checkpoint=b"state", paused=True))
            retry = driver.next_job()
        assert retry is not None
        assert (retry.arch, retry.checkpoint) == (job.arch, b"state")
        assert 0 < retry.seconds < LEFT / 2 - 60

    def test_the_reserve_is_a_share_of_the_time_that_is_left_at_the_start(
        self, open_driver: Callable, settings: Settings, make_table: Callable, as_measured: None
    ) -> None:
        ends = time.monotonic() + LEFT / 4
        with open_driver(settings.replace(repeat=3), timetable=make_table(), ends=ends) as driver:
            job = driver.next_job()
        assert job is not None
        assert job.seconds == pytest.approx(LEFT / 4 / 3, abs=5)

    @pytest.mark.parametrize("number", [0, 1, 3])
    def test_a_killed_driver_does_not_repeat_levels(
        self, number: int, run: Callable, make_table: Callable, tmp_path: Path
    ) -> None:
        """The trial that the kill ended is run again, with its budget; the levels before it are not."""

        def killed(job: Job, data: Data) -> Iterator[Report]:
            reports = Synthetic()(job, data)
            yield next(reports)
            if job.number == number:
                raise Killed
            yield from reports

        with pytest.raises(Killed):
            run(make_table(), killed)
        run(make_table())
        scored = of(tmp_path, SCORED)
        assert places(scored) == [[SESSION, i] for i in range(4)]
        assert len({r.key for r in scored}) == 4
        (orphan,) = of(tmp_path, ORPHAN)
        (again,) = [r for r in scored if r.attrs.get("retry_of") == orphan.number]
        assert again.attrs["budget"] == orphan.attrs["budget"]

    def test_a_new_plan_repeats_no_network_for_fewer_epochs(
        self, run: Callable, make_table: Callable, tmp_path: Path
    ) -> None:
        """A plan of a later session has levels of its own; known networks are answered from the study."""
        run(make_table())
        table = make_table()
        table.session = SESSION + 1
        run(table)
        known = {r.key: r.attrs["epochs"] for r in of(tmp_path, SCORED)[:4]}
        for record in of(tmp_path, SCORED)[4:]:
            assert record.attrs["budget"] > known[record.key]
        assert places(of(tmp_path, SCORED, REPEATED))[4:] == [[SESSION + 1, i] for i in range(4)]


class TestExploration:
    """After the levels, the sampler proposes networks in the time that is left."""

    def test_follows_the_levels(self, run: Callable, make_table: Callable, tmp_path: Path) -> None:
        driver = run(make_table())
        ended = of(tmp_path, SCORED, STOPPED)
        assert places(ended)[:4] == [[SESSION, i] for i in range(4)]
        explored = ended[4:]
        assert places(explored) == [None] * len(explored)
        assert {r.attrs["budget"] for r in explored} == {3.0}  # the epochs of the plan's levels
        assert len({r.key for r in ended}) == len(ended) == 12
        assert driver.why_stopped == "every network of the space that meets the limits was tried"

    def test_children_grow_from_the_trunks_that_are_there(
        self, run: Callable, make_table: Callable, tmp_path: Path
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                yield replace(report, trunk=b"weights" if report.epoch == job.trunk else None)

        table = make_table()
        table.plan = replace(table.plan, grown=True)
        run(table, work)
        records = {r.number: r for r in of(tmp_path, SCORED, STOPPED)}
        grown = [r for r in records.values() if "parent" in r.attrs and "plan" not in r.attrs]
        assert grown
        for record in grown:
            parent = records[record.attrs["parent"]]
            assert contains(record.arch, parent.arch)
            assert record.attrs["inherited"] == parent.attrs["inherited"] + parent.attrs["trunk"] > 0

    def test_a_proposal_that_is_too_long_is_followed_by_a_child_that_is_not(
        self,
        run: Callable,
        open_driver: Callable,
        settings: Settings,
        make_table: Callable,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with monkeypatch.context() as levels_alone:
            levels_alone.setattr(Timetable, "explores", lambda self, left: False)
            run(make_table())
        table = make_table()
        table.started |= set(range(4))
        enough = 3 * 2 * SECONDS + 1  # for networks up to the second level
        with open_driver(settings, timetable=table, ends=time.monotonic() + enough) as driver:
            jobs = [job for job in (driver.next_job() for _ in range(4)) if job is not None]
            too_long = [r for r in driver.study.records() if r.outcome == INFEASIBLE]
        assert jobs
        assert len(too_long) <= len(jobs) + 1

    def test_a_network_that_a_level_trains_is_not_trained_twice(
        self, open_driver: Callable, settings: Settings, make_table: Callable, as_measured: None
    ) -> None:
        table = make_table(workers=2)
        with open_driver(settings, timetable=table, ends=time.monotonic() + LEFT) as driver:
            first = driver.next_job()
            assert first is not None
            driver.study.enqueue(table.plan.levels[0].params)  # as a sampler may propose it
            second = driver.next_job()
            assert second is not None
            assert second.arch != first.arch
            assert driver.study.record(1).outcome == REPEATED

    def test_bad_networks_stop_at_rungs_and_levels_never_do(
        self, run: Callable, make_table: Callable, tmp_path: Path
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                yield replace(report, quality=report.quality / (1 + job.number))

        run(make_table(), work)
        stopped = of(tmp_path, STOPPED)
        assert stopped
        assert not any("plan" in r.attrs for r in stopped)
        assert places(of(tmp_path, SCORED))[:4] == [[SESSION, i] for i in range(4)]

    def test_no_network_starts_without_time_for_it(
        self, open_driver: Callable, settings: Settings, make_table: Callable, data: Data, as_measured: None
    ) -> None:
        table = make_table()
        table.started |= set(range(4))
        with open_driver(settings, timetable=table, ends=time.monotonic() + SECONDS) as driver:
            assert driver.next_job() is None
            assert driver.why_stopped == "the time is up"
            assert not list(driver.study.records())


class TestSearch:
    """Whole searches by formula: `run.json`, the plan that is resumed, and the time that is left."""

    @pytest.fixture
    def settings(self, make_settings: Callable[..., Settings]) -> Settings:
        return make_settings(trials=None, epochs=None, time=LEFT, sampler="random")

    @pytest.fixture
    def planned(self, make_table: Callable, monkeypatch: pytest.MonkeyPatch, as_measured: None) -> list[float]:
        """The seconds for which plans were made. Each plan is that of `make_table`."""
        made: list[float] = []

        def timetable(settings: Settings, space: object, data: object, books: object, left: float, *rest: int) -> Any:
            made.append(left)
            table = make_table()
            table.session = rest[1]
            return table

        monkeypatch.setattr(api.calibration, "timetable", timetable)
        monkeypatch.setattr(Timetable, "explores", lambda self, left: False)
        return made

    def test_run_json_holds_the_plan_and_the_time_that_was_spent(
        self, settings: Settings, loaded: Data, planned: list[float], tmp_path: Path
    ) -> None:
        result = search(settings, tmp_path / "run", work=Synthetic(weights=True))
        (session,) = runs.read(tmp_path / "run")["sessions"]
        assert session["time"] == LEFT
        assert Plan.from_dict(session["plan"]["plan"]).levels == make_levels(session)
        # It ended by itself: no time is left.
        assert session["spent"] == pytest.approx(max(LEFT, result.seconds), abs=1)
        assert runs.time_left(tmp_path / "run") == 0
        assert LEFT - 5 < planned[0] <= LEFT - min(api.RESERVE.values())
        assert (tmp_path / "run/best").is_dir()
        assert not result.unfinished

    def test_the_table_has_fractions_of_epochs(
        self, settings: Settings, loaded: Data, planned: list[float], tmp_path: Path
    ) -> None:
        result = search(settings, tmp_path / "run", work=Synthetic())
        budgets = [r.attrs["budget"] for r in of(tmp_path / "run", SCORED)]
        assert any(budget % 1 for budget in budgets)
        assert list(result.trials.epochs) == budgets
        assert not {"plan", "budget"} & set(result.trials.columns)
        assert "planned epochs a trial" in result.plot().axes[0].get_title()

    def test_what_was_spent_before_the_call_counts(
        self, settings: Settings, loaded: Data, planned: list[float], tmp_path: Path
    ) -> None:
        search(settings, tmp_path / "run", work=Synthetic(), begun=time.monotonic() - 100)
        assert LEFT - 110 < planned[0] < LEFT - 100
        assert runs.read(tmp_path / "run")["sessions"][0]["spent"] >= 100

    def test_the_time_that_was_left_resumes_the_recorded_plan(
        self, settings: Settings, loaded: Data, planned: list[float], tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"

        def interrupted(job: Job, data: Data) -> Iterator[Report]:
            if job.number == 1:
                raise KeyboardInterrupt
            yield from Synthetic()(job, data)

        assert search(settings, folder, work=interrupted).interrupted
        left = runs.time_left(folder)
        assert not search(settings.replace(time=left), folder, work=Synthetic()).interrupted
        assert len(planned) == 1
        sessions = runs.read(folder)["sessions"]
        assert [s["plan"] for s in sessions] == [sessions[0]["plan"]] * 2
        assert places(of(folder, SCORED)) == [[0, i] for i in range(4)]

    def test_a_search_that_was_stopped_before_its_study_was_created_resumes(
        self,
        settings: Settings,
        loaded: Data,
        planned: list[float],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def stopped(*_: object) -> None:
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):  # noqa: PT012 - the patch must end first
            patch.setattr(api, "open_study", stopped)
            search(settings, tmp_path / "run", work=Synthetic())
        assert not search(settings, tmp_path / "run", work=Synthetic()).unfinished
        assert places(of(tmp_path / "run", SCORED)) == [[0, i] for i in range(4)]

    def test_a_killed_search_is_unfinished(
        self, settings: Settings, loaded: Data, planned: list[float], tmp_path: Path
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            raise Killed
            yield

        with pytest.raises(Killed):
            search(settings, tmp_path / "run", work=work)
        assert api.load(tmp_path / "run").unfinished

    def test_an_interrupt_while_the_last_files_are_written_waits_for_them(
        self,
        settings: Settings,
        loaded: Data,
        planned: list[float],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        export = api.export

        def interrupted(*arguments: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            export(*arguments)

        monkeypatch.setattr(api, "export", interrupted)
        result = search(settings, tmp_path / "run", work=Synthetic(weights=True))
        assert result.interrupted
        assert (tmp_path / "run/best/arch.json").is_file()
        assert runs.time_left(tmp_path / "run") == 0

    def test_more_time_makes_a_new_plan(
        self, settings: Settings, loaded: Data, planned: list[float], tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        search(settings, folder, work=Synthetic())
        search(settings.replace(time=2 * LEFT), folder, work=Synthetic())
        assert len(planned) == 2
        assert planned[1] > 1.9 * LEFT
        assert [s["plan"]["session"] for s in runs.read(folder)["sessions"]] == [0, 1]

    def test_a_share_of_the_time_is_kept_for_more_seeds(
        self, settings: Settings, loaded: Data, planned: list[float], tmp_path: Path
    ) -> None:
        jobs: list[Job] = []
        search(settings.replace(repeat=2), tmp_path / "run", work=noting(jobs))
        again = of(tmp_path / "run", AGAIN)
        assert LEFT / 2 - 5 < planned[0] < LEFT / 2
        assert again
        numbers = {r.number for r in again}
        for job in jobs:
            assert job.seconds is not None
            assert (job.seconds < LEFT / 2) == (job.number not in numbers)

    def test_another_number_of_workers_makes_a_new_plan(
        self,
        settings: Settings,
        loaded: Data,
        planned: list[float],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = tmp_path / "run"
        search(settings, folder, work=Synthetic())
        runs.note_spent(folder, 0, LEFT / 2)
        rest = settings.replace(time=LEFT / 2)
        api.plan_of(rest, folder)
        assert len(planned) == 1
        monkeypatch.setattr("search.execute.pool.count", lambda resources: 2)
        api.plan_of(rest, folder)
        assert len(planned) == 2

    def test_plans_of_several_drivers_have_different_names(
        self, settings: Settings, loaded: Data, planned: list[float], tmp_path: Path
    ) -> None:
        shared = settings.replace(storage="postgresql://here/db", study="ours")
        names = {api.plan_of(shared, tmp_path / name).session for name in ("one", "two")}
        assert len(names) == 2
        assert 0 not in names

    def test_no_plan_is_made_where_trials_are_given(
        self, settings: Settings, loaded: Data, planned: list[float], tmp_path: Path
    ) -> None:
        search(settings.replace(trials=2, epochs=1, evaluator="scratch"), tmp_path / "run", work=Synthetic())
        assert planned == []
        assert runs.read(tmp_path / "run")["sessions"][0]["plan"] is None
        assert len(of(tmp_path / "run", SCORED)) == 2


def make_levels(session: dict[str, Any]) -> tuple[Level, ...]:
    """Return the levels of a session's plan."""
    return tuple(Level(**level) for level in session["plan"]["plan"]["levels"])
