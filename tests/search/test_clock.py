"""A job's time: a training that would end too late is shortened, and ends with a score of the epochs it trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from search import worker
from search.worker import Job, Report, guarded, train_trial
from trainers.datasets.data import Data
from trainers.recipes import RECIPES, Config
from trainers.train import Trainer

EPOCHS, STEPS = 5, 10  # of the whole training; steps of an epoch


class Steps:
    """A clock that steps move on. lasts: returns the seconds of a step, counted from 0. rates: their learning rates."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lasts: Callable[[int], float] = lambda step: 1.0
        self.rates: list[float] = []

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Returns the worker's clock; the worker looks at the time that a training needs before every second step."""
    clock, step = Steps(), Trainer._step

    def slow(trainer: Trainer, *args: Any) -> Any:
        loss = step(trainer, *args)
        clock.now += clock.lasts(len(clock.rates))
        clock.rates.append(trainer.optimizer.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(Trainer, "_step", slow)
    monkeypatch.setattr(worker, "FIRST_STEPS", 1)
    monkeypatch.setattr(worker, "LOOK_STEPS", 2)
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def job(make_settings: Callable) -> Job:
    """A training of five epochs of ten steps that must fit its time."""
    arch = make_settings().scope.get_space(10).arch({"scale": 2, "cardinality": 1, "depth": 1})
    config = Config(epochs=EPOCHS, batch_size=4, seed=3, lr=0.2, precision="fp32", device="cpu")
    return Job(7, arch, config, rungs=(1, 2), fits=True)


def results(reports: list[Report]) -> list[tuple[int, float, float]]:
    return [(r.epoch, r.val_loss, r.train_loss) for r in reports]


@pytest.mark.parametrize("seconds", [4, 9, 12, 23, 30, 45])
def test_a_training_of_slow_steps_ends_with_a_score(seconds: float, job: Job, data: Data, steps: Steps) -> None:
    reports = list(guarded(train_trial, replace(job, seconds=seconds), data))
    last, done = reports[-1], len(steps.rates)
    assert (last.reason, last.paused) == (None, False)
    assert math.isfinite(last.quality)
    assert last.weights is not None
    assert last.budget == pytest.approx(done / STEPS)
    assert 0.9 * seconds - 2 <= done <= seconds
    assert [r.epoch for r in reports] == list(range(1, -(-done // STEPS) + 1))
    assert [r.budget for r in reports[:-1]] == [None] * (len(reports) - 1)


@pytest.mark.parametrize("seconds", [31, 38, 44, 47])
def test_validations_count_as_time(
    seconds: float, job: Job, data: Data, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Trainer._validate

    def slow(trainer: Trainer) -> Any:
        steps.now += 6.0  # of 10 s for the steps of an epoch
        return score(trainer)

    monkeypatch.setattr(Trainer, "_validate", slow)
    last = list(guarded(train_trial, replace(job, seconds=seconds), data))[-1]
    assert (last.reason, last.paused) == (None, False)
    assert last.budget is not None
    assert steps.now <= seconds
    most = max(min(seconds - 6 * epochs, STEPS * epochs) for epochs in range(1, EPOCHS))
    assert last.budget * STEPS >= 0.9 * most - 2


@pytest.mark.parametrize("recipe", ["fast", "short"])
def test_its_learning_rate_falls_to_zero(recipe: str, job: Job, data: Data, steps: Steps) -> None:
    config = replace(RECIPES[recipe], epochs=EPOCHS, batch_size=4, device="cpu")
    list(train_trial(replace(job, config=config, seconds=32), data))
    peak = max(steps.rates)
    assert steps.rates[-1] <= 0.1 * peak
    after = steps.rates[steps.rates.index(peak) :]
    assert after == sorted(after, reverse=True)


def test_a_training_that_ends_in_time_is_not_changed(job: Job, data: Data, steps: Steps) -> None:
    whole = list(train_trial(job, data))
    timed = list(train_trial(replace(job, seconds=1.1 * EPOCHS * STEPS), data))
    assert results(timed) == results(whole)
    assert timed[-1].weights == whole[-1].weights
    assert timed[-1].budget is None


def test_a_slow_start_costs_few_steps(job: Job, data: Data, steps: Steps) -> None:
    """The first steps are three times as slow as the others. The steps that they cost at first come back."""
    steps.lasts = lambda step: 3.0 if step < 6 else 1.0
    last = list(train_trial(replace(job, seconds=45), data))[-1]
    assert last.budget == pytest.approx(len(steps.rates) / STEPS)
    assert 6 * 3 + (len(steps.rates) - 6) == pytest.approx(45, abs=4)
    after = steps.rates[steps.rates.index(max(steps.rates)) :]
    assert after == sorted(after, reverse=True)


def test_a_training_that_need_not_fit_is_stopped(job: Job, data: Data, steps: Steps) -> None:
    last = list(train_trial(replace(job, fits=False, seconds=23), data))[-1]
    assert (last.paused, last.budget, len(steps.rates)) == (True, None, 23)


@pytest.mark.parametrize("rung", [1, 2])
def test_a_shortened_training_resumes_exactly(
    rung: int, job: Job, data: Data, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first steps are slow. The checkpoint holds the new end and the new learning rates."""
    monkeypatch.setattr(worker, "GAINED", math.inf)  # the resumed training has no clock to win steps back
    steps.lasts = lambda step: 1.0 if step < 8 else 0.0
    short = list(train_trial(replace(job, seconds=36), data))
    budget = short[-1].budget
    assert budget is not None
    assert 2 < budget < EPOCHS
    resumed = list(train_trial(replace(job, checkpoint=short[rung - 1].checkpoint), data))
    assert results(resumed) == results(short)
    assert resumed[-1].budget == budget
    assert weights(resumed) == weights(short)


def test_a_stop_after_a_shortening_resumes_exactly(job: Job, data: Data, steps: Steps) -> None:
    """The time ends although the training was shortened: a step took far longer than those before."""
    steps.lasts = lambda step: 50.0 if step == 12 else 1.0
    paused = list(guarded(train_trial, replace(job, seconds=30), data))[-1]
    assert (paused.paused, paused.reason, paused.epoch) == (True, None, 1)
    done = len(steps.rates)
    resumed = list(train_trial(replace(job, checkpoint=paused.checkpoint), data))
    rates = steps.rates[done:]
    assert resumed[-1].budget == pytest.approx(len(steps.rates) / STEPS)
    assert len(steps.rates) < 30
    assert steps.rates[done - 1] > rates[0] == max(rates)
    again = list(train_trial(replace(job, checkpoint=paused.checkpoint), data))
    assert (results(again), weights(again)) == (results(resumed), weights(resumed))


def weights(reports: list[Report]) -> dict[str, list[float]]:
    """Return the weights of the last report, without the order of the file."""
    return {
        name: value.flatten().tolist() for name, value in safetensors.torch.load(reports[-1].weights or b"").items()
    }


class TestShorten:
    """`Trainer.end_after`: fewer steps, and the rate from the present one to zero."""

    @pytest.fixture
    def trainer(self, job: Job, data: Data) -> Trainer:
        torch.manual_seed(0)
        return Trainer(worker.initialised(job.arch), data, job.config)

    @pytest.mark.parametrize("total", [11, 19, 20, 21, 35, 50])
    def test_ends_after_so_many_steps(self, total: int, trainer: Trainer, steps: Steps) -> None:
        trainer.epoch()
        before = steps.rates[-1]
        trainer.end_after(total)
        while not trainer.finished:
            trainer.epoch()
        assert (trainer.done_steps, len(steps.rates)) == (total, total)
        tail = steps.rates[STEPS:]
        assert before > tail[0] or total > STEPS
        falls = [a - b for a, b in zip(tail, [*tail[1:], 0.0], strict=True)]
        assert falls == pytest.approx([tail[0] / (total - STEPS)] * len(tail))

    @pytest.mark.parametrize("hold", [0.0, 2.0])
    def test_a_warm_up_and_a_held_rate_come_first(self, hold: float, job: Job, data: Data, steps: Steps) -> None:
        config = replace(job.config, schedule="linear", warmup=0.5, hold=hold)
        trainer = Trainer(worker.initialised(job.arch), data, config)
        looks = iter([False, False, True])
        assert trainer.epoch(lambda: next(looks)) is None
        trainer.end_after(4 * STEPS)
        assert trainer.keeps_schedule
        while not trainer.finished:
            trainer.epoch()
        assert not trainer.keeps_schedule
        peak = steps.rates.index(max(steps.rates))
        assert steps.rates[peak] == pytest.approx(config.lr)
        held = sum(rate == steps.rates[peak] for rate in steps.rates)
        assert held == pytest.approx((hold or 0.5) * STEPS - peak, abs=2)
        assert steps.rates[-1] < 0.1 * config.lr

    def test_steps_come_back(self, trainer: Trainer, steps: Steps) -> None:
        trainer.end_after(2 * STEPS)
        trainer.epoch()
        low = steps.rates[-1]
        trainer.end_after(4 * STEPS)
        while not trainer.finished:
            trainer.epoch()
        assert len(steps.rates) == 4 * STEPS
        assert steps.rates[STEPS] < low
        falls = [a - b for a, b in zip(steps.rates[STEPS:], [*steps.rates[STEPS + 1 :], 0.0], strict=True)]
        assert falls == pytest.approx([steps.rates[STEPS] / (3 * STEPS)] * len(falls))

    def test_steps_come_back_within_the_last_epoch(self, trainer: Trainer, steps: Steps) -> None:
        trainer.end_after(5)
        looks = iter([False, False, True])
        assert trainer.epoch(lambda: next(looks)) is None
        trainer.end_after(STEPS + 3)
        while not trainer.finished:
            trainer.epoch()
        assert (len(steps.rates), trainer.done_epochs) == (STEPS + 3, 2)

    def test_cannot_become_longer_than_planned(self, trainer: Trainer) -> None:
        with pytest.raises(AssertionError, match="longer than planned"):
            trainer.end_after(EPOCHS * STEPS + 1)

    def test_a_job_says_whether_it_fits(self, job: Job) -> None:
        assert Job.from_json(job.to_json()) == job
        assert not Job.from_json(replace(job, fits=False).to_json()).fits
