"""A trial that was cut short resumes from its last rung, and ends as if it had never been cut short."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from res2net import create
from res2net.elastic import ElasticRes2Net
from search.checkpoints import Checkpoints
from search.ledger import RETRIES
from search.study.storage import read
from search.study.trials import FAILED, ORPHAN, SCORED, STOPPED, Record
from search.worker import Job, Report, SharedWork, Work, guarded, train_trial
from trainers.datasets.data import Data
from trainers.evaluate import evaluate
from trainers.images import Images
from trainers.recipes import Config
from trainers.train import Trainer

TIMED = ("seconds", "images_per_second", "host", "note", "checkpoint")


class Killed(BaseException):
    """Stands for a `kill -9` of the driver: nothing that handles failures or interruptions may handle it."""


class Dies:
    """A work that trains, and is killed once a network has been trained for `epoch` epochs."""

    def __init__(self, epoch: int, number: int | None = None, by: BaseException | None = None) -> None:
        self.epoch, self.number, self.by = epoch, number, by or Killed()

    def __call__(self, job: Job, data: Data) -> Iterator[Report]:
        for report in train_trial(job, data):
            if report.epoch == self.epoch and self.number in (None, job.number):
                raise self.by
            yield report


def of(folder: Path, *outcomes: str) -> list[Record]:
    return [r for r in read(folder) if r.outcome in outcomes]


def untimed(reports: list[Report]) -> list[dict[str, object]]:
    return [{k: v for k, v in asdict(report).items() if k not in TIMED} for report in reports]


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many epochs each network was trained."""
    whole, trained = Trainer.epoch, Counter()

    def epoch(trainer: Trainer, stop: Callable[[], bool] | None = None) -> object:
        trained[trainer.model.arch.key()] += 1
        return whole(trainer, stop)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    return trained


@pytest.fixture
def job(make_settings: Callable) -> Job:
    arch = make_settings().scope.get_space(10).arch({"scale": 4, "cardinality": 1, "depth": 2})
    return Job(7, arch, Config(epochs=5, batch_size=20, seed=3), rungs=(1, 3))


@pytest.fixture
def run_in(run_driver: Callable, tmp_path: Path) -> Callable:
    """Runs a search whose checkpoints are in its folder."""

    def run(settings: object, work: Work = train_trial, folder: Path = tmp_path) -> object:
        return run_driver(settings, work, folder=folder, checkpoints=Checkpoints(folder))

    return run


