"""The calibration of a plan: a few networks, cheapest first, within a share of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from res2net.errors import UserError
from search import calibration
from search.objectives import MACS
from search.plan import Pace
from search.settings import Settings
from search.timetable import Member, members
from trainers.datasets.data import Data
from trainers.recipes import Config

LEFT = 100.0  # s


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(trials=None, epochs=None, time=LEFT, batch_size=20)


@pytest.fixture
def chosen(settings: Settings) -> list[Member]:
    return members(settings.scope.get_space(10), settings.scope.limits, MACS, 0)


@pytest.fixture
def measure(
    settings: Settings, chosen: list[Member], data: Data, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Pace, list[int]]]:
    """Returns a function that measures networks which take given seconds; a string stands for an error."""

    def run(*seconds: float | str, settings: Settings = settings, workers: int = 1) -> tuple[Pace, list[int]]:
        now, left, threads = [0.0], list(seconds), []

        def timed(member: Member, *_: object) -> float:
            threads.append(torch.get_num_threads())
            took = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(took, str):
                raise torch.OutOfMemoryError(took)
            now[0] += took
            return took / 1000

        monkeypatch.setattr(calibration, "_seconds_per_image", timed)
        monkeypatch.setattr(calibration, "time", SimpleNamespace(monotonic=lambda: now[0]))
        return calibration.measure(chosen, data, settings, LEFT, workers), threads

    return run


def test_measures_a_few_networks(measure: Callable, chosen: list[Member]) -> None:
    pace, threads = measure(0.5)
    assert len(threads) == calibration.MEASURED
    assert pace.costs == tuple(m.cost for m in chosen)
    assert all(seconds > 0 for seconds in pace.seconds)


def test_slow_networks_are_not_all_measured(measure: Callable, chosen: list[Member]) -> None:
    """Two take more than a tenth of the time. The others get a pace all the same."""
    pace, threads = measure(8.0)
    assert len(threads) == 2
    assert len(pace.seconds) == len(chosen)
    assert all(seconds > 0 for seconds in pace.seconds)


def test_networks_that_do_not_fit_into_memory_are_left_out(measure: Callable, chosen: list[Member]) -> None:
    pace, _ = measure(0.5, 0.6, "out of memory")
    assert len(pace.seconds) == len(chosen)


def test_memory_that_does_not_suffice_for_the_cheapest_is_one_line(measure: Callable) -> None:
    with pytest.raises(UserError, match=r"^`batch_size`: 20; memory does not suffice .+; accepted: a smaller batch"):
        measure("out of memory")


def test_threads_are_those_of_the_trials(measure: Callable, settings: Settings) -> None:
    """A single local worker is this process, with all its threads."""
    before = torch.get_num_threads()
    alone = settings.replace(executor="local", workers=1, cpus_per_trial=before + 1)
    assert set(measure(0.5, settings=alone)[1]) == {before}
    assert set(measure(0.5, settings=alone, workers=2)[1]) == {before + 1}
    assert torch.get_num_threads() == before


def test_a_rate_that_is_too_high_has_a_pace(settings: Settings, chosen: list[Member], data: Data) -> None:
    """Each trial then fails with the reason."""
    recipe: Config = replace(settings.scoring.recipe, lr=1e30)
    pace = calibration.measure(chosen, data, settings.replace(recipe=recipe), LEFT, 1)
    assert all(seconds > 0 for seconds in pace.seconds)
