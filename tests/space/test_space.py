"""Properties of every space: members, costs, extremes, solved widths, JSON."""

from __future__ import annotations

import itertools
import json
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import space
from res2net.arch import STEMS, Arch, Stage
from res2net.cost import cost
from res2net.errors import UserError
from res2net.named import named
from space import DIMENSIONS, Skeleton, Space
from space.space import MAX_WIDTH

VALUES = {
    "scale": st.integers(1, 8),
    "cardinality": st.integers(1, 8),
    "depth": st.integers(1, 4),
    "width": st.integers(32, 96),  # at 16 planes, the fewest, a split has 8 channels or more: the largest cardinality
    "se": st.sampled_from((0, 2, 4, 16, 64)),  # at these planes, 16 and 64 may give equal numbers of hidden channels
}


@st.composite
def skeletons(draw: st.DrawFn) -> Skeleton:
    stages = draw(st.integers(1, 3))

    def per_stage(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(values) for _ in range(stages))

    return Skeleton(
        planes=per_stage(st.integers(16, 40)),
        strides=per_stage(st.integers(1, 2)),
        pattern=per_stage(st.integers(1, 4)),
        **{name: draw(values) for name, values in VALUES.items()},
        stem=draw(st.sampled_from(STEMS)),
        stem_channels=16,
        first_block=draw(st.sampled_from(("pool", "conv"))),
        shortcut=draw(st.sampled_from(("conv", "avgpool"))),
        image_size=draw(st.integers(8, 40)),
    )


@st.composite
def spaces(draw: st.DrawFn, most: int = 3, per_stage: bool | None = None) -> Space:
    searched = draw(st.sets(st.sampled_from(tuple(DIMENSIONS)), min_size=1))
    choices = {d: draw(st.lists(VALUES[d], min_size=1, max_size=most, unique=True)) for d in searched}
    each = draw(st.booleans()) if per_stage is None else per_stage
    return Space("drawn", "none", draw(skeletons()), choices, each)


def drawn(allowed: Space, seed: int) -> dict[str, int]:
    return allowed.sample(random.Random(seed))


@given(spaces(), st.integers(0, 99))
def test_a_sample_is_a_member_and_its_parameters_are_found_again(allowed: Space, seed: int) -> None:
    params = drawn(allowed, seed)
    assert list(params) == list(allowed.parameters)
    assert all(params[name] in values for name, values in allowed.parameters.items())
    arch = allowed.arch(params)
    assert arch == arch.canonical()
    assert allowed.contains(arch)
    assert allowed.contains(replace(arch, first_block=allowed.skeleton.first_block, shortcut=allowed.skeleton.shortcut))
    assert allowed.arch(allowed.params_of(arch)) == arch


@given(spaces(), st.integers(0, 99))
def test_a_network_of_other_integers_is_no_member(allowed: Space, seed: int) -> None:
    arch = allowed.arch(drawn(allowed, seed))
    last = arch.stages[-1]
    for change in (
        {"scale": 9},
        {"depth": 17},
        {"planes": last.planes + 1},
        {"stride": last.stride + 1},
        {"width": last.width * 100},
    ):
        assert not allowed.contains(replace(arch, stages=(*arch.stages[:-1], replace(last, **change))))
    assert not allowed.contains(replace(arch, num_classes=7))
    assert not allowed.contains(replace(arch, se=3))
    assert not allowed.contains(replace(arch, in_channels=1))
    assert not allowed.contains(replace(arch, stages=(*arch.stages, last)))


@settings(max_examples=50)
@given(spaces(most=2))
def test_contains_is_exact(allowed: Space) -> None:
    """Compare `contains` with the list of all members, for members with one field changed."""
    if allowed.size > 1000:
        return
    members = {allowed.arch(p) for p in allowed.all_params()}
    for arch in itertools.islice(members, 10):
        for change in ({"depth": 1}, {"scale": 2}, {"width": 32, "cardinality": 4}, {"cardinality": 1}):
            stages = tuple(replace(s, **change) for s in arch.stages)
            for se in {arch.se, 0, 16}:
                other = allowed.skeleton.arch(stages, se=se)
                assert allowed.contains(other) == (other in members)