class TestTrial:
    @pytest.mark.parametrize("evaluator", ["scratch", "inherit"])
    def test_resumes_from_each_rung_bit_for_bit(
        self, evaluator: str, job: Job, make_settings: Callable, data: Data, epochs: Counter[str]
    ) -> None:
        job = replace(job, evaluator=evaluator)
        torch.manual_seed(0)
        work = SharedWork(ElasticRes2Net(make_settings().scope.get_space(10)))
        whole = list(work(job, data))
        assert [r.epoch for r in whole if r.checkpoint is not None] == [1, 3]
        for rung in job.rungs:
            epochs.clear()
            torch.rand(rung)  # the process's own random numbers are no part of it
            resumed = list(work(replace(job, number=9, checkpoint=whole[rung - 1].checkpoint), data))
            assert untimed(resumed) == untimed(whole)
            assert whole[-1].weights is not None
            assert sum(epochs.values()) == job.config.epochs - rung
            assert {r.note for r in resumed} == {f"resumed after epoch {rung}"}
            assert [r.seconds for r in resumed] == sorted(r.seconds for r in resumed)
            assert resumed[rung - 1].seconds == whole[rung - 1].seconds

    def test_resumes_from_the_checkpoint_of_a_resumed_trial(self, job: Job, data: Data) -> None:
        whole = list(train_trial(job, data))
        second = list(train_trial(replace(job, checkpoint=whole[0].checkpoint), data))
        third = list(train_trial(replace(job, checkpoint=second[2].checkpoint), data))
        assert untimed(third) == untimed(whole)

    @pytest.mark.parametrize("kind", ["empty", "truncated", "damaged", "pickle", "network", "seed", "epochs", "table"])
    def test_starts_anew_from_an_unusable_checkpoint(self, kind: str, job: Job, data: Data) -> None:
        whole = list(train_trial(job, data))
        good = whole[0].checkpoint
        other = {
            "network": replace(job, arch=replace(job.arch, se=4)),
            "seed": replace(job, config=replace(job.config, seed=4)),
            "epochs": replace(job, config=replace(job.config, epochs=6)),
        }
        if kind in other:
            bad = next(train_trial(other[kind], data)).checkpoint
        elif kind == "table":
            buffer = io.BytesIO()
            torch.save({"job": {}}, buffer)
            bad = buffer.getvalue()
        else:
            middle = len(good) // 2
            bad = {
                "empty": b"",
                "truncated": good[:middle],
                "damaged": good[:middle] + bytes(64) + good[middle + 64 :],
                "pickle": pickle.dumps(print, protocol=2),
            }[kind]
        anew = list(guarded(train_trial, replace(job, checkpoint=bad), data))
        assert untimed(anew) == untimed(whole)
        assert anew[0].note.startswith("started anew: its checkpoint cannot be used (")
        assert "\n" not in anew[0].note

    @pytest.mark.parametrize("seconds", [None, 1.5])
    def test_a_job_comes_back_from_json(self, job: Job, seconds: float | None) -> None:
        job = replace(job, seconds=seconds)
        assert Job.from_json(job.to_json(), b"state") == replace(job, checkpoint=b"state")

    def test_a_checkpoint_of_an_earlier_version_is_used(self, job: Job, data: Data) -> None:
        """Earlier versions had fewer fields in the config, in a report and in a trainer's state."""
        whole = list(train_trial(job, data))
        state = torch.load(io.BytesIO(whole[0].checkpoint), weights_only=True)
        for name in ("steps", "zero_init_last", "hold", "crop_from"):
            del state["job"]["config"][name]
        del state["trainer"]["unfinished"], state["reports"][0]["paused"]
        buffer = io.BytesIO()
        torch.save(state, buffer)
        resumed = list(train_trial(replace(job, checkpoint=buffer.getvalue()), data))
        assert untimed(resumed) == untimed(whole)
        assert resumed[0].note == "resumed after epoch 1"

    def test_averaged_weights_are_kept_where_they_were_scored(self, job: Job, data: Data) -> None:
        job = replace(job, config=replace(job.config, ema=0.9))
        last = list(train_trial(job, data))[-1]
        model = create(job.arch)
        model.load_state_dict(safetensors.torch.load(last.weights))
        images = Images(data.val, data, torch.device("cpu"))
        assert evaluate(model, images).top1 == last.quality
        assert evaluate(model, images).loss == pytest.approx(last.val_loss, rel=0.05)  # bf16 on some machines

    def test_the_recipe_decides_the_initial_weights(self, job: Job, data: Data) -> None:
        first = [
            next(train_trial(replace(job, config=replace(job.config, zero_init_last=zero)), data)).train_loss
            for zero in (False, True)
        ]
        assert first[0] != first[1]


LOOKS = 2  # looks at the clock beside those before each step


