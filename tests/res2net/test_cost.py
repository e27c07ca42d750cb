"""The cost, worked out from integers, is what the built network does."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from networks import measure

from res2net import Arch, BigLittleArch, DlaArch, Stage, cost, named


@given(arch=st.from_type(Arch), image_size=st.integers(1, 80))
@example(arch=Arch((Stage(2, 4, 6, 3, 5, 3),), stem="deep", shortcut="avgpool", se=4), image_size=1)
@example(arch=Arch((Stage(1, 1, 1), Stage(1, 1, 1)), stem="cifar", stem_channels=4, num_classes=0), image_size=7)
def test_cost_is_what_the_network_does(arch: Arch, image_size: int) -> None:
    assert cost(arch, image_size) == measure(arch, image_size)


@pytest.mark.slow
@given(arch=st.from_type(DlaArch), image_size=st.integers(1, 80))
@example(arch=DlaArch((Stage(3, 4, 6, 3, 3, 2), Stage(3, 4, 6, 1, 4, 3))), image_size=1)
def test_cost_of_deep_layer_aggregation(arch: DlaArch, image_size: int) -> None:
    assert cost(arch, image_size) == measure(arch, image_size)


@pytest.mark.slow
@given(arch=st.from_type(BigLittleArch), image_size=st.integers(1, 80))
@example(arch=BigLittleArch((Stage(9, 4, 6, 3, 3, 3), Stage(2, 4, 6, 3), Stage(1, 4, 4))), image_size=1)
def test_cost_of_big_little_nets(arch: BigLittleArch, image_size: int) -> None:
    assert cost(arch, image_size) == measure(arch, image_size)


NAMED = [
    "res2net50_26w_4s",
    "resnext50_32x4d",
    "res2net50_v1b",
    "se_res2next29_6c24w_4s",
    "res2next_dla60",
    "blres2net50",
]


@pytest.mark.parametrize("name", NAMED)
def test_cost_of_named_networks(name: str) -> None:
    arch = named(name)
    assert cost(arch, 64) == measure(arch, 64)


@given(arch=st.from_type(Arch), image_size=st.integers(1, 300))
def test_cost_is_whole_numbers(arch: Arch, image_size: int) -> None:
    assert all(type(value) is int and value >= 1 for value in cost(arch, image_size))


@given(arch=st.from_type(Arch), image_size=st.integers(1, 299))
def test_a_larger_image_costs_no_less_and_adds_no_weights(arch: Arch, image_size: int) -> None:
    small, large = cost(arch, image_size), cost(arch, image_size + 1)
    assert small.params == large.params
    assert small.macs <= large.macs
    assert small.activations <= large.activations


def test_default_image_size_is_that_of_imagenet() -> None:
    arch = named("res2net50_26w_4s")
    assert cost(arch) == cost(arch, 224)
