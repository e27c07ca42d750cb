"""Networks in int8 compute nearly what the network computes, for any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import res2net
from res2net import Arch, Stage, UserError, create, quantize
from res2net.deploy.int8 import Quantized
from res2net.model import Res2Net

SMALL = Arch((Stage(2, 8, 8, 2, 4, 1), Stage(1, 8, 8, 1, 3, 2)), "cifar", 8, shortcut="avgpool", num_classes=5)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(48, 3, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(images: Tensor) -> Res2Net:
    """Return a network whose batch norms have seen images."""
    torch.manual_seed(0)
    net = create(SMALL)
    with torch.no_grad():
        for _ in range(20):
            net(images)
    return net.eval()


@pytest.fixture(scope="module")
def small(model: Res2Net, images: Tensor) -> Quantized:
    return quantize(model, images)


@pytest.mark.slow
class TestQuantized:
    def test_logits_are_near_those_in_fp32(self, model: Res2Net, small: Quantized, images: Tensor) -> None:
        with torch.no_grad():
            expected = model(images)
        difference = (small(images) - expected).abs().max() / expected.abs().max()
        assert 0 < difference < 0.15
        assert (small(images).argmax(1) == expected.argmax(1)).float().mean() > 0.8

    def test_any_batch(self, small: Quantized, images: Tensor) -> None:
        whole = small(images)
        for count in (1, 7):
            torch.testing.assert_close(small(images[:count]), whole[:count], rtol=0.05, atol=0.05)

    def test_weights_are_int8_for_each_channel(self, small: Quantized) -> None:
        import onnx

        graph = onnx.load_from_string(small.data).graph
        weights = [x for x in graph.initializer if x.data_type == onnx.TensorProto.INT8 and len(x.dims) == 4]
        convs = [node for node in graph.node if node.op_type == "Conv"]
        assert len(weights) == len(convs) > 5
        assert not [node for node in graph.node if node.op_type == "BatchNormalization"]
        scales = {x.name: x for x in graph.initializer}
        axes = [
            node
            for node in graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in {w.name for w in weights}
        ]
        assert all(list(scales[node.input[1]].dims) == [scales[node.input[0]].dims[0]] for node in axes)

    def test_a_file_and_back(self, small: Quantized, images: Tensor, tmp_path: Path) -> None:
        small.save(tmp_path / "model.onnx")
        again = Quantized((tmp_path / "model.onnx").read_bytes(), threads=1)
        torch.testing.assert_close(again(images), small(images), rtol=1e-4, atol=1e-4)

    def test_the_model_is_unchanged(self, model: Res2Net, images: Tensor) -> None:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        quantize(model.train(), images[:4], reduce_range=True)
        assert model.training
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        model.eval()


def test_wrong_images_are_refused(model: Res2Net) -> None:
    with pytest.raises(UserError, match=r"^`images`: 0 calibration images"):
        quantize(model, torch.zeros(0, 3, 8, 8))
    with pytest.raises(UserError, match=r"^images have shape \[2, 1, 8, 8\]; accepted: \[N, 3, H, W\]"):
        quantize(model, torch.zeros(2, 1, 8, 8))


def test_missing_packages_are_named(model: Res2Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("res2net.deploy.export.find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(UserError, match=r"^ONNX: not installed: onnxruntime"):
        res2net.quantize(model, torch.zeros(1, 3, 8, 8))
