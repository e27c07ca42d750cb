"""Released weights load: the authors' files, timm's, and those of the hub (a fake one: no test uses the network)."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from res2net import Arch, Stage, create, load_checkpoint
from res2net.errors import UserError
from res2net.hub import HUB

SMALL = Arch((Stage(2, 4, 6, 2, 4, 1), Stage(2, 8, 6, 3, 3, 2)), "cifar", 8, num_classes=5)
Shapes = dict[str, tuple[int, ...]]


# ---- What was released, written out from its definitions -----------------------------------------------------------


def bn(name: str, channels: int) -> Shapes:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def conv_bn(conv: str, norm: str, c_in: int, c_out: int, kernel: int, groups: int = 1) -> Shapes:
    return {f"{conv}.weight": (c_out, c_in // groups, kernel, kernel)} | bn(norm, c_out)


def middle(at: str, width: int, scale: int, groups: int) -> Shapes:
    if scale == 1:
        return conv_bn(f"{at}.conv2", f"{at}.bn2", width, width, 3, groups)
    parts = [conv_bn(f"{at}.convs.{i}", f"{at}.bns.{i}", width, width, 3, groups) for i in range(scale - 1)]
    return {k: v for part in parts for k, v in part.items()}


def block(at: str, c_in: int, c_out: int, width: int, scale: int, groups: int) -> Shapes:
    return {
        **conv_bn(f"{at}.conv1", f"{at}.bn1", c_in, width * scale, 1),
        **middle(at, width, scale, groups),
        **conv_bn(f"{at}.conv3", f"{at}.bn3", width * scale, c_out, 1),
    }


def residual(depths: tuple[int, ...], width: int, scale: int = 1, groups: int = 1, v1b: bool = False) -> Shapes:
    shapes = conv_bn("conv1", "bn1", 3, 64, 7)
    if v1b:
        stem = conv_bn("conv1.0", "conv1.1", 3, 32, 3) | conv_bn("conv1.3", "conv1.4", 32, 32, 3)
        shapes = stem | conv_bn("conv1.6", "bn1", 32, 64, 3)
    c_in = 64
    for i, depth in enumerate(depths):
        c_out, split = 256 * 2**i, 2**i * width * groups
        for j in range(depth):
            shapes |= block(f"layer{i + 1}.{j}", c_in, c_out, split, scale, groups)
            if j == 0:
                at = f"layer{i + 1}.0.downsample"
                shapes |= conv_bn(f"{at}.{int(v1b)}", f"{at}.{int(v1b) + 1}", c_in, c_out, 1)
            c_in = c_out
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def tree(at: str, levels: int, c_in: int, c_out: int, root: int, cells: tuple[int, int, int]) -> Shapes:
    """As the authors have it: every tree projects where channels change, whether that is used or not."""
    shapes = conv_bn(f"{at}.project.0", f"{at}.project.1", c_in, c_out, 1) if c_in != c_out else {}
    if levels > 1:
        shapes |= tree(f"{at}.tree1", levels - 1, c_in, c_out, 2 * c_out, cells)
        return shapes | tree(f"{at}.tree2", levels - 1, c_out, c_out, root + c_out, cells)
    base, scale, groups = cells
    split = c_out * base // 64 * groups // 2
    shapes |= block(f"{at}.tree1", c_in, c_out, split, scale, groups)
    shapes |= block(f"{at}.tree2", c_out, c_out, split, scale, groups)
    return shapes | conv_bn(f"{at}.root.conv", f"{at}.root.bn", root, c_out, 1)


def dla(*cells: int) -> Shapes:
    shapes = conv_bn("base_layer.0", "base_layer.1", 3, 16, 7) | conv_bn("level0.0", "level0.1", 16, 16, 3)
    shapes |= conv_bn("level1.0", "level1.1", 16, 32, 3)
    channels = (32, 128, 256, 512, 1024)
    for i, levels in enumerate((1, 2, 3, 1)):
        c_in, c_out = channels[i : i + 2]
        shapes |= tree(f"level{i + 2}", levels, c_in, c_out, 2 * c_out + (c_in if i else 0), cells)
    return shapes | {"fc.weight": (1000, 1024, 1, 1), "fc.bias": (1000,)}


RELEASED: dict[str, tuple[Callable[[], Shapes], int]] = {
    "resnet50": (lambda: residual((3, 4, 6, 3), 64), 25_557_032),
    "resnext50_32x4d": (lambda: residual((3, 4, 6, 3), 4, 1, 32), 25_028_904),
    "res2net50_48w_2s": (lambda: residual((3, 4, 6, 3), 48, 2), 25_287_304),
    "res2net50_26w_4s": (lambda: residual((3, 4, 6, 3), 26, 4), 25_699_120),
    "res2net50_14w_8s": (lambda: residual((3, 4, 6, 3), 14, 8), 25_059_816),
    "res2net50_26w_6s": (lambda: residual((3, 4, 6, 3), 26, 6), 37_051_448),
    "res2net50_26w_8s": (lambda: residual((3, 4, 6, 3), 26, 8), 48_403_776),
    "res2net101_26w_4s": (lambda: residual((3, 4, 23, 3), 26, 4), 45_206_688),
    "res2next50": (lambda: residual((3, 4, 6, 3), 4, 4, 8), 24_671_464),
    "res2net50_v1b": (lambda: residual((3, 4, 6, 3), 26, 4, v1b=True), 25_718_352),
    "res2net101_v1b": (lambda: residual((3, 4, 23, 3), 26, 4, v1b=True), 45_225_920),
    "res2net_dla60": (lambda: dla(28, 4, 1), 21_145_544),
    "res2next_dla60": (lambda: dla(4, 4, 8), 17_330_456),
    "dla60": (lambda: dla(64, 1, 1), 22_036_632 + 297_472),
    "dla60x": (lambda: dla(4, 1, 32), 17_352_344 + 297_472),
}


def contents(shapes: Shapes) -> dict[str, Tensor]:
    """Weights of those shapes, each of one value, which takes no room in a file."""
    return {k: torch.tensor(1 + i / 64).expand(shape) for i, (k, shape) in enumerate(shapes.items())}


def released(name: str, path: Path) -> Path:
    torch.save(contents(RELEASED[name][0]()), path)
    return path


@pytest.mark.parametrize("name", RELEASED)
def test_released_weights_load(name: str, tmp_path: Path) -> None:
    """Each under its own name, but for DLA's unused projections; files from before PyTorch 0.4.1 count no batches."""
    shapes, params = RELEASED[name][0](), RELEASED[name][1]
    assert sum(torch.Size(s).numel() for k, s in shapes.items() if ".running_" not in k) == params
    model = load_checkpoint(name, released(name, tmp_path / "released.pth"))
    state, given = model.state_dict(), contents(shapes)
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            assert value.is_contiguous()
            assert torch.equal(value, given.pop(key)), key
    assert {key.partition(".project.")[0] for key in given} <= {"level3", "level4", "level4.tree1"}
    assert not any(m.training for m in model.modules())