@given(spaces())
def test_json_and_pickle_round_trips(allowed: Space) -> None:
    again = Space.from_dict(json.loads(json.dumps(allowed.to_dict())))
    assert again == allowed
    assert hash(again) == hash(allowed)
    assert again.parameters == allowed.parameters
    assert pickle.loads(pickle.dumps(allowed)) == allowed
    unordered = json.loads(json.dumps(allowed.to_dict(), sort_keys=True))
    assert list(Space.from_dict(unordered).parameters) == list(allowed.parameters)


@given(spaces(), st.integers(0, 99))
def test_a_dimension_of_the_whole_network_is_one_parameter(allowed: Space, seed: int) -> None:
    """This also holds in per-stage spaces."""
    arch = allowed.arch(drawn(allowed, seed))
    assert [name for name in allowed.parameters if name.startswith("se")] == ["se"] * ("se" in allowed.choices)
    assert arch.se in allowed.choices.get("se", (allowed.skeleton.se,))


@given(spaces())
def test_the_envelope_contains_every_member(allowed: Space) -> None:
    """Check each dimension. The least reduction, apart from 0, has the most hidden channels."""
    envelope = allowed.envelope()
    for params in itertools.islice(allowed.all_params(), 30):
        arch = allowed.arch(params)
        assert arch.se == 0 or 0 < envelope.se <= arch.se
        for stage, most in zip(arch.stages, envelope.stages, strict=True):
            assert (stage.planes, stage.stride, most.cardinality) == (most.planes, most.stride, 1)
            assert stage.depth <= most.depth
            assert stage.width <= most.width
            assert stage.scale <= most.scale


@given(spaces(per_stage=False))
def test_size_is_the_number_of_combinations(allowed: Space) -> None:
    every = [tuple(p.items()) for p in allowed.all_params()]
    assert len(every) == len(set(every)) == allowed.size


def test_combinations_are_lazy() -> None:
    huge = space.get("scale_card_depth_width", "imagenet", per_stage=True)
    assert huge.size > 10**9
    assert len(list(itertools.islice(huge.all_params(), 10))) == 10


@settings(max_examples=60)
@given(spaces(most=2), st.sampled_from(("macs", "params", "activations")))
def test_extremes_equal_brute_force(allowed: Space, cost_field: str) -> None:
    if allowed.size > 300:
        return
    every = [getattr(cost(allowed.arch(p), allowed.image_size), cost_field) for p in allowed.all_params()]
    for found, expected in ((allowed.cheapest, min(every)), (allowed.dearest, max(every))):
        params, price = found(cost_field)
        assert getattr(price, cost_field) == expected
        assert cost(allowed.arch(params), allowed.image_size) == price


def test_extremes_of_a_large_per_stage_space_bound_its_samples() -> None:
    allowed = space.get("scale_card_depth_width", "micro", per_stage=True)
    least, most = allowed.cheapest()[1].macs, allowed.dearest()[1].macs
    rng = random.Random(0)
    costs = [cost(allowed.arch(allowed.sample(rng)), 32).macs for _ in range(500)]
    assert least <= min(costs) <= max(costs) <= most
    assert cost(allowed.largest(), 32).macs == most


@given(spaces(), st.integers(0, 99), st.integers(2, 400))
def test_the_solved_width_is_the_nearest(allowed: Space, seed: int, aim: int) -> None:
    """Compare with every width up to one that is too wide. The target is 3 % above the MACs of some width."""
    params = drawn(allowed, seed)
    size = allowed.image_size

    def at(width: int) -> int:
        return cost(allowed._grid.build(params | dict.fromkeys(allowed._grid.names_of("width"), width)), size).macs

    target = round(at(aim) * 1.03)
    every = [at(1)]
    while every[-1] <= target and len(every) < MAX_WIDTH:
        every.append(at(len(every) + 1))
    assert every == sorted(every)
    best = min(abs(m - target) for m in every)
    try:
        got = cost(allowed.at_macs(params, target), size).macs
    except UserError:
        assert best > target / 10
    else:
        assert abs(got - target) == best <= target / 10


