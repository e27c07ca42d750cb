"""Exports compute what the network computes, for any batch, and nothing is written that does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from res2net import Arch, Stage, UserError, create, export_onnx, export_program
from res2net.deploy import export as formats

SMALL = Arch((Stage(2, 4, 6, 2, 4, 1), Stage(1, 4, 4, 1, 3, 2)), "cifar", 8, shortcut="avgpool", se=4, num_classes=5)
Export = Callable[..., float | None]


def network(**options: object) -> nn.Module:
    """A network whose batch norms have seen images, in training mode."""
    torch.manual_seed(0)
    model = create(SMALL, **options)
    with torch.no_grad():
        model(torch.randn(8, 3, 12, 12))
    return model


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


# ---- torch.export --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_program_takes_any_batch(tmp_path: Path) -> None:
    model = network()
    assert export_program(model, tmp_path / "model.pt2", image_size=(12, 10)) <= 1e-5
    assert model.training
    program = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 12, 10)
        torch.testing.assert_close(program(x), logits(model, x))


@pytest.mark.slow
def test_a_program_of_a_dense_backbone(tmp_path: Path) -> None:
    model = network(features_only=True, output_stride=1)
    assert export_program(model, str(tmp_path / "model.pt2"), image_size=9) <= 1e-5
    x = torch.randn(3, 3, 9, 9)
    for ours, theirs in zip(torch.export.load(tmp_path / "model.pt2").module()(x), logits(model, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter with a bug: what it has exported is another network."""
    other = network().eval()
    nn.init.normal_(other.fc.weight)
    monkeypatch.setattr(formats, "_frozen", lambda model: other)
    check = formats._checked
    monkeypatch.setattr(formats, "_checked", lambda model, *rest: check(network().eval(), *rest))


@pytest.mark.slow
@pytest.mark.usefixtures("wrong")
def test_a_wrong_export_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not written"):
        export_program(network(), tmp_path / "model.pt2", image_size=8)
    assert list(tmp_path.iterdir()) == []
    assert export_program(network(), tmp_path / "model.pt2", image_size=8, check=False) is None
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize("size", [0, -3, (8,), (8, 0), 8.5, "8", True])
def test_an_image_size_that_cannot_be(size: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`image_size`: "):
        export_program(network(), tmp_path / "model.pt2", image_size=size)


@pytest.mark.parametrize(("name", "pixels"), [("res2next29_6c24w_4s", 32), ("res2net50_26w_4s", 224), ("dla60", 224)])
def test_the_usual_image_size(name: str, pixels: int) -> None:
    with torch.device("meta"):
        model = create(name)
    assert formats._images(model, None)(1).shape == (1, 3, pixels, pixels)


# ---- ONNX ----------------------------------------------------------------------------------------------------------


def onnx_logits(path: Path, x: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(y) for y in session.run(None, {"images": x.numpy()})]


@pytest.fixture
def onnx_packages() -> None:
    for name in formats.ONNX_PACKAGES:
        pytest.importorskip(name)


@pytest.mark.slow
@pytest.mark.usefixtures("onnx_packages")
def test_an_onnx_file_takes_any_batch(tmp_path: Path) -> None:
    import onnx

    model = network()
    assert export_onnx(model, tmp_path / "model.onnx", image_size=(12, 10)) <= 1e-5
    assert model.training
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [o.name for o in graph.output] == ["logits"]
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 12, 10)
        torch.testing.assert_close(onnx_logits(tmp_path / "model.onnx", x)[0], logits(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("onnx_packages")
def test_an_onnx_file_of_a_dense_backbone(tmp_path: Path) -> None:
    model, x = network(features_only=True, out_indices=(1, 0), output_stride=1), torch.randn(3, 3, 9, 9)
    export_onnx(model, tmp_path / "model.onnx", image_size=9)
    for ours, theirs in zip(onnx_logits(tmp_path / "model.onnx", x), logits(model, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("onnx_packages", "wrong")
def test_a_wrong_onnx_file_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("earlier")
    with pytest.raises(RuntimeError, match="not written"):
        export_onnx(network(), tmp_path / "model.onnx", image_size=8)
    assert (tmp_path / "model.onnx").read_text() == "earlier"


@pytest.mark.parametrize("missing", formats.ONNX_PACKAGES)
def test_a_missing_extra_says_what_to_install(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(UserError, match=rf"not installed: {missing}; run pip install 'res2net-search\[onnx\]'"):
        export_onnx(network(), tmp_path / "model.onnx")
    if missing == "onnxruntime":
        formats.need_onnx(check=False)
    assert list(tmp_path.iterdir()) == []