class Clock:
    """A clock that moves on by one second at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class TestTime:
    """A job's time: the trial stops between steps and resumes in the epoch. The clock moves on by 1 s a step."""

    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("search.worker.time", SimpleNamespace(monotonic=Clock()))

    @pytest.mark.parametrize("evaluator", ["scratch", "inherit"])
    @pytest.mark.parametrize("seconds", [1, 2, 4, 7])
    def test_a_trial_in_parts_equals_an_uninterrupted_one(
        self, seconds: float, evaluator: str, job: Job, make_settings: Callable, data: Data
    ) -> None:
        job = replace(job, evaluator=evaluator)  # five epochs of two steps
        torch.manual_seed(0)
        work = SharedWork(ElasticRes2Net(make_settings().scope.get_space(10)))
        whole = list(work(job, data))
        parts, checkpoint = 0, None
        while True:
            reports = list(guarded(work, replace(job, seconds=seconds + LOOKS, checkpoint=checkpoint), data))
            assert all(report.reason is None for report in reports)
            if not reports[-1].paused:
                break
            parts, checkpoint = parts + 1, reports[-1].checkpoint
            assert [r.epoch for r in reports] == [*range(1, len(reports)), len(reports) - 1]
            assert reports[-1].weights is None
            assert reports[-1].seconds >= (reports[-2].seconds if len(reports) > 1 else 0)
        assert parts == -(-10 // seconds) - 1
        assert untimed(reports) == untimed(whole)

    def test_a_paused_trial_says_where_it_resumed(self, job: Job, data: Data) -> None:
        paused = list(train_trial(replace(job, seconds=3 + LOOKS), data))[-1]
        assert (paused.epoch, paused.paused, math.isnan(paused.quality)) == (1, True, True)
        resumed = list(train_trial(replace(job, checkpoint=paused.checkpoint), data))
        assert {r.note for r in resumed} == {"resumed in epoch 2"}
        assert [r.seconds for r in resumed] == sorted(r.seconds for r in resumed)
        assert resumed[1].seconds > paused.seconds

    def test_no_time_is_a_pause_before_the_first_step(self, job: Job, data: Data) -> None:
        (report,) = guarded(train_trial, replace(job, seconds=0), data)
        assert (report.epoch, report.paused, report.reason) == (0, True, None)
        resumed = list(train_trial(replace(job, checkpoint=report.checkpoint), data))
        assert untimed(resumed) == untimed(list(train_trial(job, data)))


class TestSearch:
    @pytest.mark.slow
    def test_a_killed_search_resumes_inside_its_trial(
        self, run_in: Callable, make_settings: Callable, epochs: Counter[str], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        settings = make_settings(trials=5, epochs=4, eta=2)
        whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
        run_in(settings, folder=whole)
        epochs.clear()
        for number, epoch in ((0, 2), (3, 4), (4, 1)):  # the fourth number is the third network
            with pytest.raises(Killed):
                run_in(settings, Dies(epoch, number), folder=killed)
        assert [p.name for p in (killed / "checkpoints").iterdir()] == ["3.pt"]
        run_in(settings, folder=killed)

        def answers(folder: Path) -> list[tuple]:
            kept = [r for r in read(folder) if r.outcome != ORPHAN]
            return [(r.params, r.outcome, r.quality, r.epochs) for r in kept]

        assert answers(killed) == answers(whole)
        assert [r.attrs.get("note") for r in of(killed, SCORED)] == [
            "resumed after epoch 1",
            None,
            "resumed after epoch 2",
            None,
            None,
        ]
        assert sum(epochs.values()) == 5 * 4 + 1 + 2  # epochs that were trained and not reported, or after the rung
        assert list((killed / "checkpoints").iterdir()) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("scheduler", ["pareto-asha", "asha"])
    def test_a_killed_search_stops_the_same_trials(
        self, scheduler: str, run_in: Callable, make_settings: Callable, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        settings = make_settings(trials=8, epochs=4, eta=2, scheduler=scheduler, batch_size=40)
        whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
        run_in(settings, folder=whole)
        for number, epoch in ((1, 1), (4, 2), (8, 1), (9, 2)):
            with contextlib.suppress(Killed):  # a trial may be stopped before
                run_in(settings, Dies(epoch, number), folder=killed)
        run_in(settings, folder=killed)
        ended = [
            [(r.params, r.outcome, r.state, r.quality, r.epochs) for r in read(folder) if r.outcome != ORPHAN]
            for folder in (killed, whole)
        ]
        assert ended[0] == ended[1]
        assert of(killed, STOPPED)
        assert of(killed, ORPHAN)
        assert list((killed / "checkpoints").iterdir()) == []

    def test_a_checkpoint_is_kept_before_its_report_is_recorded(
        self, open_driver: Callable, make_settings: Callable
    ) -> None:
        held = []

        class Watched(dict):
            def __setitem__(self, number: int, checkpoint: bytes) -> None:
                held.append((number, checkpoint, driver.study.record(number).epochs))
                super().__setitem__(number, checkpoint)

        with open_driver(make_settings(), checkpoints=Watched()) as driver:
            driver.next_job()
            driver.on_report(0, Report(1, 10.0, 1.0, 1.0, checkpoint=b"state"))
            assert driver.study.record(0).epochs == {1: 10.0}
        assert held == [(0, b"state", {})]

    def test_the_newest_checkpoint_of_each_unended_network_is_kept(
        self, open_driver: Callable, make_settings: Callable
    ) -> None:
        kept: dict[int, bytes] = {}
        with open_driver(make_settings(trials=9, epochs=3), checkpoints=kept) as driver:
            first, second, third = (driver.next_job().number for _ in range(3))
            for number in (first, second, third):
                driver.on_report(number, Report(1, 10.0, 1.0, 1.0, checkpoint=b"%d" % number))
            driver.on_report(second, Report(2, reason="no luck"))
            driver.on_report(third, Report(3, 20.0, 1.0, 1.0))
            assert kept == {first: b"0"}
            driver.on_lost(first, "the worker died")
            again = driver.next_job()
            assert (again.checkpoint, kept) == (b"0", {first: b"0"})
            driver.on_report(again.number, Report(2, 15.0, 1.0, 1.0, checkpoint=b"newer"))
            assert kept == {again.number: b"newer"}
            assert driver.running[again.number].reports[-1].checkpoint is None
            driver.release(again.number, "the time was up")
            last = driver.next_job()
            assert last.checkpoint == b"newer"
            driver.on_report(last.number, Report(3, 20.0, 1.0, 1.0))
            assert kept == {}

    def test_checkpoints_that_a_kill_left_behind_are_deleted(
        self, open_driver: Callable, make_settings: Callable, tmp_path: Path
    ) -> None:
        kept = {99: b"of a trial that the study never heard of"}
        with open_driver(make_settings(), checkpoints=kept) as driver:
            assert kept == {}
            driver.next_job()
            driver.on_report(0, Report(1, 10.0, 1.0, 1.0, checkpoint=b"state"))
        for _ in range(2):
            with open_driver(make_settings(), checkpoints=kept):
                assert kept == {0: b"state"}
        with open_driver(make_settings(), checkpoints=kept) as driver:
            assert driver.next_job().checkpoint == b"state"
            driver.on_report(1, Report(2, 20.0, 1.0, 1.0))
            kept[1] = b"the kill came before it was deleted"
        with open_driver(make_settings(), checkpoints=kept):
            assert kept == {}

    @pytest.mark.parametrize("by", [Killed(), MemoryError()])
    def test_a_network_that_always_dies_after_its_rung_is_given_up(
        self, by: BaseException, run_in: Callable, make_settings: Callable, epochs: Counter[str], tmp_path: Path
    ) -> None:
        """Each retry resumes from a checkpoint and so seems to make progress. A killed driver's network runs alone."""
        kills = isinstance(by, Killed)
        tries = 2 + RETRIES if kills else 1 + RETRIES
        settings, work = make_settings(trials=1, epochs=4), Dies(3, by=by)
        for _ in range(tries if kills else 0):
            with pytest.raises(Killed):
                run_in(settings, work)
        run_in(make_settings(trials=1 if kills else tries, epochs=4), work)
        ended = of(tmp_path, FAILED, ORPHAN)
        assert len(ended) == tries
        assert len({r.key for r in ended}) == 1
        assert ended[-1].outcome == FAILED
        assert (
            ended[-1]
            .attrs["reason"]
            .startswith(("the search was stopped while it ran, and it ran alone", "out of memory"))
        )
        assert [r.attrs.get("note") for r in ended] == [None] + ["resumed after epoch 1"] * (tries - 1)
        assert epochs[ended[0].key] == 3 + (tries - 1) * 2
        assert list((tmp_path / "checkpoints").iterdir()) == []


class TestFiles:
    def test_a_mapping_over_a_folder(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints[3], checkpoints[11] = b"three", b"eleven"
        checkpoints[3] = b"newer"
        (tmp_path / "checkpoints/.4.pt.123.tmp").write_bytes(b"half")
        (tmp_path / "checkpoints/notes.pt").write_bytes(b"mine")
        again = Checkpoints(tmp_path)
        assert dict(again) == {3: b"newer", 11: b"eleven"}
        assert (len(again), 3 in again, 4 in again) == (2, True, False)
        assert again.get(4) is None
        del again[3]
        assert again.pop(3, None) is None
        assert list(checkpoints) == [11]
        with pytest.raises(KeyError):
            checkpoints[3]
        with pytest.raises(KeyError):
            del checkpoints[3]

    def test_an_unreadable_file_is_an_empty_checkpoint(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        (tmp_path / "checkpoints/5.pt").mkdir()
        assert checkpoints[5] == b""
