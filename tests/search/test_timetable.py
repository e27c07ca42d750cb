"""The timetable of a planned search: each level once, the pace corrected, whole steps; and the members of a plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import space as spaces
from search import calibration
from search.calibration import recorded, restored
from search.included import Included
from search.ledger import Ledger
from search.objectives import ACTIVATIONS, MACS, Limits, Objective, latency_by
from search.plan import Candidate, Level, Pace, Plan, Terms
from search.planner import plan
from search.settings import Settings
from search.study.trials import ORPHAN, SCORED, Record
from search.timetable import LEAST_FIRST, LEVELS, Awaited, Timetable, members
from studies.synthetic import latency_table
from trainers.datasets.data import Data
from trainers.recipes import RECIPES, Config

COSTS = (3e5, 6e5, 1.2e6, 2.4e6)
PACE = Pace(COSTS, (1.0, 1.5, 2.3, 4.0), overhead=1.0)
TERMS = Terms(3e5, 5e6, 45_000)
LEFT = 60.0  # s


def timetable(workers: int = 1, session: int = 2) -> Timetable:
    """Return the timetable of a minute over four networks."""
    levels = tuple(Level({"scale": i + 1}, c, 3.0, 40.0 * i, 3 * PACE.of(c) + 1) for i, c in enumerate(COSTS))
    return Timetable(Plan(LEFT, workers, levels, 0, 50.0, 0.0), PACE, TERMS, steps_per_epoch=10, session=session)


def record(outcome: str, number: int = 0, **attrs: object) -> Record:
    return Record(number, "COMPLETE", outcome, {}, attrs, None, {})


class TestNext:
    def test_gives_each_level_once_in_order(self) -> None:
        table = timetable()
        steps = [table.next(LEFT, []) for _ in COSTS]
        assert [step.place for step in steps if step] == [(2, i) for i in range(len(COSTS))]
        assert [step.params for step in steps if step] == [level.params for level in table.plan.levels]
        assert table.next(LEFT, []) is None

    def test_does_not_repeat_levels_that_trials_have_begun(self) -> None:
        """Trials that waited or were orphaned have begun their level too: their retries train it."""
        table = timetable()
        table.resume([record(SCORED, plan=[2, 0]), record(ORPHAN, plan=[2, 2]), record("waiting", plan=[2, 2])])
        steps = [table.next(LEFT, []), table.next(LEFT, [])]
        assert [step.place for step in steps if step] == [(2, 1), (2, 3)]
        assert table.next(LEFT, []) is None

    def test_ignores_levels_of_other_plans_and_trials_of_the_sampler(self) -> None:
        table = timetable()
        table.resume([record(SCORED, plan=[1, 0]), record(SCORED, epochs=3), record(SCORED, plan=[0, 3])])
        assert table.started == set()

    @given(st.floats(0, 120), st.lists(st.floats(0, 200), max_size=7), st.integers(1, 8))
    def test_what_starts_now_ends_within_the_time(self, left: float, busy: list[float], workers: int) -> None:
        table = timetable(workers)
        step = table.next(left, busy)
        if step is None:
            assert table.started == set()
            assert left < LEAST_FIRST * PACE.of(COSTS[0]) + PACE.overhead + 0.01
        else:
            assert step.epochs >= LEAST_FIRST
            cost = table.plan.levels[step.place[1]].cost
            assert step.epochs * PACE.of(cost) + PACE.overhead <= left + 0.01 * PACE.of(cost)  # two decimals

    def test_a_late_start_trains_the_cheapest_network_for_the_time_left(self) -> None:
        table = timetable()
        late = PACE.overhead + 0.5 * PACE.of(COSTS[0])
        step = table.next(late, [])
        assert step is not None
        assert step.params == table.plan.levels[0].params
        assert step.epochs == pytest.approx(0.5)
        assert table.next(late, []) is None  # no other network gets less than an epoch

    def test_no_time_starts_nothing(self) -> None:
        table = timetable()
        assert table.next(0.0, []) is None
        assert table.next(-1.0, []) is None
        assert table.next(LEFT, []) is not None

    def test_a_grown_network_waits_for_the_trunk_of_a_smaller_one(self) -> None:
        table = timetable(workers=2)
        table.plan = replace(table.plan, grown=True)
        first = table.next(LEFT, [])
        assert first is not None
        assert 1 <= first.trunk < first.epochs
        assert table.inherits == first.trunk * COSTS[0]
        with pytest.raises(Awaited):
            table.next(LEFT, [5.0], trunks=[COSTS[0]])
        second = table.next(LEFT, [5.0])
        assert second is not None
        assert second.place == (2, 1)

    def test_more_time_trains_longer(self) -> None:
        """All but the level that gives the first front."""
        short, long = timetable(), timetable()
        for table in (short, long):
            table.started.add(0)
        step, longer = short.next(40.0, []), long.next(400.0, [])
        assert step is not None
        assert longer is not None
        assert step.epochs < longer.epochs


class TestPaceOfTheSearch:
    def test_trials_correct_it(self) -> None:
        table = timetable()
        assert table.now == PACE
        table.note(COSTS[1], 4.0, 1.0 + 2 * 4.0 * 1.5)  # twice as slow
        assert table.now.of(COSTS[3]) == pytest.approx(2 * PACE.of(COSTS[3]))
        assert table.pace == PACE

    def test_one_slow_trial_among_many_changes_little(self) -> None:
        table = timetable()
        for seconds in (5.0, 5.0, 100.0):
            table.note(COSTS[0], 4.0, seconds)
        assert table.now.of(COSTS[0]) == pytest.approx(PACE.of(COSTS[0]))

    def test_old_trials_are_forgotten(self) -> None:
        table = timetable()
        for seconds in [5.0] * 9 + [9.0] * 9:
            table.note(COSTS[0], 4.0, seconds)
        assert table.now.of(COSTS[0]) == pytest.approx(2 * PACE.of(COSTS[0]))

    def test_trials_shorter_than_the_overhead_leave_a_pace(self) -> None:
        table = timetable()
        table.note(COSTS[0], 4.0, 0.5 * PACE.overhead)
        assert 0 < table.now.of(COSTS[0]) < PACE.of(COSTS[0])
        assert table.next(LEFT, []) is not None

    def test_a_slower_machine_gets_fewer_epochs(self) -> None:
        usual, slow = timetable(), timetable()
        usual.started.add(0)
        slow.started.add(0)
        slow.note(COSTS[0], 4.0, 1.0 + 3 * 4.0)
        first, fewer = usual.next(LEFT, []), slow.next(LEFT, [])
        assert first is not None
        assert fewer is not None
        assert fewer.epochs < first.epochs


class TestExploration:
    """Networks that the sampler proposes train as long as the plan's level of the nearest cost."""

    def test_epochs_are_those_of_the_nearest_level(self) -> None:
        table = timetable()
        assert table.epochs(1.3e6, LEFT) == 3.0
        assert table.epochs(1e9, LEFT) is None  # an epoch takes longer than the time left

    @given(st.floats(3e5, 5e6), st.floats(0, 60))
    def test_they_fit_the_time_left(self, cost: float, left: float) -> None:
        table = timetable()
        epochs = table.epochs(cost, left)
        if epochs is None:
            assert not 1.5 * PACE.of(cost) + PACE.overhead < left
        else:
            assert 1.5 <= epochs <= 3
            assert epochs * PACE.of(cost) + PACE.overhead <= left + 0.01 * PACE.of(cost)

    def test_it_ends_when_nothing_fits(self) -> None:
        table = timetable()
        assert table.explores(LEFT)
        assert not table.explores(1.5 * PACE.of(COSTS[0]) + PACE.overhead)


