"""Deep layer aggregation: the published networks, their released keys, and what the aggregation computes."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from networks import randomised
from torch import Tensor

from res2net import Arch, Dla, DlaArch, Stage, UserError, cost, create, load, named, save
from res2net.hosts.dla.value import unused_projections
from res2net.kinds import from_dict, from_json

# Of the facts: parameters and GMACs without the projections that are never used, and as released.
PUBLISHED = {
    "dla60": ((22_036_632, "4.2359"), None),
    "dla60x": ((17_352_344, "3.5166"), None),
    "res2net_dla60": ((20_848_072, "4.1227"), (21_145_544, "4.1998")),
    "res2next_dla60": ((17_032_984, "3.4588"), (17_330_456, "3.5358")),
}
SMALL = DlaArch((Stage(1, 2, 3, 1, 3, 2), Stage(3, 3, 4, 2, 2, 2)), 3, 4, num_classes=5)


def on_meta(arch: DlaArch | str, **options: Any) -> Dla:
    with torch.device("meta"):
        return create(arch, **options).eval()


# ---- The published networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_complexity_are_the_published_ones(name: str) -> None:
    plain, released = PUBLISHED[name]
    found, unused = cost(named(name)), unused_projections(named(name))
    assert (found.params, f"{found.macs / 1e9:.4f}") == plain
    assert sum(p.numel() for p in on_meta(name).parameters()) == plain[0]
    assert unused.params == 297_472
    if released:
        assert (found.params + unused.params, f"{(found.macs + unused.macs) / 1e9:.4f}") == released


@pytest.mark.parametrize(("alias", "name"), [("dla60_res2net", "res2net_dla60"), ("dla60_res2next", "res2next_dla60")])
def test_timm_s_names_are_aliases(alias: str, name: str) -> None:
    assert named(alias) == named(name)


def bn_keys(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{v}": (channels,) for v in vectors} | {f"{name}.num_batches_tracked": ()}


def conv_keys(conv: str, bn: str, c_in: int, c_out: int, kernel: int = 1) -> dict[str, tuple[int, ...]]:
    return {f"{conv}.weight": (c_out, c_in, kernel, kernel)} | bn_keys(bn, c_out)


# Where the pairs of blocks of DLA-60 stand, what each reads, what it puts out, and what its root aggregates.
PAIRS = [
    ("level2", 32, 128, 2 * 128),
    ("level3.tree1", 128, 256, 2 * 256),
    ("level3.tree2", 256, 256, 3 * 256 + 128),
    ("level4.tree1.tree1", 256, 512, 2 * 512),
    ("level4.tree1.tree2", 512, 512, 3 * 512),
    ("level4.tree2.tree1", 512, 512, 2 * 512),
    ("level4.tree2.tree2", 512, 512, 4 * 512 + 256),
    ("level5", 512, 1024, 2 * 1024 + 512),
]


def dla60_keys(middle: Any, width: float) -> dict[str, tuple[int, ...]]:
    keys = conv_keys("base_layer.0", "base_layer.1", 3, 16, 7)
    keys |= conv_keys("level0.0", "level0.1", 16, 16, 3) | conv_keys("level1.0", "level1.1", 16, 32, 3)
    for at, c_in, c_out, aggregated in PAIRS:
        inner = int(c_out * width)
        for tree, reads in (("tree1", c_in), ("tree2", c_out)):
            block = f"{at}.{tree}"
            keys |= conv_keys(f"{block}.conv1", f"{block}.bn1", reads, inner) | middle(block, inner)
            keys |= conv_keys(f"{block}.conv3", f"{block}.bn3", inner, c_out)
        keys |= conv_keys(f"{at}.root.conv", f"{at}.root.bn", aggregated, c_out)
        if c_in != c_out:
            keys |= conv_keys(f"{at}.project.0", f"{at}.project.1", c_in, c_out)
    return keys | {"fc.weight": (1000, 1024, 1, 1), "fc.bias": (1000,)}


def plain_middle(groups: int) -> Any:
    return lambda block, inner: (
        conv_keys(f"{block}.conv2", f"{block}.bn2", inner, inner, 3)
        | {f"{block}.conv2.weight": (inner, inner // groups, 3, 3)}
    )


def split_middle(groups: int) -> Any:
    def keys(block: str, inner: int) -> dict[str, tuple[int, ...]]:
        found = {}
        for i in range(3):
            found |= conv_keys(f"{block}.convs.{i}", f"{block}.bns.{i}", inner // 4, inner // 4, 3)
            found |= {f"{block}.convs.{i}.weight": (inner // 4, inner // 4 // groups, 3, 3)}
        return found

    return keys


@pytest.mark.parametrize(
    ("name", "middle", "width"),
    [
        ("dla60", plain_middle(1), 1 / 2),
        ("dla60x", plain_middle(32), 1),
        ("res2net_dla60", split_middle(1), 7 / 8),
        ("res2next_dla60", split_middle(8), 1),
    ],
)
def test_keys_are_timm_s(name: str, middle: Any, width: float) -> None:
    found = {key: tuple(value.shape) for key, value in on_meta(name).state_dict().items()}
    assert found == dla60_keys(middle, width)


def test_keys_that_released_files_have_besides_are_known() -> None:
    model = on_meta("res2net_dla60")
    released = conv_keys("level3.project.0", "level3.project.1", 128, 256)
    released |= conv_keys("level4.project.0", "level4.project.1", 256, 512)
    released |= conv_keys("level4.tree1.project.0", "level4.tree1.project.1", 256, 512)
    assert len(released) == 18
    own = model.state_dict()
    assert not released.keys() & own.keys()
    for keys, is_dropped in ((released, True), (own, False)):
        assert {any(re.fullmatch(p, key) for p in model.unused_keys) for key in keys} == {is_dropped}


# ---- The oracle: written out from paper and keys, pair by pair, sharing no code with the module --------------------


class Oracle:
    """The logits of a state dict in eval mode."""

    def __init__(self, arch: DlaArch, state: dict[str, Tensor]) -> None:
        self.arch, self.state = arch, state

    def conv_bn(self, conv: str, bn: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{conv}.weight"]
        y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        scale, shift, mean, var = (
            self.state[f"{bn}.{v}"].view(1, -1, 1, 1) for v in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / (var + 1e-5).sqrt() * scale + shift

    def block(self, at: str, s: Stage, x: Tensor, shortcut: Tensor, stride: int) -> Tensor:
        y = self.conv_bn(f"{at}.conv1", f"{at}.bn1", x).clamp(min=0)
        if s.scale == 1:
            y = self.conv_bn(f"{at}.conv2", f"{at}.bn2", y, stride, s.cardinality).clamp(min=0)
        else:
            splits, outs = y.split(s.width, 1), []
            for i in range(s.scale - 1):
                read = splits[i] if stride > 1 or i == 0 else splits[i] + outs[-1]
                outs.append(self.conv_bn(f"{at}.convs.{i}", f"{at}.bns.{i}", read, stride, s.cardinality).clamp(min=0))
            y = torch.cat([*outs, F.avg_pool2d(splits[-1], 3, stride, 1) if stride > 1 else splits[-1]], 1)
        return (self.conv_bn(f"{at}.conv3", f"{at}.bn3", y) + shortcut).clamp(min=0)

    def tree(self, level: str, s: Stage, x: Tensor, with_input: bool) -> Tensor:
        """Pair by pair: a root reads its pair, and the halves that end just before a half which ends with the pair."""
        pooled = F.max_pool2d(x, s.stride, s.stride, ceil_mode=True)
        outputs: dict[str, Tensor] = {}
        for n in range(2 ** (s.depth - 1)):
            path = f"{n:b}".zfill(s.depth - 1) if s.depth > 1 else ""
            at = level + "".join(f".tree{int(bit) + 1}" for bit in path)
            shortcut, stride = (pooled, s.stride) if n == 0 else (x, 1)
            if f"{at}.project.0.weight" in self.state:
                shortcut = self.conv_bn(f"{at}.project.0", f"{at}.project.1", shortcut)
            one = self.block(f"{at}.tree1", s, x, shortcut, stride)
            read = [self.block(f"{at}.tree2", s, one, one, 1), one]
            if with_input and "0" not in path:
                read.append(pooled)
            ending = len(path.rstrip("1"))
            read += [outputs[path[:i] + "0"] for i in range(ending, len(path))]
            x = self.conv_bn(f"{at}.root.conv", f"{at}.root.bn", torch.cat(read, 1)).clamp(min=0)
            outputs |= {path[:i]: x for i in range(ending, len(path) + 1)}
        return x

    def maps(self, x: Tensor) -> list[Tensor]:
        for name, stride in (("base_layer", 1), ("level0", 1), ("level1", 2)):
            x = self.conv_bn(f"{name}.0", f"{name}.1", x, stride).clamp(min=0)
        found = []
        for i, stage in enumerate(self.arch.stages):
            x = self.tree(f"level{i + 2}", stage, x, i > 0)
            found.append(x)
        return found


@given(arch=st.from_type(DlaArch), height=st.integers(1, 20), width=st.integers(1, 20))
@example(arch=SMALL, height=16, width=9)
@example(arch=DlaArch((Stage(4, 1, 2, 1, 3, 2), Stage(2, 2, 2, 2, 2, 1)), 2, 4, 3), height=8, width=8)
def test_the_aggregation_is_the_paper_s(arch: DlaArch, height: int, width: int) -> None:
    torch.manual_seed(0)
    model = randomised(create(arch))
    x = torch.randn(2, arch.in_channels, height, width, dtype=torch.float64)
    with torch.no_grad():
        found, expected = model.forward_features(x), Oracle(arch, model.state_dict()).maps(x)
        torch.testing.assert_close(found, expected)
        logits, mean = model(x), expected[-1].mean((2, 3))
    if arch.num_classes:
        mean = F.linear(mean, model.state_dict()["fc.weight"].flatten(1), model.state_dict()["fc.bias"])
    torch.testing.assert_close(logits, mean)


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = create(SMALL).train()
    F.cross_entropy(model(torch.randn(8, 3, 32, 32)), torch.arange(8) % 5).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_maps_have_strides_4_to_32(name: str) -> None:
    model = on_meta(name)
    maps = model.forward_features(torch.empty(1, 3, 96, 64, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [(128, 24, 16), (256, 12, 8), (512, 6, 4), (1024, 3, 2)]
    assert model.feature_info.channels() == [128, 256, 512, 1024]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.num_features == 1024


def test_as_a_backbone() -> None:
    model = on_meta("dla60", features_only=True, out_indices=(0, 2))
    maps = model(torch.empty(1, 3, 64, 64, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [(128, 16, 16), (512, 4, 4)]
    assert not [key for key in model.state_dict() if ".level5." in key or ".fc." in key]


def test_strides_are_not_traded_for_dilation() -> None:
    assert on_meta("dla60", output_stride=32).arch == named("dla60")
    with pytest.raises(UserError, match="`output_stride`: 16; accepted: 32"):
        on_meta("dla60", output_stride=16)


# ---- The value -----------------------------------------------------------------------------------------------------


@given(arch=st.from_type(DlaArch))
def test_json_round_trip(arch: DlaArch) -> None:
    assert arch.to_dict()["kind"] == "dla"
    assert from_json(arch.to_json()) == DlaArch.from_json(arch.to_json()) == arch
    assert hash(from_dict(arch.to_dict())) == hash(arch)


def test_a_network_of_another_kind_has_another_key() -> None:
    stages = (Stage(1, 2, 2),)
    assert DlaArch(stages).key() != Arch(stages).key()
    assert DlaArch(stages).key() != DlaArch(stages, base_channels=8).key()


def test_data_without_a_kind_is_of_the_residual_line() -> None:
    data = {"stages": [{"depth": 1, "planes": 4, "width": 4}]}
    assert from_dict(data) == from_dict(data | {"kind": "residual"}) == Arch((Stage(1, 4, 4),))
    assert "kind" not in Arch((Stage(1, 4, 4),)).to_dict()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "dlaa"}, "did you mean 'dla'"),
        ({"kind": 3}, "accepted: residual, dla, biglittle"),
        ({"kind": ["dla"]}, "accepted: residual, dla, biglittle"),
        ({"kind": "dla"}, "key 'stages' is missing"),
        ({"kind": "dla", "stages": [], "stem": "cifar"}, "key: unknown value 'stem'"),
        ({"kind": "dla", "stages": [{"depth": 9, "planes": 4, "width": 4}]}, "depth of 1 to 8"),
        ({"kind": "dla", "stages": [{"depth": 1, "planes": 4, "width": 4}], "base_channels": 0}, "base_channels is 0"),
    ],
)
def test_mistakes_are_named(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        from_json(json.dumps(data))
    assert len(str(caught.value).splitlines()) == 1


def test_a_kind_is_not_read_as_another() -> None:
    with pytest.raises(UserError, match="kind"):
        Arch.from_dict(SMALL.to_dict())


def test_overrides_are_fields_of_the_value() -> None:
    model = create(SMALL, num_classes=2, in_channels=1)
    assert model.arch == dataclasses.replace(SMALL, num_classes=2, in_channels=1)
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 2)


def test_a_model_folder_keeps_it(tmp_path: Path) -> None:
    model, x = create(SMALL).eval(), torch.randn(2, 3, 16, 16)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, Dla)
    assert loaded.arch == SMALL
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
