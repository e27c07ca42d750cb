"""The search's decisions, over a real study and on formulas instead of training."""

from __future__ import annotations

import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from optuna.storages import RDBStorage

import search.driver
import search.proposals
from res2net.cost import cost
from search.evaluators import trial_seed
from search.execute.local import execute
from search.ledger import RETRIES
from search.settings import Settings
from search.study.storage import read
from search.study.trials import FAILED, INFEASIBLE, ORPHAN, REPEATED, SCORED, Record
from search.worker import Job, Report
from studies.synthetic import Synthetic, accuracy
from trainers.datasets.data import Data

ALL = 12  # networks of the tiny space
SLOW = pytest.mark.slow
LIMITS = {"max_macs": 300_000, "min_macs": 180_000, "max_params": 5_000}


class Killed(BaseException):
    """Stands for a `kill -9` of the driver: nothing that handles failures or interruptions may handle it."""


def records(folder: Path) -> list[Record]:
    return list(read(folder))


def of(folder: Path, *outcomes: str) -> list[Record]:
    return [r for r in records(folder) if r.outcome in outcomes]


def answered(folder: Path) -> list[tuple[dict[str, int], str, float | None]]:
    """What was proposed and what became of it, without the trials that were asked again."""
    return [(r.params, r.outcome, r.quality) for r in records(folder) if r.outcome not in (ORPHAN, "waiting")]


def failing(*keys: str, by: Exception | None = None) -> Callable[[Job, Data], Iterator[Report]]:
    """A work that fails for these networks (for all if there are none), and records how often it was called."""

    def work(job: Job, data: Data) -> Iterator[Report]:
        work.calls.append(job)
        if not keys or job.arch.key() in keys:
            raise by or RuntimeError("no luck")
        yield from Synthetic()(job, data)

    work.calls = []
    return work


def killed_at(number: int, epoch: int) -> Callable[[Job, Data], Iterator[Report]]:
    """A work under which the driver is killed when this trial has so many epochs."""

    def work(job: Job, data: Data) -> Iterator[Report]:
        for report in Synthetic()(job, data):
            if job.number == number and report.epoch > epoch:
                raise Killed
            yield report

    return work


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("nsga2", marks=SLOW), "random"])
def test_no_network_is_trained_twice(
    sampler: str, run_driver: Callable, make_settings: Callable, tmp_path: Path
) -> None:
    driver = run_driver(make_settings(sampler=sampler, trials=ALL, epochs=1))
    scored = of(tmp_path, SCORED)
    assert len({r.key for r in scored}) == len(scored) == ALL
    assert driver.ledger.spent == ALL
    for repeated in of(tmp_path, REPEATED):
        first = scored[[r.number for r in scored].index(repeated.attrs["repeat_of"])]
        assert (repeated.key, repeated.quality, repeated.attrs["macs"]) == (
            first.key,
            first.quality,
            first.attrs["macs"],
        )
        assert first.number < repeated.number


def test_every_trained_network_is_within_the_limits(
    run_driver: Callable, make_settings: Callable, tmp_path: Path
) -> None:
    settings = make_settings(trials=4, epochs=1, seed=1, **LIMITS)
    trained = []

    def work(job: Job, data: Data) -> Iterator[Report]:
        trained.append(job.arch)
        yield from Synthetic()(job, data)

    run_driver(settings, work)
    assert trained
    assert all(settings.scope.limits.allow(arch, 32) for arch in trained)
    over = of(tmp_path, INFEASIBLE)
    assert over
    assert not any(settings.scope.limits.allow(r.arch, 32) for r in over)
    assert all(r.epochs == {} and r.quality is None for r in over)


def test_a_space_that_is_used_up_ends_the_search(run_driver: Callable, make_settings: Callable, tmp_path: Path) -> None:
    driver = run_driver(make_settings(trials=100, epochs=1, **LIMITS))
    space = driver.space
    every = [space.arch(p) for p in space.all_params()]
    possible = {arch.key() for arch in every if driver.limits.allow(arch, space.image_size)}
    assert {r.key for r in of(tmp_path, SCORED)} == possible
    assert driver.why_stopped == "every network of the space that meets the limits was tried"


def test_limits_that_nothing_meets_together_end_the_search(run_driver: Callable, make_settings: Callable) -> None:
    driver = run_driver(make_settings(max_macs=166_000, min_macs=165_500))
    assert (driver.ledger.spent, driver.ledger.counts[INFEASIBLE]) == (0, search.proposals.MAX_MISSES)
    assert driver.why_stopped.startswith("every network of the space")