# ---- The forms of files --------------------------------------------------------------------------------------------


def weights(arch: Arch = SMALL, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return create(arch).state_dict()


def pth(content: object, tmp_path: Path, **options: Any) -> Path:
    torch.save(content, tmp_path / "weights.pth", **options)
    return tmp_path / "weights.pth"


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


FORMS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "plain": lambda state: state,
    "parallel": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    "trained": lambda state: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}, "best": 0.5},
    "nested": lambda state: {"model": {"state_dict": state}},
    "parameters": lambda state: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zipped", [True, False])
def test_pth_files_of_all_forms(form: str, zipped: bool, tmp_path: Path) -> None:
    path = pth(FORMS[form](weights()), tmp_path, _use_new_zipfile_serialization=zipped)
    assert same(load_checkpoint(SMALL, path), weights())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_safetensors_by_any_name(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / name)
    assert same(load_checkpoint(SMALL, str(tmp_path / name)), weights())


def test_half_precision_weights_become_fp32(tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights().items()}
    model = load_checkpoint(SMALL, pth(half, tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.conv1.weight, half["conv1.weight"].float())


def test_a_network_is_filled_in_place(tmp_path: Path) -> None:
    model = create(SMALL)
    before = list(model.parameters())
    assert load_checkpoint(model, pth(weights(seed=1), tmp_path)) is model
    assert all(a is b and a.requires_grad for a, b in zip(before, model.parameters(), strict=True))
    assert model.training
    assert same(model, weights(seed=1))


def test_a_loaded_network_can_be_trained(tmp_path: Path) -> None:
    model = load_checkpoint(SMALL, pth(weights(), tmp_path)).train()
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_backbone_takes_the_weights_of_the_whole_network(tmp_path: Path) -> None:
    backbone = create(SMALL, features_only=True, out_indices=(0,), output_stride=1)
    load_checkpoint(backbone, pth(weights(), tmp_path))
    assert same(backbone.body, weights())
    released("res2net_dla60", tmp_path / "dla.pth")
    load_checkpoint(create("res2net_dla60", features_only=True, out_indices=(0, 1)), tmp_path / "dla.pth")


# ---- Heads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [7, 0])
def test_a_head_is_replaced_where_it_is_asked_for(num_classes: int, tmp_path: Path) -> None:
    state = weights()
    model = load_checkpoint(SMALL, pth(state, tmp_path), num_classes=num_classes)
    assert model.arch.num_classes == num_classes
    own = {k: v for k, v in model.state_dict().items() if k.startswith("fc.")}
    assert all(v.isfinite().all() and v.any() for v in own.values())
    assert same(model, state | own)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, num_classes or 32)


