"""The named networks are the published ones: sizes, complexity, state-dict keys."""

import pytest
import torch

from res2net import UserError, cost, create, named, names

# Of the authors' released definitions, 1000 classes, 224 x 224: parameters and GMACs.
RELEASED = {
    "resnet50": (25_557_032, "4.0892"),
    "res2net50_48w_2s": (25_287_304, "4.1598"),
    "res2net50_26w_4s": (25_699_120, "4.2552"),
    "res2net50_14w_8s": (25_059_816, "4.1789"),
    "res2net50_26w_6s": (37_051_448, "6.2955"),
    "res2net50_26w_8s": (48_403_776, "8.3359"),
    "res2net101_26w_4s": (45_206_688, "8.0670"),
    "resnext50_32x4d": (25_028_904, "4.2305"),
    "res2next50": (24_671_464, "4.1727"),
    "res2net50_v1b": (25_718_352, "4.4948"),
    "res2net101_v1b": (45_225_920, "8.3066"),
}
# The paper's Table 4, in millions of parameters: with the 10 classes that its sizes are of, and with 100.
TABLE_4 = {
    "resnext29_8c64w": ("34.43", "34.52"),
    "resnext29_16c64w": ("68.16", "68.25"),
    "res2next29_6c24w_4s": ("24.27", "24.36"),
    "res2next29_8c25w_4s": ("33.81", "33.91"),
    "res2next29_6c24w_6s": ("36.71", "36.80"),
}
ALIASES = {
    "res2net50_l": "res2net50_18w_4s",
    "res2net50d": "res2net50_v1b",
    "res2net101d": "res2net101_v1b",
    "res2net50_v1b_26w_4s": "res2net50_v1b",
    "res2net101_v1b_26w_4s": "res2net101_v1b",
    "res2next50_4s": "res2next50",
}


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in create(name).state_dict().items()}


def with_classes(name: str, classes: int) -> str:
    """Parameters in millions, as the paper prints them."""
    with torch.device("meta"):
        return f"{sum(p.numel() for p in create(name, num_classes=classes).parameters()) / 1e6:.2f}"


@pytest.mark.parametrize("name", RELEASED)
def test_sizes_and_complexity_of_released_networks(name: str) -> None:
    params, gmacs = RELEASED[name]
    found = cost(named(name))
    assert found.params == params
    assert f"{found.macs / 1e9:.4f}" == gmacs
    with torch.device("meta"):
        assert sum(p.numel() for p in create(name).parameters()) == params


def test_complexity_of_res2net_50_l_is_the_paper_s() -> None:
    assert f"{cost(named('res2net50_l')).macs / 1e9:.1f}" == "2.9"


@pytest.mark.parametrize("name", TABLE_4)
def test_sizes_of_table_4(name: str) -> None:
    assert (with_classes(name, 10), with_classes(name, 100)) == TABLE_4[name]
    assert named(name).num_classes == 100


def test_cifar_networks_have_29_layers() -> None:
    """ResNeXt's count: the stem, three convolutions for each of nine blocks, the classifier."""
    for name in TABLE_4:
        assert 2 + 3 * sum(stage.depth for stage in named(name).stages) == 29


def test_every_name_is_one_network() -> None:
    keys = [named(name).key() for name in names()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases(alias: str) -> None:
    assert named(alias) == named(ALIASES[alias])
    assert alias not in names()


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("res2net50_26w4s", "res2net50_26w_4s"), ("ResNet50", "resnet50"), ("res2net101_v1", "res2net101_v1b")],
)
def test_unknown_name_gives_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        named(wrong)
    message = str(caught.value)
    assert f"{wrong!r}" in message
    assert f"did you mean {nearest!r}" in message
    assert "\n" not in message


def test_a_name_like_no_other_gives_the_list() -> None:
    with pytest.raises(UserError) as caught:
        named("?")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in names())


# ---- State-dict keys of released checkpoints, written down from them -----------------------------------------------


