"""Big-Little Net: the published network, its keys, and what its two branches compute."""

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

from res2net import BigLittle, BigLittleArch, Stage, UserError, cost, create, load, named, save
from res2net.arch import BaseArch
from res2net.kinds import from_dict, from_json

SMALL = BigLittleArch((Stage(3, 4, 4, 2, 2, 2), Stage(9, 4, 6, 1, 3, 1), Stage(2, 3, 2, 1, 3, 2)), 2, 4, 4, 5)


def on_meta(arch: BaseArch | str, **options: Any) -> BigLittle:
    with torch.device("meta"):
        return create(arch, **options).eval()


# ---- The published network -----------------------------------------------------------------------------------------


def test_size_and_complexity_of_blresnet50_are_the_published_ones() -> None:
    """26.69 M parameters; 2.85 GFLOPs, which is what its convolutions come to, without the classifier."""
    found = cost(named("blresnet50"))
    assert found.params == 26_694_568
    assert found.macs == 2_856_058_880
    assert f"{(found.macs - 2048 * 1000) / 1e9:.2f}" == "2.85"


@pytest.mark.parametrize(
    ("depths", "params", "gmacs"), [((4, 8, 18, 3), "41.85", "3.89"), ((5, 12, 30, 3), "57.36", "5.04")]
)
def test_deeper_ones_have_their_published_sizes_too(depths: tuple[int, ...], params: str, gmacs: str) -> None:
    shape = zip(depths, (64, 128, 256, 512), (2, 2, 1, 2), strict=True)
    found = cost(BigLittleArch(tuple(Stage(depth, planes, planes, stride=stride) for depth, planes, stride in shape)))
    assert (f"{found.params / 1e6:.2f}", f"{(found.macs - 2048 * 1000) / 1e9:.2f}") == (params, gmacs)


def test_the_paper_s_block_keeps_the_complexity() -> None:
    plain, ours = cost(named("blresnet50")), cost(named("blres2net50"))
    assert abs(ours.macs / plain.macs - 1) < 0.05
    assert abs(ours.params / plain.params - 1) < 0.01


def test_keys_are_those_of_the_release() -> None:
    keys = {key for key in on_meta("blresnet50").state_dict() if key.endswith("weight")}
    stem = ("conv1", "bn1", "b_conv0", "bn_b0", "l_conv0", "bn_l0", "l_conv1", "bn_l1", "l_conv2", "bn_l2")
    expected = {f"{name}.weight" for name in (*stem, "bl_init", "bn_bl_init", "fc")}
    parts = [f"{part}{n}" for n in (1, 2, 3) for part in ("conv", "bn")]
    blocks = [f"layer4.{i}" for i in range(3)]
    for i, depth in enumerate((3, 4, 6), 1):
        blocks += [f"layer{i}.{run}" for run in ("little.0", "fusion.0", *(f"big.{j}" for j in range(depth - 1)))]
        expected |= {f"layer{i}.{name}.weight" for name in ("little_e.0", "little_e.1")}
        expected |= {f"layer{i}.big.0.downsample.{n}.weight" for n in (1, 2)}  # after a pool
    expected |= {f"layer1.little.0.downsample.{n}.weight" for n in (0, 1)}  # the others' channels stay the same
    expected |= {f"layer4.0.downsample.{n}.weight" for n in (1, 2)}
    assert keys == expected | {f"{block}.{part}.weight" for block in blocks for part in parts}


def test_maps_have_strides_4_to_32() -> None:
    model = on_meta("blres2net50")
    maps = model.forward_features(torch.empty(1, 3, 96, 64, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 24, 16), (512, 12, 8), (1024, 6, 4), (2048, 3, 2)]
    assert model.feature_info.channels() == [256, 512, 1024, 2048]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.num_features == 2048


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [(0, 1, 2, 3), (0, 2), (1,), (-1,)])
def test_as_a_backbone(wanted: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    whole, x = create("blres2net50").eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_features(x)
    torch.manual_seed(0)
    model = create("blres2net50", features_only=True, out_indices=wanted).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), [expected[i] for i in wanted])
    assert model.strides == tuple((4, 8, 16, 32)[i] for i in wanted)
    assert not [key for key in model.state_dict() if ".fc." in key]


def test_strides_are_not_traded_for_dilation() -> None:
    with pytest.raises(UserError, match="`output_stride`: 8; accepted: 32"):
        on_meta("blresnet50", output_stride=8)


# ---- The oracle: written out from paper and keys, sharing no code with the module ------------------------------------


