"""The named spaces: their members, and the ranges of cost that a search relies on."""

from __future__ import annotations

import subprocess
import sys

import pytest

import space
from res2net.cost import cost
from res2net.errors import UserError
from res2net.named import named
from space import Space

ALL = [(name, base, each) for name in space.names() for base in space.BASES for each in (False, True)]


def test_the_names() -> None:
    assert space.names() == ("scale", "scale_card", "scale_depth", "scale_card_depth", "scale_card_depth_width")
    assert space.BASES == ("micro", "thin", "cifar", "imagenet")
    assert [space.get("scale", b).image_size for b in space.BASES] == [32, 32, 32, 224]
    assert space.get("scale") == space.get("scale", "cifar")


@pytest.mark.parametrize(("name", "base", "each"), ALL)
def test_every_named_space(name: str, base: str, each: bool) -> None:
    allowed = space.get(name, base, each, num_classes=7, image_size=20)
    assert allowed.image_size == 20
    assert (allowed.name, allowed.base, allowed.per_stage) == (name, base, each)
    largest = allowed.largest()
    assert largest.num_classes == 7
    assert allowed.contains(largest)
    assert Space.from_dict(allowed.to_dict()) == allowed
    stages = len(largest.stages)
    assert len(allowed.parameters) == len(allowed.choices) * (stages if each else 1)
    # Members are slices of a supernet, so no member may exceed the largest in any dimension.
    smallest = allowed.arch(allowed.cheapest()[0])
    for a, b in zip(smallest.stages, largest.stages, strict=True):
        assert (a.width, a.scale, a.depth) <= (b.width, b.scale, b.depth)


def test_per_stage_holds_the_uniform_members() -> None:
    for base in space.BASES:
        uniform = space.get("scale_card_depth_width", base)
        each = space.get("scale_card_depth_width", base, per_stage=True)
        assert all(each.contains(uniform.arch(p)) for p in uniform.all_params())


@pytest.mark.parametrize("name", ["resnet50", "res2net50_48w_2s", "res2net50_26w_4s", "res2net50_14w_8s", "res2next50"])
def test_the_paper_s_imagenet_networks_are_members(name: str) -> None:
    assert space.get("scale_card_depth_width", "imagenet").contains(named(name))


@pytest.mark.parametrize("name", ["res2next29_6c24w_4s", "res2next29_6c24w_6s"])
def test_the_paper_s_cifar_networks_are_members(name: str) -> None:
    assert space.get("scale_card_depth_width", "cifar").contains(named(name))
    assert not space.get("scale_card_depth_width", "cifar", num_classes=10).contains(named(name))


def test_the_base_width_of_imagenet_is_the_paper_s() -> None:
    assert space.get("scale", "imagenet").arch({"scale": 4}) == named("res2net50_26w_4s")


def test_micro_spans_what_a_cpu_can_search() -> None:
    """A front needs a wide range of MACs. The figures are MMACs."""
    reach = {}
    for name in space.names():
        allowed = space.get(name, "micro")
        reach[name] = (allowed.cheapest()[1].macs / 1e6, allowed.dearest()[1].macs / 1e6)
    assert all(high > 3 * low for low, high in reach.values())
    assert reach["scale_card_depth"][0] < 0.55
    assert reach["scale_card_depth"][1] > 19
    assert reach["scale_card_depth_width"][0] < 0.4
    assert reach["scale_card_depth_width"][1] > 28


def test_cifar_has_members_below_300_million_macs() -> None:
    allowed = space.get("scale_card_depth", "cifar")
    assert sum(cost(allowed.arch(p), 32).macs <= 300_000_000 for p in allowed.all_params()) >= 8


@pytest.mark.parametrize(
    ("name", "base", "message"),
    [
        ("scal_card", "micro", "`space`: unknown value 'scal_card'; did you mean 'scale_card'"),
        ("zzz", None, "accepted: scale, scale_card, scale_depth, scale_card_depth, scale_card_depth_width, FILE.yaml"),
        ("scale", "cifr", "`base`: unknown value 'cifr'; did you mean 'cifar'. accepted: micro, thin, cifar, imagenet"),
        ("scale", "", "`base`: unknown value ''; accepted: micro, thin, cifar, imagenet"),
    ],
)
def test_unknown_names_are_an_error(name: str, base: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space.get(name, base)


def test_importing_does_nothing_heavy() -> None:
    code = "import sys, space; space.get('scale').largest(); sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