@given(st.floats(0.01, 60), st.integers(1, 400), st.sampled_from(["short", "fast", "modern"]))
def test_a_configuration_has_whole_epochs_that_hold_its_steps(epochs: float, per_epoch: int, recipe: str) -> None:
    table = timetable()
    table.steps_per_epoch = per_epoch
    config = table.config(RECIPES[recipe], epochs)
    assert config.steps == max(1, round(epochs * per_epoch))
    assert (config.epochs - 1) * per_epoch < config.steps <= config.epochs * per_epoch
    assert config.total_steps(per_epoch) == config.steps  # which raises an error for steps outside of the last epoch
    assert 0 <= config.lr_at(config.steps - 1, per_epoch) <= config.lr


def test_a_configuration_keeps_the_rest_of_the_recipe() -> None:
    before = Config(seed=5, lr=0.3, ema=0.9)
    after = timetable().config(before, 2.5)
    assert (after.seed, after.lr, after.ema, after.epochs, after.steps) == (5, 0.3, 0.9, 3, 25)


class TestMembers:
    """The networks that a plan may choose from."""

    @pytest.mark.parametrize("per_stage", [False, pytest.param(True, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("objective", [MACS, ACTIVATIONS], ids=lambda o: o.name)
    def test_are_within_the_limits_and_their_costs_rise(self, objective: Objective, per_stage: bool) -> None:
        limits = {"max_macs": 6_000_000, "min_macs": 500_000, "max_params": 300_000}
        scope = Settings(space="scale_card_depth", base="micro", per_stage=per_stage, **limits).scope
        space = scope.get_space(10)
        found = members(space, scope.limits, objective, seed=0)
        assert 2 <= len(found) <= LEVELS
        costs = [m.cost for m in found]
        assert costs == sorted(set(costs))
        for member in found:
            assert space.arch(member.params) == member.arch
            assert member.cost == objective.of(member.arch, space.image_size)
            assert scope.limits.allow(member.arch, space.image_size)

    @pytest.mark.parametrize("name", ["scale_card_depth", "scale_card_depth_width"])
    def test_a_dearer_latency_buys_more_products(self, name: str) -> None:
        """Networks of equal latency may differ in their MACs by a factor of ten."""
        space = spaces.get(name, "thin", num_classes=10)
        found = members(space, Limits(), latency_by(latency_table(space)), seed=0)
        sizes = [MACS.of(m.arch, space.image_size) for m in found]
        assert len(found) >= 3
        assert sizes == sorted(set(sizes))
        rivals = [space.arch(p) for p in space.all_params()]
        table = latency_table(space)
        as_fast = [a for a in rivals if table.of(a, space.image_size) <= found[0].cost]
        assert sizes[0] >= 0.9 * max(MACS.of(a, space.image_size) for a in as_fast)

    def test_the_cheapest_and_the_dearest_cost_are_near_the_ends(self) -> None:
        scope = Settings(space="scale_card_depth", base="micro").scope
        space = scope.get_space(10)
        found = members(space, scope.limits, MACS, seed=0)
        low, high = MACS.range(space)
        step = (high / low) ** (1 / (LEVELS - 1))
        assert low <= found[0].cost <= low * step
        assert high / step <= found[-1].cost <= high

    def test_the_same_seed_gives_the_same_members(self) -> None:
        scope = Settings(space="scale_card_depth_width", base="thin", per_stage=True, max_macs=3_000_000).scope
        space = scope.get_space(10)
        assert members(space, scope.limits, MACS, 3) == members(space, scope.limits, MACS, 3)

    def test_limits_that_nothing_meets_leave_none(self, make_settings: Callable[..., Settings]) -> None:
        scope = make_settings(max_macs=166_000, min_macs=165_500).scope
        assert members(scope.get_space(10), scope.limits, MACS, 0) == []


def test_a_timetable_comes_back_from_the_folder(make_settings: Callable[..., Settings], data: Data) -> None:
    settings = make_settings(trials=None, epochs=None, time=60.0)
    space = settings.scope.get_space(10, data.image_size)
    networks = [Candidate({"scale": 1, "cardinality": 1, "depth": 1}, 1e4, 0.5)]
    made = Timetable(plan(networks, 50.0, 1, TERMS, 1.0), PACE, TERMS, steps_per_epoch=2, session=3)
    again = restored(json.loads(json.dumps(recorded(made))), settings, space, data, Ledger(settings.rules))
    assert (again.plan, again.pace, again.session, again.steps_per_epoch) == (made.plan, made.pace, 3, 2)


def test_a_front_that_no_member_contains_is_left_out(loaded: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "measure", lambda *_: PACE)
    settings = Settings(space="scale_card", base="thin", time=60.0, from_run="earlier")
    space = settings.scope.get_space(10)
    wide = Included("earlier trial 0", spaces.get("scale_card", "micro").largest(), weights=b"trained")
    books = Ledger(settings.rules)
    found, usual = (calibration.timetable(settings, space, loaded, books, 60.0, 1, 0, n) for n in ([wide], []))
    assert [level.params for level in found.plan.levels] == [level.params for level in usual.plan.levels] != []
    assert found.inherits == 0