@given(spaces(), st.integers(0, 99))
def test_solved_macs_grow_with_the_target(allowed: Space, seed: int) -> None:
    params = drawn(allowed, seed)
    here = cost(allowed.arch(params), allowed.image_size).macs
    solved = []
    for target in (here, here * 5 // 4, here * 3 // 2, here * 2, here * 4):
        try:
            solved.append(cost(allowed.at_macs(params, target), allowed.image_size).macs)
        except UserError:
            continue
    assert solved == sorted(solved)


@pytest.mark.parametrize(("scale", "name"), [(2, "48w_2s"), (4, "26w_4s"), (8, "14w_8s")])
def test_the_paper_s_widths_at_equal_complexity(scale: int, name: str) -> None:
    assert space.get("scale", "imagenet").at_macs({"scale": scale}, 4_200_000_000) == named(f"res2net50_{name}")


def test_parameters_of_the_width_are_ignored_when_macs_are_matched() -> None:
    allowed = space.get("scale_card_depth_width", "imagenet", per_stage=True)
    params = drawn(allowed, 0)
    shapes = {k: v for k, v in params.items() if not k.startswith("width")}
    assert allowed.at_macs(params, 4_200_000_000) == allowed.at_macs(shapes, 4_200_000_000)


def test_macs_that_no_width_meets_are_an_error() -> None:
    with pytest.raises(UserError, match=r"`match_macs`: 1,000 MACs cannot be met with scale=8; the nearest has"):
        space.get("scale", "micro").at_macs({"scale": 8}, 1000)


def test_the_solved_width_has_a_bound() -> None:
    allowed = space.get("scale", "micro")
    (narrow, least), (wide, most) = allowed.match_range()
    for params, price in ((narrow, least), (wide, most)):
        assert cost(allowed.at_macs(params, price.macs), 32) == price
    with pytest.raises(UserError, match=f"cannot be met with scale=8; the nearest has {most.macs:,}$"):
        allowed.at_macs({"scale": 8}, 10**15)


def test_a_width_is_repaired_to_the_cardinality() -> None:
    frame = Skeleton(planes=(64, 128), strides=(1, 2), pattern=(1, 1), width=26, depth=1)
    allowed = Space("s", "none", frame, {"cardinality": (1, 4, 8, 26), "width": (3, 26)})
    widths = {
        (p["cardinality"], p["width"]): tuple(s.width for s in allowed.arch(p).stages) for p in allowed.all_params()
    }
    assert widths[1, 26] == (26, 52)
    assert widths[4, 26] == (24, 52)
    assert widths[8, 26] == (24, 48)
    assert widths[8, 3] == (8, 8)
    assert widths[26, 26] == (26, 52)


@given(spaces())
def test_no_member_is_wider_than_the_widest_choice(allowed: Space) -> None:
    widest = max(allowed.choices.get("width", (allowed.skeleton.width,)))
    for params in itertools.islice(allowed.all_params(), 20):
        assert all(s.width <= s.planes * widest // 64 for s in allowed.arch(params).stages)


def test_equal_networks_are_one_value() -> None:
    """Two widths are repaired to one, and `first_block` has no effect at scale 1."""
    frame = Skeleton((64,), (1,), (1,), width=16, depth=1, cardinality=8, first_block="conv", shortcut="avgpool")
    allowed = Space("s", "none", frame, {"scale": (1, 2), "width": (16, 17)})
    arch = [allowed.arch({"scale": 1, "width": w}) for w in (16, 17)]
    assert arch[0] == arch[1] == Arch((Stage(1, 64, 16, 8, 1),), stem="cifar", num_classes=10)
    assert arch[0].key() == arch[1].key()
    assert allowed.arch({"scale": 2, "width": 16}).first_block == "conv"


def test_depth_keeps_the_pattern_s_ratio_and_per_stage_counts_blocks() -> None:
    uniform = space.get("scale_depth", "imagenet")
    depths = {d: tuple(s.depth for s in uniform.arch({"scale": 1, "depth": d}).stages) for d in (2, 3, 4)}
    assert depths == {2: (2, 3, 4, 2), 3: (3, 4, 6, 3), 4: (4, 5, 8, 4)}
    each = space.get("scale_depth", "imagenet", per_stage=True)
    assert [each.parameters[f"depth_{i}"] for i in range(1, 5)] == [(2, 3, 4), (3, 4, 5), (4, 6, 8), (2, 3, 4)]
    params = {f"scale_{i}": 1 for i in range(1, 5)} | {f"depth_{i}": d for i, d in enumerate((2, 5, 8, 3), 1)}
    assert [s.depth for s in each.arch(params).stages] == [2, 5, 8, 3]


@pytest.mark.parametrize("rng", [random.Random, np.random.default_rng])
def test_samples_are_uniform_seeded_and_plain(rng: type) -> None:
    allowed = space.get("scale_card", "micro")
    first, second = rng(3), rng(3)
    many = [allowed.sample(first) for _ in range(2000)]
    assert many[:50] == [allowed.sample(second) for _ in range(50)]
    assert {type(v) for p in many for v in p.values()} == {int}
    counts = {v: sum(p["scale"] == v for p in many) for v in allowed.parameters["scale"]}
    assert min(counts.values()) > 0.8 * 2000 / len(counts)


def test_parameters_may_be_numpy_s_or_a_table_s() -> None:
    allowed = space.get("scale_card", "micro")
    arch = allowed.arch({"scale": 4, "cardinality": 2})
    assert allowed.arch({"scale": np.int64(4), "cardinality": 2.0}) == arch
    assert arch.from_json(arch.to_json()) == arch


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "key 'scale' is missing; required: scale, cardinality"),
        ({"scale": 4}, "key 'cardinality' is missing"),
        ({"scale": 5, "cardinality": 1}, "scale is 5; accepted: 1, 2, 4, 6, 8"),
        ({"scale": "4", "cardinality": 1}, "scale is '4'; accepted"),
        ({"scale": [4], "cardinality": 1}, r"scale is \[4\]; accepted"),
        ({"scale": 4, "cardinalty": 1}, "unknown value 'cardinalty'; did you mean 'cardinality'"),
        ({"scale": 4, "cardinality": 1, "width": 48}, "key: unknown value 'width'"),
    ],
)
def test_wrong_parameters_are_an_error(params: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space.get("scale_card").arch(params)


def test_a_member_that_no_machine_could_build_is_an_error() -> None:
    """For spaces made in Python and from JSON, too. `match_range` still tries wider members than can be built."""
    largest = replace(space.get("scale_card_depth_width", "imagenet"), choices={"scale": (8,), "width": (256,)})
    assert largest.match_range()[1][1].params > 2**31
    with pytest.raises(UserError, match="choices: width 2048 gives a network of too many parameters"):
        replace(largest, choices={"scale": (8,), "width": (2048,)})
    data = space.get("scale", per_stage=True).to_dict()
    with pytest.raises(UserError, match=r"^choices: scale 99999999999 gives a network of too many convolutions"):
        Space.from_dict(data | {"choices": {"scale": [2, 99999999999]}})


def test_an_unknown_cost_is_an_error() -> None:
    with pytest.raises(UserError, match="`cost_field`: unknown value 'mac'; did you mean 'macs'"):
        space.get("scale").cheapest("mac")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": None}, "choices: None is not a table"),
        ({"choice": [1]}, "did you mean 'choices'"),
        ({"skeleton": {}}, "key 'planes' is missing"),
        ({"per_stage": 1}, "per_stage is 1; accepted: true or false"),
        ({"name": ""}, "name is ''"),
    ],
)
def test_a_wrong_dictionary_is_an_error(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Space.from_dict(space.get("scale").to_dict() | change)