def test_a_head_of_the_same_classes_is_loaded(tmp_path: Path) -> None:
    assert same(load_checkpoint(SMALL, pth(weights(), tmp_path), num_classes=5), weights())


def test_a_head_that_the_file_lacks_is_initialised(tmp_path: Path) -> None:
    state = {k: v for k, v in weights().items() if not k.startswith("fc.")}
    model = load_checkpoint(SMALL, pth(state, tmp_path), num_classes=5)
    assert model.fc.weight.isfinite().all()


def test_a_network_keeps_the_head_that_it_has(tmp_path: Path) -> None:
    model = create(SMALL, num_classes=7)
    head = model.fc.weight.clone()
    load_checkpoint(model, pth(weights(), tmp_path), num_classes=7)
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.conv1.weight, weights()["conv1.weight"])


@pytest.mark.parametrize("num_classes", [7, 0])
def test_another_head_is_refused_where_it_is_not_asked_for(num_classes: int, tmp_path: Path) -> None:
    path, model = pth(weights(), tmp_path), create(SMALL, num_classes=num_classes)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    refused(model, path, "head has 5 classes", f"has {num_classes}", f"num_classes={num_classes}")
    assert same(model, before)


def test_classes_that_the_network_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`num_classes`: 9; accepted: 5"):
        load_checkpoint(create(SMALL), pth(weights(), tmp_path), num_classes=9)


# ---- What is refused -----------------------------------------------------------------------------------------------


def refused(model: nn.Module | Arch | str, path: Path, *words: str) -> None:
    """A `UserError` of one line, naming the file and holding `words`."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(model, path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in (str(path), *words):
        assert word in message


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    path = released("res2net50_14w_8s", tmp_path / "w.pth")
    refused("resnet50", path, "resnet50; these are weights of res2net50_14w_8s", "missing", "unexpected", "shape")
    refused("dla60x", path, "missing: 315 ('base_layer.0.weight', 'base_layer.1.weight',", ", ...)", "'conv1.weight'")


def test_a_mismatch_names_the_keys(tmp_path: Path) -> None:
    state = weights()
    del state["layer1.0.bns.1.bias"]
    state |= {"extra.weight": torch.zeros(1), "conv1.weight": torch.zeros(8, 3, 1, 1)}
    words = "missing: 1 ('layer1.0.bns.1.bias')", "unexpected: 1 ('extra.weight')", "'conv1.weight' [8, 3, 1, 1], not"
    refused(SMALL, pth(state, tmp_path), *words)


def test_a_mismatch_changes_nothing(tmp_path: Path) -> None:
    model = create(SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = weights(seed=3)
    del state["layer2.1.conv1.weight"]
    refused(model, pth(state, tmp_path), "'layer2.1.conv1.weight'")
    assert same(model, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    state = weights()
    state["layer1.0.convs.1.weight"].view(-1)[3] = value
    refused(SMALL, pth(state, tmp_path), "1 ('layer1.0.convs.1.weight') of", "not finite")


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("share", [0, 1e-4, 1e-3, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pth_files(zipped: bool, share: float, tmp_path: Path) -> None:
    refused(SMALL, cut(pth(weights(), tmp_path, _use_new_zipfile_serialization=zipped), share), "damaged")


@pytest.mark.parametrize("share", [1e-4, 1e-3, 0.5, 0.99])
def test_truncated_safetensors(share: float, tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / "w.safetensors")
    refused(SMALL, cut(tmp_path / "w.safetensors", share), "damaged")


class Attack:
    """Pickled code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("extra", "word"), [(Attack(), "posix.mkdir"), (argparse.Namespace(), "argparse.Namespace")])