def test_a_search_ends_after_so_many_trials(run_driver: Callable, make_settings: Callable, tmp_path: Path) -> None:
    driver = run_driver(make_settings(trials=3))
    assert driver.ledger.spent == len(of(tmp_path, SCORED)) == 3
    assert driver.why_stopped == ""
    for record in of(tmp_path, SCORED):
        arch = record.arch
        assert record.epochs == {1: accuracy(arch, 1), 2: accuracy(arch, 2)}
        assert record.quality == accuracy(arch, 2)
        assert record.attrs["epochs"] == 2


def test_parameters_that_give_a_known_network_are_answered_from_the_study(
    run_driver: Callable, make_settings: Callable, tmp_path: Path
) -> None:
    """71 at 64 planes is 4 at the tiny space's 4, as 64 is."""
    path = tmp_path / "twins.yaml"
    path.write_text(
        "{base: micro, planes: [4, 8], strides: [4, 2], choices: {scale: [1, 2], width: [64, 71]}}",
    )
    driver = run_driver(make_settings(space=str(path), trials=4, epochs=1))
    assert (driver.ledger.counts[SCORED], driver.space.size) == (2, 4)
    different = {tuple(r.params.values()) for r in of(tmp_path, SCORED, REPEATED)}
    assert len(different) > 2
    assert driver.why_stopped.startswith("every network of the space")


def test_lesser_attributes_are_written_together(
    open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
) -> None:
    """Each attribute is a transaction; those that a person looks for on the dashboard have their own."""
    with open_driver(make_settings(trials=1)) as driver:
        execute(driver, data, Synthetic())
        (trial,) = driver.study.optuna_study.trials
    shown = {"arch", "macs", "params", "seconds", "epochs", "outcome"}
    assert trial.user_attrs.keys() == shown | {"network", "training"}
    (record,) = records(tmp_path)
    arch = record.arch
    assert (record.key, record.attrs["activations"]) == (arch.key(), cost(arch, 32).activations)
    assert record.attrs.keys() >= {"images_per_second", "val_loss", "host"}


