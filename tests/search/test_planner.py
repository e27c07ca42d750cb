"""The planner: what a time buys. Properties of plans over any ladder of networks, pace and number of workers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import plan as plans
from search.front import Axis, hypervolume
from search.plan import LEAST_EPOCHS, Candidate, Level, Pace, Plan, Terms, expected
from search.planner import MOST_LEVELS, SOON, plan, retimed

WORKERS = (1, 2, 8, 64)
LATE = 1e-6  # s; rounding of sums of durations
LITTLE = 1.0  # points of volume
few = settings(max_examples=30)  # for tests that make plans: a plan takes up to half a second


@dataclass(frozen=True, slots=True)
class Case:
    """The arguments of `plan`."""

    candidates: tuple[Candidate, ...]
    seconds: float
    workers: int
    terms: Terms
    overhead: float

    def plan(self, **changes: float) -> Plan:
        case = replace(self, **changes)
        return plan(case.candidates, case.seconds, case.workers, case.terms, case.overhead)

    @property
    def least(self) -> float:
        """The seconds of one epoch of the cheapest network."""
        return LEAST_EPOCHS * self.candidates[0].seconds + self.overhead


def ladder(count: int, octaves: float, seconds: float, steepness: float = 0.6) -> tuple[Candidate, ...]:
    """Return networks at even distances on the logarithmic axis. seconds: of an epoch of the cheapest one."""
    ratios = [2 ** (octaves * i / max(1, count - 1)) for i in range(count)]
    return tuple(Candidate({"scale": i}, 3e5 * r, seconds * r**steepness) for i, r in enumerate(ratios))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    networks = ladder(
        draw(st.integers(1, 9)), draw(st.floats(0.5, 8)), draw(st.floats(0.05, 100)), draw(st.floats(0.2, 1))
    )
    high = networks[-1].cost * draw(st.floats(1.001, 4.0))
    images = draw(st.sampled_from([1_000, 10_800, 45_000]))
    known = draw(st.lists(st.tuples(st.floats(networks[0].cost, high), st.floats(0, 0.9)), max_size=3))
    terms = Terms(networks[0].cost, high, images, tuple(known))
    seconds = networks[0].seconds * 10 ** draw(st.floats(-0.5, 3.5))
    return Case(networks, seconds, draw(st.sampled_from(WORKERS)), terms, draw(st.sampled_from([0.0, 1.0, 5.0])))


def fits_workers(levels: Sequence[Level], workers: int) -> bool:
    """Return whether so many workers can train the levels at their times, each one level at a time."""
    free = [0.0] * workers
    for level in sorted(levels, key=lambda level: level.start):
        free.sort()
        ready = [i for i, at in enumerate(free) if at <= level.start + LATE]
        if not ready:
            return False
        free[ready[-1]] = level.start + level.seconds
    return True


def previewed(found: Plan) -> bool:
    """Return whether the plan trains its cheapest network twice, first for a short time."""
    return len({level.cost for level in found.levels}) < len(found.levels)


@few
@given(cases())
def test_no_two_levels_overlap_on_a_worker_and_the_last_ends_in_time(case: Case) -> None:
    found = case.plan()
    assert all(level.start + level.seconds <= case.seconds + LATE for level in found.levels)
    assert fits_workers(found.levels, case.workers)


@few
@given(cases())
def test_levels_start_in_order_and_last_as_long_as_their_epochs(case: Case) -> None:
    found = case.plan()
    levels = found.levels[1:] if previewed(found) else found.levels
    costs = [level.cost for level in levels]
    assert len(costs) == len(set(costs))
    assert [level.start for level in found.levels] == sorted(level.start for level in found.levels)
    assert len(costs) <= MOST_LEVELS
    by_cost = {c.cost: c for c in case.candidates}
    for level in found.levels:
        network = by_cost[level.cost]
        assert level.params == network.params
        assert level.epochs >= LEAST_EPOCHS
        assert level.seconds == pytest.approx(level.epochs * network.seconds + case.overhead)


@few
@given(cases(), st.floats(1, 20))
def test_more_time_never_lowers_the_expected_volume(case: Case, factor: float) -> None:
    """Beside a little: the assignment to workers is no optimum, and an early first front costs time."""
    short, long = case.plan(), case.plan(seconds=factor * case.seconds)
    assert long.volume >= short.volume - LITTLE


@few
@given(cases(), st.sampled_from([(1, 2), (2, 8), (8, 64), (1, 64)]))
def test_more_workers_never_lower_the_expected_volume(case: Case, workers: tuple[int, int]) -> None:
    less, more = (case.plan(workers=n) for n in workers)
    assert more.volume >= less.volume - LITTLE


def test_an_ordinary_search_gains_from_workers_and_says_how_idle_they_are() -> None:
    networks = ladder(12, 6, seconds=4.0)
    plans = [plan(networks, 300, n, Terms(3e5, 2e7, 45_000), 1.0) for n in WORKERS]
    assert all(a.volume < b.volume for a, b in itertools.pairwise(plans[:3]))
    for found in plans:
        busy = sum(level.seconds for level in found.levels)
        assert found.idle == pytest.approx(1 - busy / (300 * found.workers))
    assert plans[-1].idle > 0.5  # fewer levels than workers: the sampler explores


@few
@given(cases())
def test_there_are_levels_exactly_when_the_cheapest_fits(case: Case) -> None:
    """Also if the front is better than any network that the time could train."""
    assert bool(case.plan().levels) == (case.least <= case.seconds)


@few
@given(cases())
def test_too_short_a_time_gives_no_levels(case: Case) -> None:
    found = case.plan(seconds=0.99 * case.least)
    assert (found.levels, found.explore, found.first) == ((), 0, math.inf)


@few
@given(cases())
def test_the_first_score_comes_soon_where_a_preview_is_affordable(case: Case) -> None:
    found = case.plan()
    usual = max(case.least, 0.6 * SOON)
    if found.levels and usual <= min(SOON, 0.1 * case.seconds):
        assert found.first <= SOON + LATE


def test_a_preview_is_a_short_training_of_the_cheapest_network() -> None:
    networks = ladder(6, 5, seconds=10.0)
    found = plan(networks, 1800, 1, Terms(3e5, 1e7, 45_000), 1.0)
    assert previewed(found)
    first, *others = found.levels
    assert first.cost == networks[0].cost == others[0].cost
    assert first.start + first.seconds <= min(SOON, others[0].start + LATE)
    assert first.epochs < others[0].epochs


@few
@given(cases())
def test_the_same_arguments_give_the_same_plan(case: Case) -> None:
    assert case.plan() == case.plan()


@few
@given(cases())
def test_a_plan_comes_back_from_json(case: Case) -> None:
    found = case.plan()
    assert Plan.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@few
@given(cases())
def test_the_volume_is_the_hypervolume_of_the_expected_front(case: Case) -> None:
    found, terms = case.plan(), case.terms
    points = [*terms.known, *((x.cost, expected(terms, x.cost, x.epochs)) for x in found.levels)]
    costs, qualities = zip(*points, strict=True) if points else ((), ())
    value = 100 * hypervolume(qualities, Axis(costs, terms.low, terms.high))
    assert plans.volume_of(terms, points) == pytest.approx(value, abs=1e-9)
    if found.levels and not previewed(found):
        assert found.volume == pytest.approx(value, abs=1e-9)


def test_accuracy_is_expected_by_size_where_the_cost_is_another_one() -> None:
    by_size, by_cost = Terms(0.5, 4.0, 45_000, sizes=((0.5, 1.0), (1.0, 4.0), (4.0, 5.0))), Terms(0.5, 4.0, 45_000)
    assert [by_size.size(cost) for cost in (0.5, 1.0, 4.0)] == [1.0, 4.0, 5.0]
    assert by_size.size(2.0) == pytest.approx(4.5)
    assert [by_cost.size(cost) for cost in (0.5, 1.0, 4.0)] == [0.0, 1.0, 3.0]
    assert expected(by_size, 1.0, 20) == pytest.approx(expected(by_cost, 8.0, 20))


@given(st.floats(0, 8), st.floats(1, 100), st.floats(1, 10))
def test_more_epochs_are_expected_to_bring_accuracy(octaves: float, epochs: float, factor: float) -> None:
    terms = Terms(3e5, 1e8, 45_000)
    cost = 3e5 * 2**octaves
    assert 0 <= expected(terms, cost, epochs) <= expected(terms, cost, factor * epochs) < 1


class TestRetimed:
    """The first level that is left, with the epochs that suit the time that is left."""

    @few
    @given(cases(), st.floats(0.05, 1.5), st.floats(0.3, 3), st.data())
    def test_never_exceeds_the_time_left(self, case: Case, share: float, slower: float, data: st.DataObject) -> None:
        levels = case.plan().levels
        left = share * case.seconds
        busy = data.draw(st.lists(st.floats(0, left), max_size=case.workers - 1))
        free = [0.0] * (case.workers - len(busy)) + busy
        costs = tuple(c.cost for c in case.candidates)
        pace = Pace(costs, tuple(c.seconds for c in case.candidates), case.overhead).scaled(slower)
        level = retimed(levels, left, free, case.terms, pace)
        if level is None:
            assert not levels or min(pace.of(x.cost) for x in levels) * LEAST_EPOCHS + case.overhead > left - LATE
            return
        assert level.start == 0  # a worker is free
        assert level.seconds <= left + LATE
        assert level.seconds == pytest.approx(level.epochs * pace.of(level.cost) + case.overhead)
        assert level.epochs >= LEAST_EPOCHS

    def test_the_cheapest_comes_first_and_the_dearest_is_dropped(self) -> None:
        networks, terms = ladder(5, 4, 2.0), Terms(3e5, 5e6, 45_000)
        levels = plan(networks, 200, 1, terms, 1.0).levels
        assert len(levels) > 1
        pace = Pace(tuple(c.cost for c in networks), tuple(c.seconds for c in networks), 1.0)
        first = retimed(levels, 200, [0.0], terms, pace)
        assert first is not None
        assert (first.cost, first.epochs) == (levels[0].cost, pytest.approx(levels[0].epochs, rel=0.05))
        hurried = retimed(levels, pace.of(levels[0].cost) + 2, [0.0], terms, pace)
        assert hurried is not None
        assert hurried.cost == levels[0].cost

    def test_a_last_level_fills_the_time(self) -> None:
        terms = Terms(3e5, 5e6, 45_000)
        level = Level({}, 3e5, 4.0, 0.0, 9.0)
        pace = Pace((3e5, 5e6), (2.0, 8.0), 1.0)
        found = retimed([level], 60.0, [0.0], terms, pace)
        assert found is not None
        assert found.seconds == pytest.approx(60.0, rel=0.01)

    def test_without_levels_there_is_none(self) -> None:
        assert retimed([], 60.0, [0.0], Terms(3e5, 5e6, 45_000), Pace((3e5,), (1.0,))) is None


class TestPace:
    pace = Pace((1e5, 1e6, 1e7), (1.0, 4.0, 30.0))

    @given(st.floats(1e3, 1e9), st.floats(1, 100))
    def test_rises_with_the_cost(self, cost: float, factor: float) -> None:
        assert 0 < self.pace.of(cost) <= self.pace.of(factor * cost) * (1 + 1e-9)

    def test_is_what_was_measured_and_proportional_beyond(self) -> None:
        assert [self.pace.of(c) for c in self.pace.costs] == pytest.approx(self.pace.seconds)
        assert self.pace.of(3e7) == pytest.approx(90.0)
        assert self.pace.of(1e3) == pytest.approx(1.0)

    def test_a_slower_machine_takes_longer_by_a_factor(self) -> None:
        assert self.pace.scaled(2).of(3e5) == pytest.approx(2 * self.pace.of(3e5))
