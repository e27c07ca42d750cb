"""timm's weights from a fake Hugging Face hub: no test uses the network."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from released import released

from res2net import Arch, Stage, UserError, create
from res2net.hub import HUB

SMALL = Arch((Stage(2, 4, 6, 2, 4, 1), Stage(2, 8, 6, 3, 3, 2)), "cifar", 8, num_classes=5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that holds the released weights; returns the list of requested files."""
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