class TestFailures:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError("too large"),
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        ],
    )
    def test_a_network_that_runs_out_of_memory_is_tried_a_bounded_number_of_times(
        self, error: Exception, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        work = failing(by=error)
        driver = run_driver(make_settings(trials=7), work)
        counts = Counter(job.arch.key() for job in work.calls)
        assert len(work.calls) == driver.ledger.spent == driver.ledger.counts[FAILED] == 7
        assert sorted(counts.values()) == [1, 1 + RETRIES, 1 + RETRIES]
        failed = of(tmp_path, FAILED)
        assert all(
            r.state == "FAIL" and r.attrs["reason"].startswith("out of memory with batches of 20") for r in failed
        )
        retried = [r for r in failed if "retry_of" in r.attrs]
        assert len(retried) == 2 * RETRIES
        assert all(records(tmp_path)[r.attrs["retry_of"]].key == r.key for r in retried)
        assert driver.ledger.history == failed

    def test_a_failure_that_would_come_again_is_not_tried_again(
        self, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        """Its seed is the network's: an exception, or a loss that is no number, would be the same."""
        work = failing()
        driver = run_driver(make_settings(trials=100), work)
        assert max(Counter(job.arch.key() for job in work.calls).values()) == 1
        assert len(work.calls) == driver.ledger.spent == driver.ledger.counts[FAILED] == ALL
        failed = of(tmp_path, FAILED)
        assert all(r.state == "FAIL" and r.attrs["reason"].startswith("RuntimeError: no luck (work,") for r in failed)
        assert of(tmp_path, "waiting") == []
        first = {r.key: r.number for r in failed}
        repeated = of(tmp_path, REPEATED)
        assert all(r.attrs["reason"] == f"the same network failed as trial {first[r.key]}" for r in repeated)

    def test_the_search_goes_on_with_other_networks(
        self, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        space = make_settings().scope.get_space(10)
        bad = space.arch({"scale": 2, "cardinality": 1, "depth": 1}).key()
        work = failing(bad)
        driver = run_driver(make_settings(trials=ALL, epochs=1), work)
        assert [r.key for r in of(tmp_path, FAILED)] == [bad]
        assert len({r.key for r in of(tmp_path, SCORED)}) == ALL - 1
        assert driver.ledger.spent == ALL

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("error", "tries"), [(RuntimeError("no luck"), 1), pytest.param(MemoryError(), 1 + RETRIES, marks=SLOW)]
    )
    @pytest.mark.parametrize("resumed_after", [pytest.param(1, marks=SLOW), 2])
    def test_a_resumed_search_tries_again_what_one_that_was_not_stopped_would(
        self, resumed_after: int, error: Exception, tries: int, run_driver: Callable, make_settings: Callable
    ) -> None:
        works = [failing(by=error), failing(by=error)]
        for trials, work in zip((resumed_after, 100), works, strict=True):
            run_driver(make_settings(trials=trials), work)
        calls = [job.arch.key() for work in works for job in work.calls]
        assert Counter(calls) == dict.fromkeys(calls, tries)
        assert len(set(calls)) == ALL

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("epoch", [1, 2])
    def test_an_accuracy_that_is_no_number_is_a_failure(
        self, value: float, epoch: int, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                bad = job.number == 0 and report.epoch == epoch
                yield Report(report.epoch, value, 1.0, 1.0) if bad else report

        driver = run_driver(make_settings(trials=3), work)
        assert driver.ledger.spent == 3
        (failed,) = of(tmp_path, FAILED)
        assert failed.number == 0
        assert str(value) in failed.attrs["reason"]
        assert f"epoch {epoch}" in failed.attrs["reason"]

    def test_a_validation_loss_that_is_no_number_is_a_failure(
        self, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        """It would also make the trial's attributes no JSON, and the dashboard show nothing at all."""

        def work(job: Job, data: Data) -> Iterator[Report]:
            yield Report(1, 10.0, math.nan, 1.0)

        run_driver(make_settings(trials=1, epochs=1), work)
        (failed,) = of(tmp_path, FAILED)
        assert "nan" in failed.attrs["reason"]
        assert b"NaN" not in (tmp_path / "study.db").read_bytes()

    def test_work_that_ends_early_is_a_failure(
        self, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            yield Report(1, 10.0, 1.0, 1.0)

        driver = run_driver(make_settings(trials=2, epochs=3), work)
        assert driver.running == {}
        assert len(of(tmp_path, FAILED)) == 2

    def test_a_lost_worker_is_a_failure_that_is_tried_again(
        self, open_driver: Callable, make_settings: Callable
    ) -> None:
        with open_driver(make_settings()) as driver:
            job = driver.next_job()
            driver.on_lost(job.number, "the worker died: SIGKILL")
            driver.on_lost(job.number, "told twice")
            again = driver.next_job()
            assert again.arch == job.arch
            assert again.config == job.config
            assert driver.study.record(again.number).attrs["retry_of"] == job.number
            assert driver.study.record(job.number).attrs["reason"] == "the worker died: SIGKILL"
            assert driver.ledger.counts[FAILED] == 1

    @pytest.mark.slow
    def test_a_worker_lost_after_nothing_new_was_left_is_tried_again(
        self, open_driver: Callable, make_settings: Callable
    ) -> None:
        with open_driver(make_settings(trials=100)) as driver:
            jobs = list(iter(driver.next_job, None))
            assert len(jobs) == ALL
            assert driver.why_stopped.startswith("every network of the space")
            driver.on_lost(jobs[3].number, "the worker died: SIGKILL")
            assert driver.next_job().arch == jobs[3].arch
            assert driver.next_job() is None
            assert driver.why_stopped.startswith("every network of the space")


class TestTime:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The driver's clock, in seconds, which only stands still or is set."""
        now = [1000.0]
        monkeypatch.setattr(search.driver.time, "monotonic", lambda: now[0])
        return now

    def test_a_trial_under_way_when_the_time_is_up_is_asked_again(
        self, clock: list[float], run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                clock[0] += 10
                yield report

        driver = run_driver(make_settings(trials=9, time=25.0), work)
        assert driver.why_stopped == "the time is up"
        assert driver.ledger.counts == {SCORED: 1, ORPHAN: 1}
        (orphan,) = of(tmp_path, ORPHAN)
        assert orphan.state == "FAIL"
        assert [r.attrs.get("retry_of") for r in of(tmp_path, "waiting")] == [orphan.number]

    @pytest.mark.parametrize(("trials", "why"), [(9, "the time is up"), (3, "")])
    def test_no_trial_is_started_that_would_not_end(
        self, clock: list[float], run_driver: Callable, make_settings: Callable, trials: int, why: str
    ) -> None:
        """Three trials of 10 s fit into 35 s. If three are all, the time is not why the search stopped."""

        def work(job: Job, data: Data) -> Iterator[Report]:
            clock[0] += 10
            yield Report(1, 50.0, 1.0, 1.0, seconds=10.0)

        driver = run_driver(make_settings(trials=trials, epochs=1, time=35.0), work)
        assert (driver.why_stopped, driver.ledger.counts) == (why, {SCORED: 3})

    def test_a_resumed_search_asks_the_released_trial_first(
        self, clock: list[float], run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        def slow(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                clock[0] += 10
                yield report

        run_driver(make_settings(trials=2, time=5.0), slow)
        run_driver(make_settings(trials=2))
        first, second = records(tmp_path)[:2]
        assert (first.outcome, second.outcome) == (ORPHAN, SCORED)
        assert second.params == first.params
        assert second.attrs["retry_of"] == first.number


class TestResume:
    def test_a_second_search_over_the_folder_goes_on(
        self, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        run_driver(make_settings(trials=3))
        before = records(tmp_path)
        driver = run_driver(make_settings(trials=5))
        after = records(tmp_path)
        assert after[: len(before)] == before
        assert [r.number for r in after] == list(range(len(after)))
        assert driver.ledger.spent == 5

    def test_a_search_that_is_done_does_nothing(
        self, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        run_driver(make_settings(trials=3))
        before = records(tmp_path)
        work = failing()
        run_driver(make_settings(trials=3), work)
        assert work.calls == []
        assert records(tmp_path) == before

    @pytest.mark.parametrize("sampler", ["tpe", pytest.param("nsga2", marks=SLOW), pytest.param("random", marks=SLOW)])
    @pytest.mark.parametrize(
        ("number", "epoch"), [pytest.param(0, 0, marks=SLOW), (4, 1), pytest.param(7, 0, marks=SLOW)]
    )
    def test_killed_and_resumed_is_as_never_killed(
        self,
        sampler: str,
        number: int,
        epoch: int,
        run_driver: Callable,
        make_settings: Callable,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        settings = make_settings(space="scale_card_depth_width", sampler=sampler, trials=10)
        whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
        run_driver(settings, folder=whole)
        with pytest.raises(Killed):
            run_driver(settings, killed_at(number, epoch), folder=killed)
        run_driver(settings, folder=killed)
        assert answered(killed) == answered(whole)
        assert [r.state for r in of(killed, ORPHAN)] == ["FAIL"]

    def test_an_orphan_is_asked_again_once_however_often_the_resume_is_killed(
        self, open_driver: Callable, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        settings = make_settings(trials=3)
        with pytest.raises(Killed):
            run_driver(settings, killed_at(1, 1))
        for _ in range(3):
            with open_driver(settings):
                pass  # killed before it asked anything
        run_driver(settings)
        retried = [r for r in records(tmp_path) if "retry_of" in r.attrs]
        assert [(r.attrs["retry_of"], r.outcome) for r in retried] == [(1, SCORED)]
        assert len(of(tmp_path, SCORED)) == 3

    @pytest.mark.slow
    def test_a_network_that_was_interrupted_is_asked_again_however_often(
        self, open_driver: Callable, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        for _ in range(2 + RETRIES):
            with open_driver(make_settings(trials=1)) as driver:
                driver.next_job()
                driver.release_all("the search was interrupted")
        assert run_driver(make_settings(trials=1)).ledger.counts[SCORED] == 1
        assert {r.key for r in of(tmp_path, ORPHAN)} == {r.key for r in of(tmp_path, SCORED)}

    @pytest.mark.parametrize(
        "kept", [pytest.param(0, marks=SLOW), 5, pytest.param(search.proposals.MAX_MISSES - 1, marks=SLOW)]
    )
    @pytest.mark.parametrize("method", [pytest.param("infeasible", marks=SLOW), "ask"])
    def test_killed_among_proposals_that_need_no_training(
        self,
        method: str,
        kept: int,
        open_driver: Callable,
        run_driver: Callable,
        make_settings: Callable,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """How many there were in a row is in the study: a resume goes on counting."""
        settings = make_settings(max_macs=166_000, min_macs=165_500)  # which nothing meets
        whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
        run_driver(settings, folder=whole)
        with open_driver(settings, folder=killed) as driver:
            given = getattr(driver.study, method)
            left = iter([True] * kept)

            def call(*args: object) -> object:
                if not next(left, False):
                    raise Killed
                return given(*args)

            monkeypatch.setattr(driver.study, method, call)
            with pytest.raises(Killed):
                driver.next_job()
        assert run_driver(settings, folder=killed).ledger.counts[INFEASIBLE] == search.proposals.MAX_MISSES
        assert answered(killed) == answered(whole)
        before = records(killed)
        assert run_driver(settings, folder=killed).why_stopped.startswith("every network of the space")
        assert records(killed) == before

    def test_several_running_trials_are_all_asked_again(
        self, open_driver: Callable, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        settings = make_settings(trials=4)
        with open_driver(settings) as driver:
            keys = {driver.next_job().arch.key() for _ in range(3)}
        run_driver(settings)
        assert [r.outcome for r in records(tmp_path) if r.number in driver.running] == [ORPHAN] * 3
        assert {r.key for r in of(tmp_path, SCORED) if "retry_of" in r.attrs} == keys
        assert of(tmp_path, "running", "waiting") == []

    @pytest.mark.slow
    @pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
    def test_killed_before_any_write_of_a_trial(
        self,
        sampler: str,
        run_driver: Callable,
        make_settings: Callable,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Or before some of them, from the ask to the tell. So many trials first that the sampler learns from them."""
        done, changes = 17, {"space": "scale", "per_stage": True, "sampler": sampler, "epochs": 1}
        start = tmp_path_factory.mktemp("start")
        run_driver(make_settings(trials=done, **changes), folder=start)
        whole = _copy(start, tmp_path_factory.mktemp("whole"))
        writes = _Writes(monkeypatch)
        run_driver(make_settings(trials=done + 1, **changes), folder=whole)
        count, writes.left = writes.seen, None
        assert count > 10
        run_driver(make_settings(trials=done + 3, **changes), folder=whole)
        expected = answered(whole)
        for n in range(0, count, count // 8):
            killed = _copy(start, tmp_path_factory.mktemp("killed"))
            writes.left = n
            with pytest.raises(Killed):
                run_driver(make_settings(trials=done + 3, **changes), folder=killed)
            writes.left = None
            run_driver(make_settings(trials=done + 3, **changes), folder=killed)
            assert answered(killed) == expected, f"killed before write {n}"
            assert of(killed, "running", "waiting") == []


class _Writes:
    """Counts a storage's writes; with `left`, so many are let through and the next one is where the kill comes."""

    NAMES = (
        "create_new_trial",
        "set_trial_param",
        "set_trial_state_values",
        "set_trial_intermediate_value",
        "set_trial_user_attr",
        "set_trial_system_attr",
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen, self.left = 0, None
        for name in self.NAMES:
            monkeypatch.setattr(RDBStorage, name, self._counted(getattr(RDBStorage, name)))

    def _counted(self, write: Callable) -> Callable:
        def counted(*args: object, **kwargs: object) -> object:
            self.seen += 1
            if self.left is not None:
                if self.left == 0:
                    raise Killed
                self.left -= 1
            return write(*args, **kwargs)

        return counted


def _copy(start: Path, to: Path) -> Path:
    shutil.copy(start / "study.db", to)
    return to


class Deadly:
    """A work under which the driver is killed whenever it runs the first network it was given.

    kills: how many runs of that network kill. tried: the network of each call.
    """

    def __init__(self, kills: float = math.inf) -> None:
        self.kills, self.tried = kills, list[str]()

    def __call__(self, job: Job, data: Data) -> Iterator[Report]:
        self.tried.append(job.arch.key())
        if job.arch.key() == self.tried[0] and self.tried.count(self.tried[0]) <= self.kills:
            raise Killed
        yield from Synthetic()(job, data)


class TestSuspects:
    """A network whose drivers were killed RETRIES + 1 times at one epoch runs last, alone."""

    def killed(self, run_driver: Callable, settings: Settings, work: Deadly, times: int = 1 + RETRIES) -> None:
        for _ in range(times):
            with pytest.raises(Killed):
                run_driver(settings, work)

    def test_a_network_that_kills_the_driver_also_alone_is_given_up(
        self, run_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        settings, work = make_settings(trials=4), Deadly()
        self.killed(run_driver, settings, work, 2 + RETRIES)
        assert Counter(work.tried)[work.tried[0]] == 2 + RETRIES
        assert work.tried[-1] == work.tried[0]  # last: all others were scored before
        assert len(of(tmp_path, SCORED)) == 3
        driver = run_driver(settings, work)
        assert Counter(work.tried)[work.tried[0]] == 2 + RETRIES
        assert driver.ledger.spent == 4
        assert len(of(tmp_path, ORPHAN)) == 1 + RETRIES
        (failed,) = of(tmp_path, FAILED)
        assert driver.ledger.given_up == {work.tried[0]: failed.number}
        assert failed.attrs["reason"] == "the search was stopped while it ran, and it ran alone"
        again = run_driver(make_settings(trials=100), work)
        assert again.ledger.counts[SCORED] == ALL - 1
        assert Counter(work.tried)[work.tried[0]] == 2 + RETRIES

    def test_an_innocent_network_is_scored(self, run_driver: Callable, make_settings: Callable, tmp_path: Path) -> None:
        settings, work = make_settings(trials=4), Deadly(kills=1 + RETRIES)
        self.killed(run_driver, settings, work)
        driver = run_driver(settings, work)
        assert (driver.ledger.counts[SCORED], driver.ledger.counts[FAILED], driver.ledger.suspects) == (4, 0, {})
        last = of(tmp_path, SCORED)[-1]
        assert (last.key, last.attrs["alone"]) == (work.tried[0], True)
        assert work.tried[-1] == work.tried[0]

    @pytest.fixture
    def settings(self, make_settings: Callable) -> Settings:
        return make_settings(trials=ALL)

    @pytest.fixture
    def suspect(self, settings: Settings, run_driver: Callable) -> str:
        """The key of a network that becomes a suspect as soon as a driver opens the study."""
        work = Deadly()
        self.killed(run_driver, settings, work)
        return work.tried[0]

    @pytest.mark.slow
    def test_nothing_starts_beside_it_and_it_starts_beside_nothing(
        self, settings: Settings, suspect: str, open_driver: Callable
    ) -> None:
        with open_driver(settings.replace(trials=ALL + 1)) as driver:
            jobs = list(iter(driver.next_job, None))
            assert len(jobs) == ALL - 1
            assert suspect not in {job.arch.key() for job in jobs}
            assert list(driver.ledger.suspects) == [suspect]
            for job in jobs[1:]:
                driver.on_report(job.number, Report(2, 10.0, 1.0))
                assert driver.next_job() is None
            driver.on_lost(jobs[0].number, "the worker died")  # its network is asked again, before the suspect
            retry = driver.next_job()
            assert retry.arch == jobs[0].arch
            assert driver.next_job() is None
            driver.on_report(retry.number, Report(2, 10.0, 1.0))
            alone = driver.next_job()
            assert alone.arch.key() == suspect
            driver.study.enqueue(driver.study.record(retry.number).params)
            assert driver.next_job() is None
            driver.on_report(alone.number, Report(2, 10.0, 1.0))

    def test_it_is_repeated_when_the_sampler_proposes_it_meanwhile(
        self, settings: Settings, suspect: str, open_driver: Callable, tmp_path: Path
    ) -> None:
        with open_driver(settings) as driver:
            record = driver.ledger.suspects[suspect]
            driver.study.enqueue(record.params)  # as the sampler may, at any time
            assert driver.next_job().arch.key() != suspect
        (repeated,) = [r for r in of(tmp_path, REPEATED) if r.key == suspect]
        assert repeated.attrs["reason"] == f"the same network is to run last as trial {record.number}"

    @pytest.mark.slow
    @pytest.mark.parametrize("stopped", ["killed before anything", "among others", "interrupted", "out of time"])
    def test_a_resume_in_between_loses_nothing(
        self,
        stopped: str,
        settings: Settings,
        suspect: str,
        open_driver: Callable,
        run_driver: Callable,
        data: Data,
        tmp_path: Path,
    ) -> None:
        """An interruption while it runs alone is not its fault: it stays a suspect, and still runs last."""
        kept = {max(r.number for r in records(tmp_path) if r.key == suspect): b"its checkpoint"}
        with open_driver(settings, checkpoints=kept) as driver:
            if stopped == "among others":
                assert driver.next_job().arch.key() != suspect
            elif stopped != "killed before anything":
                while (job := driver.next_job()).arch.key() != suspect:
                    driver.on_report(job.number, Report(2, 10.0, 1.0))
                assert job.checkpoint == b"its checkpoint"
                if stopped == "interrupted":
                    driver.release_all("the search was interrupted")
                else:
                    driver.release(job.number, "the time was up after epoch 0")
        with open_driver(settings, checkpoints=kept) as driver:
            assert list(driver.ledger.suspects) == [suspect]
            assert list(kept.values()) == [b"its checkpoint"]
            execute(driver, data, Synthetic())
        assert driver.ledger.counts[SCORED] == ALL
        assert of(tmp_path, SCORED)[-1].key == suspect
        assert kept == {}

    @pytest.mark.parametrize("method", ["ask", "describe"])
    def test_killed_before_it_runs_alone_it_is_not_given_up(
        self,
        method: str,
        settings: Settings,
        suspect: str,
        open_driver: Callable,
        run_driver: Callable,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def kill(*_: object) -> None:
            raise Killed

        with open_driver(settings.replace(trials=1)) as driver:
            monkeypatch.setattr(driver.study, method, kill)
            with pytest.raises(Killed):
                driver.next_job()
        driver = run_driver(settings.replace(trials=1))
        assert driver.ledger.counts[SCORED] == 1
        assert of(tmp_path, SCORED)[0].key == suspect
        assert of(tmp_path, FAILED, "waiting", "running") == []

    def test_one_that_waits_starts_beside_nothing(
        self, settings: Settings, suspect: str, open_driver: Callable
    ) -> None:
        """Another driver may have been killed after it enqueued the suspect."""
        with open_driver(settings) as driver:
            first = driver.next_job()
            lost = driver.ledger.suspects[suspect]
            driver.study.enqueue(lost.params, retry_of=lost.number, alone=True)
            assert driver.next_job() is None
            driver.on_report(first.number, Report(2, 10.0, 1.0))
            assert driver.next_job().arch.key() == suspect
            assert driver.next_job() is None

    def test_a_confirmation_may_be_one(self, run_driver: Callable, make_settings: Callable, tmp_path: Path) -> None:
        """A confirmation that kills its driver must not be picked again while it is a suspect."""
        settings = make_settings(evaluator="supernet", trials=4, confirm=2, epochs=2)
        picked = list[str]()

        def work(job: Job, data: Data) -> Iterator[Report]:
            if job.evaluator != "supernet":
                picked.append(job.arch.key())
                if job.arch.key() == picked[0]:
                    raise Killed
            yield from Synthetic()(job, data)

        for _ in range(2 + RETRIES):
            with pytest.raises(Killed):
                run_driver(settings, work)
        driver = run_driver(settings, work)
        assert Counter(picked)[picked[0]] == 2 + RETRIES
        (failed,) = of(tmp_path, FAILED)
        assert "confirms" in failed.attrs
        assert picked[0] not in driver.ledger.scored
        assert driver.ledger.trained

    def test_a_search_that_is_done_runs_none(
        self, settings: Settings, suspect: str, open_driver: Callable, run_driver: Callable, tmp_path: Path
    ) -> None:
        with open_driver(settings) as driver:
            driver.on_report(driver.next_job().number, Report(2, 10.0, 1.0))
        before, work = records(tmp_path), failing()
        driver = run_driver(settings.replace(trials=1), work)
        assert (work.calls, list(driver.ledger.suspects)) == ([], [suspect])
        assert records(tmp_path) == before


class TestInterruption:
    def test_running_trials_are_released_and_asked_again(
        self, open_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        with open_driver(make_settings()) as driver:
            jobs = [driver.next_job() for _ in range(3)]
            driver.release_all("the search was interrupted")
            assert driver.running == {}
            assert driver.ledger.counts == {ORPHAN: 3}
            assert [driver.next_job().arch for _ in range(3)] == [job.arch for job in jobs]
        assert [r.attrs["reason"] for r in of(tmp_path, ORPHAN)] == ["the search was interrupted"] * 3

    @pytest.mark.parametrize("method", ["describe", "on_scored", "complete"])
    def test_wherever_it_comes_no_trial_is_left_running(
        self,
        method: str,
        open_driver: Callable,
        run_driver: Callable,
        make_settings: Callable,
        data: Data,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Ctrl-C raises at any line of the driver's."""

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        settings = make_settings(trials=3)
        with open_driver(settings) as driver:
            owner = driver if method == "on_scored" else driver.study
            with monkeypatch.context() as patch:
                patch.setattr(owner, method, interrupt)
                with pytest.raises(KeyboardInterrupt):
                    execute(driver, data, Synthetic())
            driver.release_all("the search was interrupted")
        assert [r.outcome for r in records(tmp_path)] == [ORPHAN, "waiting"]
        assert run_driver(settings).ledger.spent == 3
        assert of(tmp_path, "running", "waiting") == []


def test_the_seed_of_a_trial_follows_from_the_network_not_from_the_order(
    open_driver: Callable, make_settings: Callable
) -> None:
    with open_driver(make_settings()) as driver:
        jobs = [driver.next_job() for _ in range(4)]
        assert [j.config.seed for j in jobs] == [trial_seed(0, j.arch) for j in jobs]
        assert len({j.config.seed for j in jobs}) == 4
        assert trial_seed(1, jobs[0].arch) != trial_seed(0, jobs[0].arch)
        assert all(0 <= j.config.seed < 2**32 for j in jobs)


def test_a_network_that_runs_is_not_started_twice(open_driver: Callable, make_settings: Callable) -> None:
    with open_driver(make_settings(trials=50)) as driver:
        keys = []
        while (job := driver.next_job()) is not None:
            keys.append(job.arch.key())
        assert len(set(keys)) == len(keys) == ALL


def test_weights_are_handed_over_before_the_score_is_written(
    open_driver: Callable, make_settings: Callable, data: Data
) -> None:
    seen = []

    def keep(job: Job, weights: bytes | None) -> None:
        seen.append((job.number, weights, driver.study.record(job.number).state))

    with open_driver(make_settings(trials=2), on_scored=keep) as driver:

        def work(job: Job, data: Data) -> Iterator[Report]:
            yield Report(1, 10.0, 1.0, 1.0)
            yield Report(2, 20.0, 1.0, 1.0, weights=b"weights of %d" % job.number)

        execute(driver, data, work)
    assert seen == [(0, b"weights of 0", "RUNNING"), (1, b"weights of 1", "RUNNING")]


def test_every_change_is_told(open_driver: Callable, make_settings: Callable, data: Data) -> None:
    changes = []
    with open_driver(make_settings(trials=2), on_change=lambda: changes.append(driver.ledger.spent)) as driver:
        execute(driver, data, Synthetic())
    assert changes == [0, 0, 1, 1, 1, 2]  # a start, an epoch and the end of each


@pytest.mark.parametrize("match", [300_000])
def test_matched_networks_are_all_at_that_many_macs(
    match: int, run_driver: Callable, make_settings: Callable, tmp_path: Path
) -> None:
    driver = run_driver(make_settings(trials=30, epochs=1, match_macs=match))
    scored = of(tmp_path, SCORED)
    assert scored
    assert all(r.attrs["macs"] == pytest.approx(match, rel=0.1) for r in scored)
    assert driver.why_stopped.startswith("every network of the space")


def test_a_space_too_large_to_go_through_is_sampled(
    run_driver: Callable, make_settings: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.proposals, "ENUMERABLE", 10)
    monkeypatch.setattr(search.proposals, "MAX_MISSES", 1)
    assert run_driver(make_settings(trials=6, epochs=1)).ledger.spent == 6


def test_why_a_search_stopped_says_no_more_than_it_looked_at(
    run_driver: Callable, make_settings: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 networks as in `test_limits_that_nothing_meets_together_end_the_search`, but too many to go through."""
    monkeypatch.setattr(search.proposals, "ENUMERABLE", 11)
    driver = run_driver(make_settings(max_macs=166_000, min_macs=165_500))
    assert driver.why_stopped == "no new network in 12 proposals in a row, nor in 11 drawn at random"


@pytest.mark.slow
def test_random_numbers_of_the_process_change_nothing(
    run_driver: Callable, make_settings: Callable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folders = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")]
    for folder in folders:
        random.seed(time.time())
        run_driver(make_settings(trials=ALL, epochs=1), folder=folder)
    assert answered(folders[0]) == answered(folders[1])


def test_settings_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="`trials`"):
        Settings(trials=0)
