"""The benchmark of loading: both loaders return the same form from the same files, and each set prints a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studies import bench_data
from trainers.datasets import Files
from trainers.decode import View, decode

OPTIONS = [
    "--images",
    "4",
    "--large-images",
    "2",
    "--passes",
    "2",
    "--repeats",
    "1",
    "--batch-size",
    "3",
    "--size",
    "32",
]


@pytest.mark.slow
def test_a_row_for_each_set(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert bench_data.main(OPTIONS) == 0
    rows = capsys.readouterr().out.splitlines()[3:]
    assert [row.split(",")[0].strip() for row in rows[1:]] == ["small", "large"]
    assert len({len(row) for row in rows}) == 1
    assert torch.get_num_threads() == threads


def test_a_folder_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        photo = bench_data.photograph(80, 60, 90, np.random.default_rng(0))
        (tmp_path / "train" / name / "0.jpg").write_bytes(photo)
    assert bench_data.main([*OPTIONS, "--data-dir", str(tmp_path)]) == 0
    assert "given, 2 of" in capsys.readouterr().out


def test_both_sides_see_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = bench_data.photograph(500, 375, 92, np.random.default_rng(0))
    assert 70_000 < len(photo) < 130_000  # as ImageNet's
    (tmp_path / "0.jpg").write_bytes(photo)
    plain = bench_data.Plain(Files(tmp_path, ("0.jpg",), np.zeros(1, np.int64), 224))
    monkeypatch.setattr(plain, "crop", lambda width, height: (30, 20, 400, 300))
    monkeypatch.setattr(bench_data.random, "random", lambda: 0.9)
    x, label = plain[0]
    out = torch.empty(224, 224, 3, dtype=torch.uint8)
    for exact, most, mean in ((True, 1.01, 0.1), (False, 30, 1.5)):
        decode(str(tmp_path / "0.jpg"), lambda w, h, exact=exact: View(30, 20, 400, 300, (224, 224), exact=exact), out)
        difference = (out.permute(2, 0, 1) - 255 * (x * plain.std + plain.mean)).abs()
        assert difference.max() <= most
        assert difference.mean() <= mean
    assert label == 0
    assert Image.open(tmp_path / "0.jpg").size == (500, 375)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--images", "0"], "--images"),
        (["--size", "1"], "--size: 1 is too small"),
        (["--data-dir", "/no"], "--data-dir"),
    ],
)
def test_mistakes(options: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_data.main(options) == 2
    assert named in capsys.readouterr().err
