"""Settings: checked, written as JSON and read again, compared, and their limits held against the space."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from res2net.cost import Cost, cost
from res2net.errors import UserError
from search.settings import FREE, Limits, Settings, check_limits, limits_of, member
from search.units import parse_count

BEFORE = {"epochs": 8, "lr": 0.25}


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"data": "cifar11"}, "`data`"),
        ({"sampler": "tpee"}, "--sampler"),
        ({"executor": "slurm"}, "--executor"),
        ({"trials": 0}, "--trials"),
        ({"epochs": -1}, "--epochs"),
        ({"batch_size": 0}, "--batch-size"),
        ({"workers": 0}, "--workers"),
        ({"cpus_per_trial": 0}, "--cpus-per-trial"),
        ({"train_images": 0}, "--train-images"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"gpus_per_trial": -0.5}, "--gpus-per-trial"),
        ({"gpus_per_trial": 100}, "--gpus-per-trial"),
        ({"max_macs": 10, "min_macs": 20}, "--min-macs"),
    ],
)
def test_a_mistake_names_the_option_and_what_would_do(changes: dict[str, object], option: str) -> None:
    with pytest.raises(UserError) as error:
        Settings(**changes)
    text = str(error.value)
    assert text.startswith(f"{option}: ")
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


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(UserError, match=r"settings: key.*'sampel'.*did you mean 'sampler'"):
        Settings.from_dict({"sampel": "tpe"})


def test_equal_settings_do_not_differ() -> None:
    assert Settings().differences(Settings()) == []


@pytest.mark.parametrize("name", FREE)
def test_how_long_and_where_may_differ(name: str) -> None:
    value = {"data_dir": "there", "executor": "local", "gpus_per_trial": 0.5}.get(name, 7)
    assert Settings(**{name: value}).differences(Settings()) == []


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"seed": 1}, "--seed 0, not 1"),
        ({"epochs": 9}, "--epochs 8, not 9"),
        ({"max_macs": 10}, "--max-macs None, not 10"),
        ({"per_stage": True}, "--per-stage False, not True"),
        ({"lr": 0.5}, "--lr 0.25, not 0.5"),
    ],
)
def test_what_is_searched_may_not_differ(changes: dict[str, object], shown: str) -> None:
    assert Settings(**BEFORE | changes).differences(Settings(**BEFORE)) == [shown]


def test_all_differences_are_named() -> None:
    assert len(Settings(seed=1, lr=0.2, sampler="random").differences(Settings())) == 3


def test_violations_are_shares_above_zero() -> None:
    limits = Limits(max_macs=100, min_macs=50, max_params=10)
    assert limits.violations(Cost(150, 5, 0)) == [0.5, -2.0, -0.5]
    assert limits.violations(Cost(25, 20, 0)) == [-0.75, 0.5, 1.0]
    assert Limits().violations(Cost(1, 1, 1)) == []


@pytest.mark.parametrize(
    ("macs", "params", "allowed"), [(100, 10, True), (50, 10, True), (101, 10, False), (49, 1, False)]
)
def test_a_limit_itself_is_allowed(macs: int, params: int, allowed: bool) -> None:
    assert Limits(max_macs=100, min_macs=50, max_params=10).allow(Cost(macs, params, 0)) is allowed


@pytest.mark.parametrize(
    ("option", "field"), [("--max-macs", "macs"), ("--max-params", "params"), ("--min-macs", "macs")]
)
def test_an_impossible_limit_is_refused_with_one_that_is_possible(
    make_settings: Callable[..., Settings], option: str, field: str
) -> None:
    name = option[2:].replace("-", "_")
    space = make_settings().scope.get_space(10)
    least, most = getattr(space.cheapest(field)[1], field), getattr(space.dearest(field)[1], field)
    settings = make_settings(**{name: most + 1 if name == "min_macs" else least - 1})
    with pytest.raises(UserError, match=rf"^{option}: nothing in space 'tiny' \(micro\)") as error:
        check_limits(space, settings)
    named = re.search(r"accepted: at (?:least|most) (\S+), its (?:cheapest|dearest)$", str(error.value))
    assert named is not None, error.value
    check_limits(space, make_settings(**{name: parse_count(named[1], option)}))  # what it names is accepted
    check_limits(space, make_settings(**{name: most if name == "min_macs" else least}))


def test_no_limits_are_always_met(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    check_limits(settings.scope.get_space(10), settings)
    assert limits_of(settings) == Limits()


def test_matching_macs_widens_to_within_a_tenth(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(match_macs=250_000)
    space = settings.scope.get_space(10)
    check_limits(space, settings)
    params = {"scale": 2, "cardinality": 2, "depth": 1}
    matched = cost(member(space, params, settings.scope.match_macs), space.image_size).macs
    assert matched == pytest.approx(250_000, rel=0.1)
    assert matched != cost(member(space, params, None), space.image_size).macs


@pytest.mark.parametrize("match", [100, 10_000, 10**15])
def test_macs_that_nothing_can_match_are_refused_with_what_can(
    make_settings: Callable[..., Settings], match: int
) -> None:
    settings = make_settings(match_macs=match)
    space = settings.scope.get_space(10)
    with pytest.raises(UserError, match=r"^--match-macs: nothing in space 'tiny' \(micro\) matches") as error:
        check_limits(space, settings)
    named = re.search(r"accepted: (\d+) \(.*\) to (\d+) \(.*\)$", str(error.value))
    assert named is not None, error.value
    for accepted in map(int, named.groups()):
        check_limits(space, make_settings(match_macs=accepted))


def test_matched_macs_beyond_another_limit_are_refused(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings(match_macs=200_000, max_params=10)
    with pytest.raises(UserError, match=r"^--match-macs: .* within the other limits"):
        check_limits(settings.scope.get_space(10), settings)


@pytest.mark.parametrize(("data", "base", "expected"), [("shapes", None, "micro"), ("shapes", "cifar", "cifar")])
def test_the_base_suits_the_data_unless_it_is_named(data: str, base: str | None, expected: str) -> None:
    assert Settings(space="scale", data=data, base=base).scope.get_space(10).base == expected
