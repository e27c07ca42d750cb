"""`python -m search.export --onnx` on a real, tiny run."""

from pathlib import Path

import pytest
import torch

import res2net
from res2net.deploy import export as formats
from search import Settings, search
from search.export import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trial of one short epoch."""
    folder = tmp_path_factory.mktemp("search") / "run"
    search(Settings(space="scale", trials=1, epochs=1, train_images=200, executor="local", workers=1), out=folder)
    return folder


@pytest.mark.slow
def test_the_model_folder_has_an_onnx_file_too(run: Path, tmp_path: Path) -> None:
    for name in formats.ONNX_PACKAGES:
        pytest.importorskip(name)
    import onnxruntime

    assert main([str(run), "--to", str(tmp_path / "model"), "--onnx"]) == 0
    x = torch.randn(3, 3, 32, 32)
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = res2net.load(tmp_path / "model")(x)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), expected)
    # Without --onnx the folder is replaced, and no file of an earlier network is left in it.
    assert main([str(run), "--to", str(tmp_path / "model")]) == 0
    assert not (tmp_path / "model" / "model.onnx").exists()


@pytest.mark.slow
def test_without_the_extra_nothing_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    assert main([str(run), "--to", str(tmp_path / "model"), "--onnx"]) == 2
    assert "pip install 'res2net-search[onnx]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
