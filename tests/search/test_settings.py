"""Settings: checked, grouped, written as JSON and read again, compared; MACs to match held against the space."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from res2net.cost import cost
from res2net.errors import UserError
from search.groups import Scope
from search.settings import EPOCHS, FREE, GROUPS, TIME, TRIALS, Settings
from trainers.recipes import RECIPES

BEFORE = {"epochs": 8, "lr": 0.25}


def check(settings: Settings) -> None:
    """Raise `UserError` if no network of the settings' space has the MACs that they ask for."""
    scope = settings.scope
    scope.matching.check(scope.get_space(10), scope.limits, scope.seed)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": "cifar11"}, "data"),
        ({"sampler": "tpee"}, "sampler"),
        ({"executor": "slurm"}, "executor"),
        ({"trials": 0}, "trials"),
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": 0}, "workers"),
        ({"cpus_per_trial": 0}, "cpus_per_trial"),
        ({"train_images": 0}, "train_images"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"gpus_per_trial": -0.5}, "gpus_per_trial"),
        ({"gpus_per_trial": 100}, "gpus_per_trial"),
        ({"max_macs": 10, "min_macs": 20}, "min_macs"),
    ],
)
def test_a_mistake_names_the_setting_and_what_is_accepted(changes: dict[str, object], field: str) -> None:
    with pytest.raises(UserError) as error:
        Settings(**changes)
    text = str(error.value)
    assert text.startswith(f"`{field}`: ")
    assert "accepted:" in text
    assert "\n" not in text


def test_a_near_miss_is_offered() -> None:
    with pytest.raises(UserError, match="did you mean 'nsga2'"):
        Settings(sampler="nsga")


@given(
    st.builds(
        Settings,
        per_stage=st.booleans(),
        sampler=st.sampled_from(["tpe", "nsga2", "random"]),
        max_macs=st.none() | st.integers(1000, 10**10),
        time=st.none() | st.floats(1, 1e6),
        lr=st.floats(1e-6, 10),
        workers=st.none() | st.integers(1, 64),
    )
)
def test_json_round_trip(settings: Settings) -> None:
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_a_run_of_version_0_1_has_settings_without_groups() -> None:
    flat = {"space": "scale", "trials": 7, "epochs": 3, "evaluator": "supernet", "workers": 2}
    read = Settings.from_dict(flat)
    assert (read.scope.space, read.budget.trials, read.scoring.epochs, read.resources.workers) == ("scale", 7, 3, 2)
    assert Settings.from_dict(json.loads(json.dumps(read.to_dict()))) == read


def test_settings_not_written_take_the_groups_default_not_the_evaluators() -> None:
    """An earlier version wrote what it used; a default of its evaluator's must not change the search on a resume."""
    assert Settings.from_dict({"evaluator": "supernet"}).budget.trials == TRIALS
    assert Settings(evaluator="supernet").budget.trials != TRIALS


def test_a_run_without_a_recipe_keeps_that_of_earlier_versions() -> None:
    written = Settings(trials=3).to_dict()
    del written["scoring"]["recipe"]
    assert Settings.from_dict(written).scoring.recipe == RECIPES["fast"] != Settings().scoring.recipe


def test_values_may_be_given_in_groups() -> None:
    scope = Scope(space="scale", seed=3)
    assert Settings(scope=scope, trials=7) == Settings(space="scale", seed=3, trials=7)
    assert Settings(scope=scope, seed=4).scope == Scope(space="scale", seed=4)
    assert list(Settings().to_dict()) == list(GROUPS)


def test_defaults_suit_the_evaluator_and_given_values_win() -> None:
    assert (Settings(evaluator="inherit").scoring.lr, Settings(evaluator="supernet").budget.trials) == (0.02, 200)
    assert (Settings(evaluator="inherit", lr=0.3).scoring.lr, Settings().scoring.lr) == (0.3, RECIPES["short"].lr)


@pytest.mark.parametrize("evaluator", ["inherit", "supernet"])
def test_shared_weights_are_searched_as_before(evaluator: str) -> None:
    assert Settings(evaluator=evaluator).scoring.recipe == RECIPES["fast"]
    assert not Settings(evaluator=evaluator, time=60.0).planned


def test_batch_size_and_rate_are_the_recipes_unless_given() -> None:
    scoring = Settings(recipe=RECIPES["modern"], lr=0.3).scoring
    assert (scoring.batch_size, scoring.lr) == (RECIPES["modern"].batch_size, 0.3)
    config = Settings(recipe=RECIPES["modern"], lr=0.3, trials=1, epochs=7).scoring.train_config(5)
    assert (config.mixup, config.batch_size, config.lr, config.epochs, config.seed) == (0.2, 128, 0.3, 7, 5)


