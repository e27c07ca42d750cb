"""The registry of kinds: every part of the package that handles several kinds asks it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from res2net import Stage, UserError, cost, create, load, optimize, save
from res2net.arch import BaseArch
from res2net.backbone import FeatureInfo, Network
from res2net.kinds import KINDS, Kind, from_dict, from_json, kind_of
from res2net.layer_cost import Cost, classifier, conv, down
from res2net.model import conv3x3, init


@dataclass(frozen=True, slots=True)
class ChainArch(BaseArch):
    """A host in one file: each stage is one 3x3 convolution with batch norm."""

    kind: ClassVar[str] = "chain"
    stages: tuple[Stage, ...]
    num_classes: int = 10
    in_channels: int = 3

    def __post_init__(self) -> None:
        self._check_stages()

    @property
    def stem_stride(self) -> int:
        return 1


def chain_cost(arch: ChainArch, image_size: int) -> Cost:
    total, c_in, size = Cost(0, 0, 0), arch.in_channels, image_size
    for stage in arch.stages:
        size = down(size, stage.stride)
        total += conv(c_in, stage.channels, 3, size)
        c_in = stage.channels
    return total + classifier(c_in, arch.num_classes)


class Chain(Network):
    def __init__(self, arch: ChainArch, output_stride: int | None = None) -> None:
        super().__init__()
        self.arch = arch
        c_in = arch.in_channels
        for i, s in enumerate(arch.stages):
            layer = nn.Sequential(conv3x3(c_in, s.channels, s.stride), nn.BatchNorm2d(s.channels), nn.ReLU())
            self.add_module(f"layer{i}", layer)
            c_in = s.channels
        self.build_head()
        self.apply(init)

    def stem(self, x: Tensor) -> Tensor:
        return x

    def stage_names(self) -> list[str]:
        return [f"layer{i}" for i in range(len(self.arch.stages))]

    @property
    def feature_info(self) -> FeatureInfo:
        maps, stride = [], 1
        for i, stage in enumerate(self.arch.stages):
            stride *= stage.stride
            maps.append((stage.channels, stride, f"layer{i}"))
        return FeatureInfo.of(maps)


ARCH = ChainArch((Stage(1, 2, 2), Stage(1, 4, 4, stride=2)), num_classes=5)
IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's one entry of the registry."""
    monkeypatch.setitem(sys.modules, "chain_host", SimpleNamespace(Chain=Chain))
    monkeypatch.setitem(KINDS, "chain", Kind(ChainArch, chain_cost, "chain_host:Chain"))


def test_json_and_cost() -> None:
    assert from_dict(ARCH.to_dict()) == from_json(ARCH.to_json()) == ARCH
    assert cost(ARCH, 9).params == sum(p.numel() for p in create(ARCH).parameters())


def test_create_save_load_and_optimize(tmp_path: Path) -> None:
    model = create(ARCH, num_classes=3).eval()
    assert isinstance(model, Chain)
    save(model, tmp_path / "model")
    with torch.no_grad():
        expected = model(IMAGES)
        assert torch.equal(load(tmp_path / "model")(IMAGES), expected)
        torch.testing.assert_close(optimize(model)(IMAGES), expected)


def test_a_backbone() -> None:
    model = create(ARCH, features_only=True, out_indices=(1,))
    assert [tuple(m.shape) for m in model(IMAGES)] == [(2, 16, 5, 5)]


def test_errors_list_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="accepted: residual, dla, biglittle, chain"):
        from_dict({"kind": "chein chain"})
    with pytest.raises(UserError, match="accepted: Res2Net, Dla, BigLittle, Chain"):
        save(nn.Identity(), tmp_path / "model")


@pytest.mark.parametrize("kind", ["residual", "dla", "biglittle"])
def test_an_entry_names_its_own_parts(kind: str) -> None:
    entry = KINDS[kind]
    assert entry.arch.kind == kind
    with torch.device("meta"):
        stage = Stage(2, 4, 4)
        model = entry.build(entry.arch((stage,)))
    assert type(model).__name__ == entry.network_name
    assert kind_of(model.arch) is entry
