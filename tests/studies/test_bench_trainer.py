"""The benchmark of the trainer in miniature: both sides train, and every row is printed."""

import re

import pytest

from studies import bench_trainer

QUICK = ["--images", "16", "--batch-size", "8", "--repeats", "1", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "sizes"),
    [([], [32] * 4), (["--arch", "resnet50", "--arch", "res2net50_26w_4s", "--image-size", "64"], [64, 64])],
)
def test_prints_a_row_a_network(argv: list[str], sizes: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_trainer.main([*QUICK, *argv]) == 0
    out = capsys.readouterr().out
    rows = re.findall(r" (\d+) +([\d.]+) +([\d,]+) +([\d,]+) +([\d.]+) +([\d.]+)$", out, re.M)
    assert [int(row[0]) for row in rows] == sizes
    assert all(float(row[4]) > 0 for row in rows)
    assert ("of resnet50's images a second" in out) == bool(argv)


@pytest.mark.parametrize(
    ("argv", "part"), [(["--base", "paperr"], "did you mean 'paper'"), (["--images", "0"], "--images: 0")]
)
def test_mistakes_are_one_line(argv: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_trainer.main(argv) == 2
    err = capsys.readouterr().err
    assert part in err
    assert err.count("\n") == 1
