"""Children of the front: where a planned search looks for networks after its levels."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import space as spaces
from res2net import contains
from search.children import BROOD, Gap, changed, child, gaps
from search.objectives import MACS
from search.plan import Terms
from search.timetable import Member
from space import Space

LOW, HIGH = 1e5, 1e7
TERMS = Terms(LOW, HIGH, 45_000)
points = st.lists(st.tuples(st.floats(LOW, HIGH / 2), st.floats(0, 1)), max_size=8, unique_by=lambda p: p[0])


@pytest.fixture
def space(tiny_space: Path) -> Space:
    return spaces.get(str(tiny_space), num_classes=10)


def member(space: Space, **params: int) -> Member:
    arch = space.arch(params)
    return Member(params, arch, MACS.of(arch, space.image_size))


@pytest.fixture
def small(space: Space) -> Member:
    return member(space, scale=1, cardinality=2, depth=1)


def offspring(
    space: Space, parents: list[Member], found: list[Gap], grows: bool = True, turn: int = 0
) -> Member | None:
    params = child(space, MACS, found, parents, grows, lambda m: True, turn, seed=0)
    return None if params is None else member(space, **params)


class TestGaps:
    @given(points)
    def test_they_divide_the_range_at_the_front(self, front: list[tuple[float, float]]) -> None:
        found = gaps(TERMS, front)
        assert found[0].low == LOW
        assert found[-1].high == HIGH
        assert all(a.high == b.low for a, b in itertools.pairwise(found))
        rising = [cost for cost, top1 in front if not any(c <= cost and a >= top1 for c, a in front if c != cost)]
        assert {g.high for g in found[:-1]} == set(rising) or not front

    @given(points)
    def test_no_gap_is_worth_less_than_nothing(self, front: list[tuple[float, float]]) -> None:
        assert all(gap.worth >= 0 for gap in gaps(TERMS, front))

    def test_a_wider_and_a_steeper_gap_is_worth_more(self) -> None:
        narrow, wide = gaps(TERMS, [(LOW, 0.5), (2 * LOW, 0.6), (8 * LOW, 0.7)])[1:3]
        assert wide.worth == pytest.approx(2 * narrow.worth)
        flat, steep = gaps(TERMS, [(LOW, 0.5), (2 * LOW, 0.6), (4 * LOW, 0.8)])[1:3]
        assert steep.worth == pytest.approx(2 * flat.worth)

    def test_above_the_front_the_formula_predicts_a_rise(self) -> None:
        assert gaps(TERMS, [(LOW, 0.9)])[-1].worth > 0


class TestChanged:
    def test_one_choice_changes_then_two(self, space: Space, small: Member) -> None:
        differences = [
            sum(m.params[name] != small.params[name] for name in small.params)
            for m in changed(space, MACS, small, random.Random(0))
        ]
        assert differences == sorted(differences)
        assert set(differences) == {1, 2}
        assert differences.count(1) == sum(len(values) - 1 for values in space.parameters.values())


class TestChild:
    def test_lies_in_the_gap_and_contains_its_parent(self, space: Space, small: Member) -> None:
        for turn in range(20):
            found = offspring(space, [small], [Gap(170_000, 300_000, 1.0)], turn=turn)
            assert found is not None
            assert 170_000 < found.cost < 300_000
            assert contains(found.arch, small.arch)

    def test_need_not_contain_its_parent_if_it_is_trained_from_scratch(self, space: Space) -> None:
        largest = member(space, **(space.params_of(space.largest()) or {}))
        inside = [Gap(300_000, 400_000, 1.0), Gap(400_000, 500_000, 0.0)]
        assert offspring(space, [largest], inside) is None  # it is dearer than every gap that is worth something
        parent = member(space, scale=4, cardinality=1, depth=1)
        assert offspring(space, [parent], [Gap(310_000, 400_000, 1.0)]) is None
        found = offspring(space, [parent], [Gap(310_000, 400_000, 1.0)], grows=False)
        assert found is not None
        assert found.params == {"scale": 4, "cardinality": 2, "depth": 2}

    def test_the_same_turn_gives_the_same_child(self, space: Space, small: Member) -> None:
        found = [offspring(space, [small], [Gap(170_000, 300_000, 1.0)], turn=turn) for turn in (4, 4)]
        assert found[0] == found[1]

    def test_a_brood_shares_its_gap(self, space: Space, small: Member) -> None:
        two = [Gap(170_000, 200_000, 1.0), Gap(200_000, 300_000, 1.0)]
        first = [offspring(space, [small], two, turn=turn) for turn in range(30 * BROOD)]
        sides = [m is not None and m.cost < 200_000 for m in first]
        broods = [sides[i : i + BROOD] for i in range(0, len(sides), BROOD)]
        assert all(len(set(brood)) == 1 for brood in broods)
        assert len({brood[0] for brood in broods}) == 2

    def test_an_empty_gap_leaves_the_other_ones(self, space: Space, small: Member) -> None:
        found = offspring(space, [small], [Gap(165_200, 165_300, 9.0), Gap(170_000, 300_000, 0.1)])
        assert found is not None
        assert offspring(space, [small], [Gap(165_200, 165_300, 9.0)]) is None
        assert offspring(space, [], [Gap(170_000, 300_000, 1.0)]) is None
