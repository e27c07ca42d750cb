"""The front, the hypervolume and the knee, beside slow definitions that anyone can check by reading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.front import Axis, front, hypervolume, knee

LOW, HIGH = 10, 10_000
# Few values, so that ties and equal points are common.
POINTS = st.lists(st.tuples(st.integers(0, 8).map(float), st.integers(1, 30).map(lambda n: n * 500)), max_size=14)
SPREAD = st.lists(st.tuples(st.floats(0, 100), st.integers(1, 20_000)), max_size=14)


def columns(points: list[tuple[float, int]]) -> tuple[list[float], list[int]]:
    return [a for a, _ in points], [m for _, m in points]


def volume(points: list[tuple[float, int]]) -> float:
    top1, macs = columns(points)
    return hypervolume(top1, Axis(macs, LOW, HIGH))


def places(macs: Sequence[float]) -> list[float]:
    """Return the places of costs on a logarithmic axis."""
    return [math.log(m) for m in macs]


def dominates(p: tuple[float, int], q: tuple[float, int]) -> bool:
    return p[0] >= q[0] and p[1] <= q[1] and p != q


def best_within(points: list[tuple[float, int]], budget: float) -> float:
    return max((a for a, m in points if m <= budget), default=0.0)


@given(POINTS | SPREAD)
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, int]]) -> None:
    expected = [
        i for i, p in enumerate(points) if p not in points[:i] and not any(dominates(other, p) for other in points)
    ]
    expected.sort(key=lambda i: points[i][1])
    assert front(*columns(points)) == expected


@given(POINTS | SPREAD)
def test_both_columns_rise_along_the_front(points: list[tuple[float, int]]) -> None:
    chosen = [points[i] for i in front(*columns(points))]
    for (a, m), (b, n) in pairwise(chosen):
        assert a < b
        assert m < n


@given(POINTS | SPREAD)
def test_hypervolume_is_the_mean_over_log_budgets(points: list[tuple[float, int]]) -> None:
    """Exact, as the best within a budget is constant between two networks' MACs."""
    edges = sorted({LOW, HIGH, *(m for _, m in points if LOW < m < HIGH)})
    area = sum(best_within(points, a) * math.log(b / a) for a, b in pairwise(edges))
    assert volume(points) == pytest.approx(area / math.log(HIGH / LOW), abs=1e-9)


def test_hypervolume_against_a_numeric_integral() -> None:
    points = [(20.0, 5), (50.0, 100), (45.0, 300), (70.0, 2000), (99.0, 20_000)]
    budgets = np.exp((np.arange(200_000) + 0.5) / 200_000 * math.log(HIGH / LOW)) * LOW
    mean = np.mean(np.select([budgets >= 2000, budgets >= 100], [70.0, 50.0], 20.0))
    assert volume(points) == pytest.approx(mean, abs=1e-3)


@given(POINTS | SPREAD, st.floats(0, 100), st.integers(1, 20_000))
def test_another_network_never_lowers_the_hypervolume(points: list[tuple[float, int]], a: float, m: int) -> None:
    before = volume(points)
    assert volume([*points, (a, m)]) >= before - 1e-9
    assert 0 <= before <= 100


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (LOW, HIGH, 60.0),  # one network, cheaper than every budget
        (LOW, 4, 0.0),  # none within the budgets
        (10, 10, 0.0),  # no budgets
        (0, 10, 0.0),
    ],
)
def test_hypervolume_at_the_ends(low: int, high: int, expected: float) -> None:
    assert hypervolume([60.0], Axis([5], low, high)) == pytest.approx(expected)


def test_hypervolume_of_nothing_is_zero() -> None:
    assert volume([]) == 0


def test_the_knee_is_farthest_above_the_line_between_the_ends() -> None:
    accuracy, macs = [10.0, 80.0, 85.0, 20.0, 90.0], [10, 100, 1000, 1000, 10_000]
    assert knee(accuracy, places(macs)) == 1


@pytest.mark.parametrize(
    ("accuracy", "macs", "expected"),
    [
        ([50.0], [10], 0),
        ([50.0, 60.0], [10, 20], 1),  # of two, the more accurate
        ([60.0, 50.0, 40.0], [10, 20, 30], 0),  # a front of one
    ],
)
def test_the_knee_of_few(accuracy: list[float], macs: list[int], expected: int) -> None:
    assert knee(accuracy, places(macs)) == expected


@given(SPREAD.filter(bool))
def test_the_knee_is_on_the_front_wherever_the_points_stand(points: list[tuple[float, int]]) -> None:
    top1, macs = columns(points)
    index = knee(top1, places(macs))
    assert index in front(top1, macs)
    back = knee(top1[::-1], places(macs[::-1]))
    assert points[index] == points[::-1][back]


# Few values, so that ties and equal points are common.
SEVERAL = st.lists(st.tuples(*(st.integers(0, 4).map(float),) * 3), max_size=10)


class TestSeveralCosts:
    @given(SEVERAL)
    def test_the_front_is_what_nothing_dominates(self, points: list[tuple[float, ...]]) -> None:
        def beats(p: tuple[float, ...], q: tuple[float, ...]) -> bool:
            return p[0] >= q[0] and all(a <= b for a, b in zip(p[1:], q[1:], strict=True)) and p != q

        expected = [i for i, p in enumerate(points) if p not in points[:i] and not any(beats(o, p) for o in points)]
        got = front(*zip(*points, strict=True)) if points else front([], [], [])
        assert sorted(got) == expected
        assert [points[i][1:] for i in got] == sorted(points[i][1:] for i in got)

    @given(SEVERAL.filter(bool))
    def test_hypervolume_against_a_sum_over_cells(self, points: list[tuple[float, ...]]) -> None:
        """Costs are whole numbers, so the best quality is constant in each cell of budgets."""
        cells = [(a, b) for a in range(1, 6) for b in range(1, 6)]
        best = [max((q for q, x, y in points if max(x, 1) <= a and max(y, 1) <= b), default=0.0) for a, b in cells]
        quality, x, y = zip(*points, strict=True)
        got = hypervolume(quality, Axis(x, 1, 6, log=False), Axis(y, 1, 6, log=False))
        assert got == pytest.approx(sum(best) / len(cells), abs=1e-9)

    @given(SEVERAL.filter(bool))
    def test_the_knee_is_on_the_front(self, points: list[tuple[float, ...]]) -> None:
        assert knee(*zip(*points, strict=True)) in front(*zip(*points, strict=True))

    def test_with_a_second_cost_a_network_needs_to_be_better_in_one_only(self) -> None:
        assert front([70.0, 60.0, 65.0], [10, 10, 20], [5.0, 3.0, 9.0]) == [1, 0]
        assert front([70.0, 60.0, 65.0], [10, 10, 20]) == [0]