def bn_keys(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{v}": (channels,) for v in vectors} | {f"{name}.num_batches_tracked": ()}


def conv_keys(conv: str, bn: str, c_in: int, c_out: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{conv}.weight": (c_out, c_in, kernel, kernel)} | bn_keys(bn, c_out)


def head_keys(classes: int = 1000) -> dict[str, tuple[int, ...]]:
    return {"fc.weight": (classes, 2048), "fc.bias": (classes,)}


PLAIN_STEM = conv_keys("conv1", "bn1", 3, 64, 7)
DEEP_STEM = (
    conv_keys("conv1.0", "conv1.1", 3, 32, 3)
    | conv_keys("conv1.3", "conv1.4", 32, 32, 3)
    | conv_keys("conv1.6", "bn1", 32, 64, 3)
)
# c_in and channels of a split (base width 26) and c_out of layer1..4 of a 50-layer Res2Net.
RES2NET_50 = [(3, 64, 26, 256), (4, 256, 52, 512), (6, 512, 104, 1024), (3, 1024, 208, 2048)]
RESNET_50 = [(3, 64, 64, 256), (4, 256, 128, 512), (6, 512, 256, 1024), (3, 1024, 512, 2048)]


def res2net_keys(projection: tuple[str, str]) -> dict[str, tuple[int, ...]]:
    keys = {}
    for layer, (depth, c_in, width, c_out) in enumerate(RES2NET_50, 1):
        for n in range(depth):
            at = f"layer{layer}.{n}"
            keys |= conv_keys(f"{at}.conv1", f"{at}.bn1", c_out if n else c_in, 4 * width, 1)
            for i in range(3):
                keys |= conv_keys(f"{at}.convs.{i}", f"{at}.bns.{i}", width, width, 3)
            keys |= conv_keys(f"{at}.conv3", f"{at}.bn3", 4 * width, c_out, 1)
        conv, bn = (f"layer{layer}.0.downsample.{part}" for part in projection)
        keys |= conv_keys(conv, bn, c_in, c_out, 1)
    return keys


def resnet_keys(groups: int = 1, inner: int = 1) -> dict[str, tuple[int, ...]]:
    keys = {}
    for layer, (depth, c_in, planes, c_out) in enumerate(RESNET_50, 1):
        width = planes * inner
        for n in range(depth):
            at = f"layer{layer}.{n}"
            keys |= conv_keys(f"{at}.conv1", f"{at}.bn1", c_out if n else c_in, width, 1)
            keys |= conv_keys(f"{at}.conv2", f"{at}.bn2", width // groups, width, 3)
            keys |= conv_keys(f"{at}.conv3", f"{at}.bn3", width, c_out, 1)
        keys |= conv_keys(f"layer{layer}.0.downsample.0", f"layer{layer}.0.downsample.1", c_in, c_out, 1)
    return keys


def test_keys_of_res2net() -> None:
    assert shapes("res2net50_26w_4s") == PLAIN_STEM | res2net_keys(("0", "1")) | head_keys()


def test_keys_of_v1b() -> None:
    """A deep stem, and a pooling layer before the projection's convolution."""
    assert shapes("res2net50_v1b") == DEEP_STEM | res2net_keys(("1", "2")) | head_keys()


def test_keys_of_resnet_are_torchvision_s() -> None:
    assert shapes("resnet50") == PLAIN_STEM | resnet_keys() | head_keys()


def test_keys_of_resnext_are_torchvision_s() -> None:
    assert shapes("resnext50_32x4d") == PLAIN_STEM | resnet_keys(groups=32, inner=2) | head_keys()


def test_keys_of_squeeze_and_excitation_are_timm_s() -> None:
    found = {key: shape for key, shape in shapes("seresnet50").items() if key.startswith("layer4.2.se.")}
    assert found == {
        "layer4.2.se.fc1.weight": (128, 2048, 1, 1),
        "layer4.2.se.fc1.bias": (128,),
        "layer4.2.se.fc2.weight": (2048, 128, 1, 1),
        "layer4.2.se.fc2.bias": (2048,),
    }