class Oracle:
    """The maps of a state dict in eval mode."""

    def __init__(self, arch: BigLittleArch, state: dict[str, Tensor]) -> None:
        self.arch, self.state = arch, state

    def conv_bn(self, conv: str, bn: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.state[f"{conv}.weight"]
        y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        return F.batch_norm(y, *(self.state[f"{bn}.{v}"] for v in ("running_mean", "running_var", "weight", "bias")))

    def block(self, at: str, s: Stage, x: Tensor, stride: int) -> Tensor:
        """Without the last ReLU."""
        y = self.conv_bn(f"{at}.conv1", f"{at}.bn1", x).relu()
        changes = stride > 1 or x.shape[1] != 4 * s.planes
        if s.scale == 1:
            y = self.conv_bn(f"{at}.conv2", f"{at}.bn2", y, stride, s.cardinality).relu()
        else:
            width = y.shape[1] // s.scale
            splits, outs = y.split(width, 1), []
            for i in range(s.scale - 1):
                read = splits[i] if changes or i == 0 else splits[i] + outs[-1]
                outs.append(self.conv_bn(f"{at}.convs.{i}", f"{at}.bns.{i}", read, stride, s.cardinality).relu())
            y = torch.cat([*outs, F.avg_pool2d(splits[-1], 3, stride, 1) if changes else splits[-1]], 1)
        shortcut = F.avg_pool2d(x, 3, stride, 1) if stride > 1 else x
        if x.shape[1] != 4 * s.planes:
            n = int(stride > 1)
            shortcut = self.conv_bn(f"{at}.downsample.{n}", f"{at}.downsample.{n + 1}", shortcut)
        return self.conv_bn(f"{at}.conv3", f"{at}.bn3", y) + shortcut

    def run(self, at: str, s: Stage, depth: int, x: Tensor, stride: int) -> Tensor:
        for j in range(depth):
            x = self.block(f"{at}.{j}", s, x.relu() if j else x, stride if j == 0 else 1)
        return x

    def stem(self, x: Tensor) -> Tensor:
        x = self.conv_bn("conv1", "bn1", x, 2).relu()
        little = self.conv_bn("l_conv1", "bn_l1", self.conv_bn("l_conv0", "bn_l0", x).relu(), 2).relu()
        x = self.conv_bn("b_conv0", "bn_b0", x, 2) + self.conv_bn("l_conv2", "bn_l2", little)
        return self.conv_bn("bl_init", "bn_bl_init", x.relu()).relu()

    def maps(self, x: Tensor) -> list[Tensor]:
        x, found, alpha = self.stem(x), [], self.arch.alpha
        for i, s in enumerate(self.arch.stages[:-1], 1):
            thin = Stage(1, s.planes // alpha, s.width // alpha, s.cardinality, s.scale)
            depth = max(1, s.depth // self.arch.beta - 1)
            big = self.run(f"layer{i}.big", s, s.depth - 1, x, 2)
            little = self.run(f"layer{i}.little", thin, depth, x, 1).relu()
            little = self.conv_bn(f"layer{i}.little_e.0", f"layer{i}.little_e.1", little)
            merged = (F.interpolate(big, little.shape[2:], mode="bilinear") + little).relu()
            x = self.block(f"layer{i}.fusion.0", s, merged, s.stride).relu()
            found.append(x if s.stride == 1 else merged)
        last = self.arch.stages[-1]
        return [*found, self.run(f"layer{len(self.arch.stages)}", last, last.depth, x, last.stride).relu()]


@pytest.mark.slow
@given(arch=st.from_type(BigLittleArch), height=st.integers(1, 40), width=st.integers(1, 40))
@example(arch=SMALL, height=32, width=33)
def test_the_branches_are_the_paper_s(arch: BigLittleArch, height: int, width: int) -> None:
    torch.manual_seed(0)
    model = randomised(create(arch))
    x = torch.randn(2, arch.in_channels, height, width, dtype=torch.float64)
    with torch.no_grad():
        found, expected = model.forward_features(x), Oracle(arch, model.state_dict()).maps(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model(x), model.fc(expected[-1].mean((2, 3))))


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = create(SMALL).train()
    F.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8) % 5).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# ---- The value -----------------------------------------------------------------------------------------------------


@given(arch=st.from_type(BigLittleArch))
def test_json_round_trip(arch: BigLittleArch) -> None:
    assert arch.to_dict()["kind"] == "biglittle"
    assert from_json(arch.to_json()) == BigLittleArch.from_json(arch.to_json()) == arch
    assert hash(from_dict(arch.to_dict())) == hash(arch)


def test_betas_that_give_the_same_blocks_are_one_network() -> None:
    stages = (Stage(6, 4, 4, stride=2), Stage(1, 4, 4))
    keys = {beta: BigLittleArch(stages, beta=beta).key() for beta in (1, 2, 3, 4, 5)}
    assert keys[3] == keys[4] == keys[5]
    assert len(set(keys.values())) == 3


STAGE = {"depth": 3, "planes": 4, "width": 4}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": [STAGE | {"depth": 1}, STAGE]}, "stage 1: depth is 1; accepted: 2 or more"),
        ({"stages": [STAGE | {"planes": 3}, STAGE]}, "stage 1: planes 3 is not divisible by alpha 2"),
        ({"stages": [STAGE | {"width": 3}, STAGE]}, "stage 1: width 3 is not divisible by alpha 2"),
        ({"stages": [STAGE | {"cardinality": 4}, STAGE]}, "width 2 is not divisible by cardinality 4"),
        ({"stages": [STAGE], "stem_channels": 5}, "stem_channels 5 is not divisible by alpha 2"),
        ({"stages": [STAGE], "alpha": 0}, "alpha is 0; accepted: a whole number of at least 1"),
        ({"stages": []}, "accepted: one or more stages"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        from_json(json.dumps({"kind": "biglittle"} | changes))
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_folder_keeps_it(tmp_path: Path) -> None:
    model, x = create(SMALL).eval(), torch.randn(2, 3, 32, 32)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, BigLittle)
    assert loaded.arch == SMALL
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
