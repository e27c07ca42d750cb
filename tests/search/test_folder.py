"""A search over a folder of images: from the option to the exported network's score on the test split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from search import export, run, runs, shared_weights
from search.settings import Settings


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of a colour each; some of the files are PNG."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 4)):
        for label, name in enumerate(("blue", "green", "red")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (20 + i, 24, 3), np.uint8)
                pixels[..., 2 - label] += 100
                Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 4 == 0 else 'jpg'}")
    return tmp_path / "photos"


@pytest.mark.slow
def test_a_search_and_its_export(photos: Path, tiny_space: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--data", "folder", "--data-dir", str(photos), "--image-size", "16", "--space", str(tiny_space)]
    options += [
        "--executor",
        "local",
        "--workers",
        "1",
        "--trials",
        "3",
        "--epochs",
        "2",
        "--batch-size",
        "16",
        "--out",
        str(out),
    ]
    assert run.main(options) == 0
    content = runs.read(out)
    assert content["settings"]["scope"]["image_size"] == content["data"]["image_size"] == 16
    assert content["data"]["classes"] == ["blue", "green", "red"]
    assert (content["data"]["train_images"], content["data"]["val_images"]) == (54, 6)
    assert export.main([str(out), "--to", str(tmp_path / "exported"), "--test"]) == 0
    training = json.loads((tmp_path / "exported" / "training.json").read_text())
    assert 0 <= training["test_top1"] <= 100
    (photos / "val" / "red").rename(photos / "val" / "pink")
    assert export.main([str(out), "--to", str(tmp_path / "again"), "--test"]) == 2
    assert run.main([*options, "--image-size", "24"]) == 2


@pytest.mark.slow
def test_files_that_cannot_be_read_end_a_search_in_one_line_and_it_resumes_once_they_can(
    photos: Path, tiny_space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--data", "folder", "--data-dir", str(photos), "--image-size", "16", "--space", str(tiny_space)]
    options += [
        "--executor",
        "local",
        "--workers",
        "1",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--out",
        str(out),
        "--trials",
    ]
    assert run.main([*options, "2"]) == 0
    before, whole = (out / "trials.csv").read_text(), {p: p.read_bytes() for p in photos.glob("train/*/*.*g")}
    for path in whole:
        path.write_bytes(whole[path][:100])
    capsys.readouterr()
    assert run.main([*options, "3"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert "cannot be read" in error[-1]
    assert error[-1].startswith("python -m search.run: error: --data-dir: ")
    assert not any("Traceback" in line for line in error)
    assert (out / "trials.csv").read_text() == before
    for path, content in whole.items():
        path.write_bytes(content)
    assert run.main([*options, "3"]) == 0
    assert (pd.read_csv(out / "trials.csv").outcome == "scored").sum() == 3


def test_the_base_is_what_suits_the_size() -> None:
    settings = Settings(data="folder")
    assert [settings.scope.get_space(10, size).base for size in (32, 127, 128, 224)] == [
        "cifar",
        "cifar",
        "imagenet",
        "imagenet",
    ]
    assert Settings(data="folder", base="micro").scope.get_space(10, 224).base == "micro"
    assert Settings(data="cifar10").scope.get_space(10, 32).base == "cifar"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "folder"], "--data-dir: None"),
        (["--image-size", "64"], "--image-size: 64, but shapes has a size of its own"),
        (["--data", "folder", "--image-size", "3"], "--image-size: 3 is too small"),
        (
            ["--data", "folder", "--data-dir", "/tmp", "--download"],
            "--download: folder cannot be downloaded; accepted: --data-dir with its files",
        ),
    ],
)
def test_mistakes_are_one_line(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(options) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_files_of_earlier_versions_load() -> None:
    flat = Settings().values()
    del flat["image_size"]
    assert Settings.from_dict(flat) == Settings()


def test_shared_weights_of_earlier_versions_are_known(tmp_path: Path) -> None:
    space = Settings().scope.get_space(10, 32)
    kept = {name: Settings().values()[name] for name in shared_weights.TRAINED_BY if name != "image_size"}
    written = space.to_dict()
    del written["skeleton"]["in_channels"]
    (tmp_path / shared_weights.ABOUT_FILE).write_text(json.dumps({"settings": kept, "space": written}))
    shared_weights.check(tmp_path, Settings().scope, Settings().scoring, space)