def test_pickled_code_is_not_run(
    extra: object, word: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": weights(), "args": extra}
    refused(SMALL, pth(content, tmp_path, _use_new_zipfile_serialization=zipped), word, "code")
    assert not (tmp_path / "attacked").exists()


def endless() -> dict[str, object]:
    content: dict[str, object] = {}
    content["state_dict"] = content
    return content


@pytest.mark.parametrize(
    "content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {}}, {"fc.weight": 3}, {3: torch.zeros(1)}, endless()]
)
def test_files_without_a_state_dict(content: object, tmp_path: Path) -> None:
    refused(SMALL, pth(content, tmp_path), "state dict")


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>404</html>")
    refused(SMALL, tmp_path / "page.pth", "neither")
    refused(SMALL, tmp_path / "nowhere.pth", "no such file")
    refused(SMALL, tmp_path, "no such file")


def test_an_unknown_name_is_said_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'res2net50_26w_4s'"):
        load_checkpoint("res2net50_26w4s", pth(weights(), tmp_path))


# ---- The hub -------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has the released weights; what was asked of it."""
    asked: list[str] = []
    ours = {repo: name for name, repo in HUB.items()}

    def download(repo_id: str, filename: str) -> str:
        asked.append(f"{repo_id}/{filename}")
        return str(released(ours[repo_id], tmp_path / filename))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    return asked


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("res2net50_26w_4s", "timm/res2net50_26w_4s.in1k"),
        ("res2net50d", "timm/res2net50d.in1k"),
        ("dla60_res2next", "timm/dla60_res2next.in1k"),
        ("resnet50", "timm/resnet50.tv_in1k"),
    ],
)
def test_pretrained_weights_are_fetched(name: str, repo: str, hub: list[str]) -> None:
    model = create(name, pretrained=True)
    assert hub == [f"{repo}/model.safetensors"]
    assert model.training
    assert model.fc.bias.unique().numel() == 1


def test_pretrained_backbones_and_heads(hub: list[str]) -> None:
    model = create("res2net50_26w_4s", pretrained=True, num_classes=3, output_stride=8)
    assert model.fc.weight.shape == (3, 2048)
    assert model.layer4[1].convs[0].dilation == (4, 4)
    backbone = create("res2net50_26w_4s", pretrained=True, features_only=True, out_indices=(0,))
    assert backbone.channels == (256,)
    assert torch.equal(backbone.body.conv1.weight, model.conv1.weight)


def test_pretrained_weights_read_three_channels(hub: list[str]) -> None:
    with pytest.raises(UserError, match=r"'conv1.weight' \[64, 3, 7, 7\], not \[64, 1, 7, 7\]"):
        create("res2net50_26w_4s", pretrained=True, in_channels=1)


@pytest.mark.parametrize("name", ["res2next29_6c24w_4s", "blres2net50", SMALL])
def test_networks_without_published_weights(name: str | Arch, hub: list[str]) -> None:
    with pytest.raises(UserError, match=r"no weights are published for .*accepted: resnet50, "):
        create(name, pretrained=True)
    assert hub == []


BY_HAND = (
    "download https://huggingface.co/timm/res2net50_26w_4s.in1k/resolve/main/model.safetensors by hand",
    "res2net.load_checkpoint('res2net50_26w_4s', 'model.safetensors')",
)


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(**_: str) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    with pytest.raises(UserError) as caught:
        create("res2net50_26w_4s", pretrained=True)
    assert all(words in str(caught.value) for words in (*BY_HAND, "no route to host"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_extra_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError) as caught:
        create("res2net50_26w_4s", pretrained=True)
    assert all(words in str(caught.value) for words in (*BY_HAND, "pip install 'res2net-search[hub]'"))
