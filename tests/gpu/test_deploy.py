"""Inference on the device: optimized networks, CUDA graphs, latency tables, ONNX files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import space as spaces
from res2net import Arch, Stage, create, export_onnx, optimize
from res2net.deploy.timing import TORCH_FORMS, measured, piece_times, runner
from res2net.latency import LatencyTable
from res2net.pieces import sequence
from search import carriers
from search.latency import make
from studies.gpu_networks import graphed

ARCH = Arch((Stage(2, 8, 8, 4, 4, 1), Stage(1, 16, 16, 2, 3, 2)), stem="cifar", stem_channels=8, se=4, num_classes=5)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def network() -> nn.Module:
    """Return a network whose batch norms have seen images, in eval mode."""
    torch.manual_seed(0)
    model = create(ARCH)
    with torch.no_grad():
        model(torch.randn(8, 3, 16, 16))
    return model.eval()


def images(device: torch.device) -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(device)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).float().cpu()


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest value of `b`."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize(("form", "bound"), [("fp32", 1e-4), ("bf16", 0.05), ("half", 0.01)])
def test_optimized_networks_have_the_outputs_of_the_cpu(form: str, bound: float, device: torch.device) -> None:
    model, x = network().to(device), images(device)
    expected = logits(network(), images(torch.device("cpu")))
    if form == "half":
        model, x = model.half(), x.half()
    fast = optimize(model, bf16=form == "bf16")
    assert difference(logits(fast, x), expected) < bound
    assert fast(x).device.type == device.type


@pytest.mark.parametrize("bf16", [False, True])
def test_a_graph_has_the_outputs_of_its_network(bf16: bool, device: torch.device) -> None:
    """On a CPU, `graphed` runs the network itself."""
    fast, x = optimize(network().to(device), bf16=bf16), images(device)
    run = graphed(fast, x)
    for _ in range(2):
        torch.testing.assert_close(run(), fast(x), rtol=1e-3, atol=1e-3)
    x.copy_(x.flip(0))  # a graph reads its images anew
    torch.testing.assert_close(run(), fast(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", TORCH_FORMS)
def test_networks_are_timed_whole_and_in_pieces(form: str, device: torch.device) -> None:
    median, spread = measured(runner(network().to(device), form, images(device)), seconds=0.01)
    assert median > 0 <= spread
    times = piece_times(network().to(device), form, images(device), seconds=0.01)  # type: ignore[arg-type]
    assert times.shape[1] == len(sequence(ARCH, 16))
    assert (times > 0).all()


@pytest.mark.slow
def test_a_latency_table_is_of_the_device(
    device: torch.device, tiny_space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("res2net.deploy.timing.LEAST_RUNS", 3)
    monkeypatch.setattr(carriers, "FITTED", 3)
    space = spaces.get(str(tiny_space), num_classes=10)
    table = make(space, "optimized", str(device), batch_size=8)
    assert table.device == device.type
    assert LatencyTable.from_dict(table.to_dict()) == table
    assert all(table.of(space.arch(params), space.image_size) > 0 for params in space.all_params())


@pytest.mark.slow
def test_an_onnx_file_runs_on_the_device(device: torch.device, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    onnxruntime = pytest.importorskip("onnxruntime")
    provider = PROVIDERS[device.type]
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime has no {provider}")
    export_onnx(network().to(device), tmp_path / "model.onnx", image_size=16)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=[provider])
    assert session.get_providers()[0] == provider
    x = images(torch.device("cpu"))
    (found,) = session.run(None, {"images": x.numpy()})
    assert difference(torch.from_numpy(found), logits(network(), x)) < 1e-2  # the provider may use TF32