class TestPlanned:
    """A search is planned from its time, unless the user says how many networks, how many epochs or how to stop."""

    @pytest.mark.parametrize(("given", "seconds"), [({}, TIME), ({"time": 60.0}, 60.0), ({"seed": 3}, TIME)])
    def test_without_trials_and_epochs(self, given: dict[str, object], seconds: float) -> None:
        settings = Settings(**given)
        assert settings.planned
        assert (settings.budget.trials, settings.scoring.epochs, settings.budget.time) == (None, None, seconds)

    @pytest.mark.parametrize(
        ("given", "trials", "epochs"),
        [
            ({"trials": 3}, 3, EPOCHS),
            ({"epochs": 5}, TRIALS, 5),
            ({"epochs": 9, "scheduler": "asha"}, TRIALS, 9),
            ({"scheduler": "pareto-asha"}, TRIALS, EPOCHS),
            ({"match_macs": 4_000_000}, TRIALS, EPOCHS),
        ],
    )
    @pytest.mark.parametrize("limit", [None, 60.0])
    def test_else_the_old_defaults_hold(
        self, given: dict[str, object], trials: int, epochs: int, limit: float | None
    ) -> None:
        settings = Settings(time=limit, **given)
        assert not settings.planned
        assert (settings.budget.trials, settings.scoring.epochs, settings.budget.time) == (trials, epochs, limit)

    def test_a_planned_search_stays_one(self) -> None:
        planned = Settings(time=60.0)
        assert planned.replace(seed=2, time=30.0).planned
        assert Settings.from_dict(json.loads(json.dumps(planned.to_dict()))) == planned
        assert not planned.replace(trials=4).planned


def test_replace_changes_no_other_value() -> None:
    """Not even one that would have had another default."""
    changed = Settings(trials=7).replace(evaluator="inherit", seed=2)
    assert changed.scoring.lr == Settings().scoring.lr
    assert (changed.budget.trials, changed.scope.seed) == (7, 2)
    with pytest.raises(UserError, match="`trials`: 0"):
        changed.replace(trials=0)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(UserError, match=r"'trails'.*did you mean 'trials'"):
        Settings(trails=3)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(UserError, match=r"settings: key.*'sampel'.*did you mean 'sampler'"):
        Settings.from_dict({"sampel": "tpe"})


def test_equal_settings_do_not_differ() -> None:
    assert Settings().differences(Settings()) == []


@pytest.mark.parametrize("name", FREE)
def test_duration_and_place_may_differ(name: str) -> None:
    value = {"data_dir": "there", "executor": "local", "gpus_per_trial": 0.5}.get(name, 7)
    before = Settings(trials=12)
    assert before.replace(**{name: value}).differences(before) == []


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"seed": 1}, "`seed` 0, not 1"),
        ({"epochs": 9}, "`epochs` 8, not 9"),
        ({"max_macs": 10}, "`max_macs` None, not 10"),
        ({"per_stage": True}, "`per_stage` False, not True"),
        ({"lr": 0.5}, "`lr` 0.25, not 0.5"),
        ({"batch_size": 64}, "`batch_size` 128, not 64"),
    ],
)
def test_the_search_and_its_scores_may_not_differ(changes: dict[str, object], shown: str) -> None:
    assert Settings(**BEFORE | changes).differences(Settings(**BEFORE)) == [shown]


def test_all_differences_are_named() -> None:
    assert len(Settings(seed=1, lr=0.2, sampler="random").differences(Settings())) == 3


def test_matching_macs_widens_to_within_a_tenth(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(match_macs=250_000)
    space = settings.scope.get_space(10)
    check(settings)
    params = {"scale": 2, "cardinality": 2, "depth": 1}
    matched = cost(settings.scope.matching.member(space, params), space.image_size).macs
    assert matched == pytest.approx(250_000, rel=0.1)
    assert matched != cost(space.arch(params), space.image_size).macs


@pytest.mark.parametrize("match", [100, 10_000, 10**15])
def test_macs_that_no_network_matches_are_refused_with_the_range(
    make_settings: Callable[..., Settings], match: int
) -> None:
    settings = make_settings(match_macs=match)
    with pytest.raises(UserError, match=r"^`match_macs`: nothing in space 'tiny' \(micro\) matches") as error:
        check(settings)
    named = re.search(r"accepted: (\d+) \(.*\) to (\d+) \(.*\)$", str(error.value))
    assert named is not None, error.value
    for accepted in map(int, named.groups()):
        check(make_settings(match_macs=accepted))


def test_matched_macs_beyond_another_limit_are_refused(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(match_macs=200_000, max_params=10)
    with pytest.raises(UserError, match=r"^`match_macs`: .* within the other limits"):
        check(settings)


@pytest.mark.parametrize(("data", "base", "expected"), [("shapes", None, "micro"), ("shapes", "cifar", "cifar")])
def test_the_base_follows_from_the_data_unless_it_is_given(data: str, base: str | None, expected: str) -> None:
    assert Settings(space="scale", data=data, base=base).scope.get_space(10).base == expected
