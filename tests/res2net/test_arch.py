"""`Arch` is a value: validated, hashable, written as JSON, with one key for one network."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from res2net import Arch, Stage, UserError, create, named
from res2net.arch import se_channels

PLAIN = {"depth": 1, "planes": 4, "width": 6}
ONE = Arch((Stage(**PLAIN),))


def refused(*words: str, **data: Any) -> None:
    """`Arch.from_dict(data)` ends in a `UserError` of one line that holds `words`."""
    refused_text(json.dumps(data), *words)


def refused_text(text: str, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        Arch.from_json(text)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# ---- A value -------------------------------------------------------------------------------------------------------


@given(arch=st.from_type(Arch))
def test_json_round_trip(arch: Arch) -> None:
    assert Arch.from_json(arch.to_json()) == arch
    assert Arch.from_dict(arch.to_dict()) == arch
    assert json.loads(arch.to_json()) == arch.to_dict()


@given(arch=st.from_type(Arch))
def test_equal_values_hash_alike(arch: Arch) -> None:
    twin = Arch.from_dict(arch.to_dict())
    assert len({arch, twin}) == 1


@given(arch=st.from_type(Arch))
def test_a_list_of_stages_becomes_a_tuple(arch: Arch) -> None:
    assert dataclasses.replace(arch, stages=list(arch.stages)) == arch


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ONE.se = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        ONE.stages[0].width = 4  # type: ignore[misc]


def test_keys_that_have_defaults_may_be_left_out() -> None:
    assert Arch.from_dict({"stages": [PLAIN]}) == ONE


@given(arch=st.from_type(Arch))
def test_dictionary_is_not_shared(arch: Arch) -> None:
    arch.to_dict()["stages"][0]["depth"] = 99
    assert arch.stages[0].depth != 99


# ---- The key -------------------------------------------------------------------------------------------------------


@st.composite
def shallow(draw: st.DrawFn) -> Arch:
    """One or two stages that leave maps larger than 1x1 of a 9x9 image, where no two strides do the same."""
    stages = draw(st.lists(st.from_type(Stage), min_size=1, max_size=2))
    stages = tuple(dataclasses.replace(s, stride=min(s.stride, 2)) for s in stages)
    return dataclasses.replace(draw(st.from_type(Arch)), stages=stages, se=draw(st.sampled_from((0, 4))))


def same_function(one: Arch, other: Arch) -> bool:
    """Whether the networks have weights of the same shapes, whatever their names, and give the same logits."""
    networks = []
    for arch in (one, other):
        torch.manual_seed(0)
        networks.append(create(arch).eval())
    shapes = [[value.shape for value in n.state_dict().values()] for n in networks]
    if shapes[0] != shapes[1]:
        return False
    x = torch.randn(2, one.in_channels, 9, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.equal(networks[0](x), networks[1](x))


FIELDS = {
    "first_block": ("pool", "conv"),
    "shortcut": ("conv", "avgpool"),
    "se": (0, 4),
    "stem": ("cifar", "strided"),
    "num_classes": (1, 2),
}


@given(arch=shallow(), field=st.sampled_from(sorted(FIELDS)))
@example(arch=dataclasses.replace(ONE, stages=(Stage(1, 2, 4, scale=3), Stage(1, 2, 4))), field="first_block")
@example(arch=dataclasses.replace(ONE, stages=(Stage(1, 2, 4), Stage(1, 2, 4, stride=2))), field="shortcut")
def test_keys_are_equal_exactly_where_the_functions_are(arch: Arch, field: str) -> None:
    arch = dataclasses.replace(arch, stem="cifar", stem_channels=4)
    one, other = (dataclasses.replace(arch, **{field: value}) for value in FIELDS[field])
    assert (one.key() == other.key()) == same_function(one, other)


@given(one=st.from_type(Stage), other=st.from_type(Stage))
def test_networks_of_different_stages_have_different_keys(one: Stage, other: Stage) -> None:
    assume(one != other)
    assert Arch((one,)).key() != Arch((other,)).key()
    assert Arch((one, other)).key() != Arch((other, one)).key()


def test_reductions_that_round_to_the_same_channels_are_one_network() -> None:
    one, other = (dataclasses.replace(ONE, stem="cifar", se=se) for se in (4, 16))
    assert same_function(one, other)
    assert one.key() == other.key()


@pytest.mark.parametrize(("channels", "hidden"), [(16, 8), (188, 8), (192, 16), (316, 16), (320, 24), (2048, 128)])
def test_hidden_channels_of_squeeze_and_excitation_round_to_eights(channels: int, hidden: int) -> None:
    assert se_channels(channels, 16) == hidden


@given(arch=st.from_type(Arch))
def test_canonical_form_is_a_fixed_point_with_the_same_key(arch: Arch) -> None:
    canonical = arch.canonical()
    assert canonical.canonical() == canonical
    assert canonical.key() == arch.key()


def test_keys_are_those_of_earlier_processes() -> None:
    """Studies on disk hold them: a change here makes all earlier scores unknown."""
    assert named("res2net50_26w_4s").key() == "2af66f8ea0bec206"
    assert named("se_res2next29_6c24w_4s").key() == "5f6ce6bcbfb8c03e"


# ---- Mistakes ------------------------------------------------------------------------------------------------------


def test_unknown_keys_name_the_nearest() -> None:
    refused("stem_chanels", "did you mean 'stem_channels'", stages=[PLAIN], stem_chanels=4)
    refused("stage 2", "'widht'", "did you mean 'width'", stages=[PLAIN, PLAIN | {"widht": 4}])


def test_missing_keys_are_named() -> None:
    refused("'stages'", "missing", stem="cifar")
    for key in PLAIN:
        refused("stage 1", repr(key), "missing", stages=[{k: v for k, v in PLAIN.items() if k != key}])


@pytest.mark.parametrize("wrong", [True, 1.5, 4.0, "4", None, [4], {}, 0, -1, float("nan")])
@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(Stage)])
def test_values_of_a_stage_are_checked(key: str, wrong: object) -> None:
    refused(key, repr(wrong), "at least 1", stages=[PLAIN | {key: wrong}])


@pytest.mark.parametrize("wrong", [True, 1.5, 4.0, "4", None, [4], {}, -1, float("inf")])
@pytest.mark.parametrize("key", ["stem_channels", "se", "num_classes", "in_channels"])
def test_whole_numbers_of_a_network_are_checked(key: str, wrong: object) -> None:
    refused(key, repr(wrong), "at least", stages=[PLAIN], **{key: wrong})


@pytest.mark.parametrize("key", ["stem_channels", "in_channels"])
def test_channels_are_not_none(key: str) -> None:
    refused(key, "is 0", "at least 1", stages=[PLAIN], **{key: 0})


@pytest.mark.parametrize(
    ("key", "wrong", "accepted"),
    [
        ("stem", "imagnet", "did you mean 'imagenet'"),
        ("first_block", "pooled", "did you mean 'pool'"),
        ("shortcut", "avg_pool", "did you mean 'avgpool'"),
        ("stem", 7, "imagenet, deep, cifar"),
        ("stem", None, "imagenet, deep, cifar"),
        ("shortcut", ["conv"], "conv, avgpool"),
        ("stem", "a\nb", "imagenet, deep, cifar"),
    ],
)
def test_choices_are_checked(key: str, wrong: object, accepted: str) -> None:
    refused(key, repr(wrong)[1:-1] if isinstance(wrong, str) else str(wrong), accepted, stages=[PLAIN], **{key: wrong})


def test_groups_must_divide_the_width() -> None:
    refused("width 6", "cardinality 4", "multiple of 4", stages=[PLAIN | {"cardinality": 4}])


def test_a_deep_stem_needs_an_even_number_of_channels() -> None:
    refused("stem_channels 7", "even", stages=[PLAIN], stem="deep", stem_channels=7)


@pytest.mark.parametrize("wrong", [[], {}, 3, None, "stages", [3], [None], [[]], ["x"]])
def test_stages_are_a_list_of_tables(wrong: object) -> None:
    refused("stage", stages=wrong)


@pytest.mark.parametrize("text", ["", "{", "null", "3", '"arch"', "[]", "\ufeff{}", "{'stages': []}", "NaN"])
def test_text_that_is_no_table_is_refused(text: str) -> None:
    refused_text(text, "arch")


def test_text_that_nests_too_deeply_is_refused() -> None:
    refused_text("[" * 200_000, "arch")


@given(data=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_other_json_is_refused(data: object) -> None:
    refused_text(json.dumps(data), "arch")


@given(
    data=st.fixed_dictionaries(
        {"stages": st.lists(st.dictionaries(st.sampled_from([*PLAIN, "scale", "x"]), st.integers() | st.text()))},
        optional={"stem": st.text(), "se": st.integers() | st.floats(), "first_block": st.sampled_from(("pool", 1))},
    )
)
def test_a_table_gives_an_arch_or_a_one_line_error(data: Mapping[str, Any]) -> None:
    try:
        arch = Arch.from_dict(data)
    except UserError as error:
        arch, message = None, str(error)
    if arch is None:
        assert len(message.splitlines()) == 1
    else:
        assert Arch.from_json(arch.to_json()) == arch


@pytest.mark.parametrize("stages", [(), ({"depth": 1},), "ab"])
def test_constructor_wants_stages(stages: Any) -> None:
    with pytest.raises(UserError, match="stages is"):
        Arch(stages)
