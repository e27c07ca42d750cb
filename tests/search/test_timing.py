"""How a time is divided among networks: properties of both ways, from scratch and grown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.plan import Candidate, Plan, Terms
from search.timing import LEAST_GROWN, grown, independent

LATE = 1e-6  # s; rounding of sums of durations
TERMS = Terms(3e5, 2e7, 45_000)


def ladder(count: int, seconds: float) -> list[Candidate]:
    return [Candidate({"scale": i}, 3e5 * 1.6**i, seconds * 1.4**i) for i in range(count)]


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, list[Candidate]]:
    networks = ladder(draw(st.integers(1, 7)), draw(st.floats(0.5, 20)))
    workers = draw(st.sampled_from([1, 2, 8]))
    seconds = networks[0].seconds * 10 ** draw(st.floats(0.5, 3))
    found = grown(networks, seconds, [0.0] * workers, TERMS, 1.0)
    return found or Plan(seconds, workers, (), 0, 0.0, 1.0), networks


@given(plans())
def test_a_network_starts_once_the_trunk_of_the_one_before_is_trained(case: tuple[Plan, list[Candidate]]) -> None:
    found, networks = case
    for before, level, candidate in zip(found.levels, found.levels[1:], networks, strict=False):
        assert level.start >= before.start + 1.0 + before.trunk * candidate.seconds - LATE
        assert before.cost < level.cost


@given(plans())
def test_grown_networks_end_in_time_and_anneal(case: tuple[Plan, list[Candidate]]) -> None:
    found, _ = case
    for level in found.levels:
        assert level.start + level.seconds <= found.seconds + LATE
        assert level.epochs >= LEAST_GROWN
        assert 0 < level.trunk < level.epochs
    busy = sum(level.seconds for level in found.levels)
    assert busy <= found.seconds * found.workers + LATE
    assert found.idle == pytest.approx(1 - busy / (found.seconds * found.workers), abs=1e-6)


def test_what_is_inherited_shortens_the_own_training() -> None:
    networks = ladder(2, 5.0)[1:]
    alone = grown(networks, 200, [0.0, 0.0], TERMS, 1.0)
    heir = grown(networks, 200, [0.0, 0.0], TERMS, 1.0, inherited=20 * 3e5)
    assert alone is not None
    assert heir is not None
    assert heir.volume > alone.volume


@given(st.integers(1, 8), st.floats(100, 2000), st.sampled_from([1, 2, 8]))
def test_workers_of_independent_networks_are_busy_until_the_end(count: int, seconds: float, workers: int) -> None:
    found = independent(ladder(count, 2.0), seconds, [0.0] * workers, TERMS, 1.0)
    assert found is not None
    idle = max(0, workers - count) / workers
    capped = any(level.epochs >= 39.9 for level in found.levels)
    assert capped or found.idle == pytest.approx(idle, abs=1e-3)


def test_a_time_that_does_not_suffice_gives_no_plan() -> None:
    for way in (independent, grown):
        assert way(ladder(3, 10.0), 15.0, [0.0], TERMS, 1.0) is None
