"""Weights load from the released files and from all forms of files; others are refused."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from released import RELEASED, contents, released
from torch import Tensor, nn

from res2net import Arch, Stage, create, load_checkpoint
from res2net.errors import UserError

SMALL = Arch((Stage(2, 4, 6, 2, 4, 1), Stage(2, 8, 6, 3, 3, 2)), "cifar", 8, num_classes=5)


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
    refused(SMALL, tmp_path / "page.pth", "not a PyTorch or safetensors file")
    refused(SMALL, tmp_path / "nowhere.pth", "no such file")
    refused(SMALL, tmp_path, "no such file")


def test_an_unknown_name_is_said_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'res2net50_26w_4s'"):
        load_checkpoint("res2net50_26w4s", pth(weights(), tmp_path))
