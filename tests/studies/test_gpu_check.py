"""`studies.gpu_check`: every part runs without a GPU, a failure does not end the check, mistakes are one line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from studies import gpu_check, gpu_parts
from studies.gpu_check import LEAST, main

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


@NO_GPU
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_walks_through_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--minutes", "14", "--out", str(tmp_path / "check"), "--dry-run"]) == 0
    parts = pd.read_csv(tmp_path / "check" / "parts.csv")
    assert parts.part.tolist() == list(gpu_parts.PARTS)
    assert set(parts.end) == {"done"}
    log = (tmp_path / "check" / "log.md").read_text()
    for name in parts.part:
        assert f"### {name}: done" in log
        assert len(pd.read_csv(tmp_path / "check" / f"{name}.csv"))
    assert "training | trainer, compiled | res2net50_26w_4s" in log


PROGRAM = """
import sys
import time
from studies import gpu_parts

def fails(setting):
    yield {"value": 1}
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def works(setting):
    yield {"value": 2, "tiny": setting.tiny}

def waits(setting):
    time.sleep(600)
    yield {"value": 3}

gpu_parts.PARTS = {"tests": fails, "networks": works, "small": waits}
sys.exit(gpu_parts.main())
"""


@pytest.fixture
def replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the parts by a program of three others: one fails, one works, one waits."""
    program, start = tmp_path / "parts.py", gpu_check.subprocess.Popen
    program.write_text(PROGRAM)

    def popen(command: list[str], **options: object) -> object:
        return start([command[0], str(program), *command[3:]], **options)

    monkeypatch.setattr(gpu_check.subprocess, "Popen", popen)
    monkeypatch.setenv("PYTHONPATH", str(gpu_parts.ROOT))


@pytest.mark.slow
@pytest.mark.usefixtures("replaced")
def test_other_parts_run_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PARTS", dict.fromkeys(["tests", "networks"]))
    out = tmp_path / "check"
    assert main(["--minutes", "8", "--out", str(out), "--dry-run"]) == 1
    parts = pd.read_csv(out / "parts.csv")
    assert parts.end.tolist() == ["failed", "done"]
    assert "RuntimeError: CUDA error: an illegal memory access" in parts.note[0]
    assert "Traceback" in parts.note[0]
    log = (out / "log.md").read_text()
    assert "### networks: done\n\n| value | tiny |\n| --- | --- |\n| 2 | True |" in log
    assert "### tests: failed\n\n| value |\n| --- |\n| 1 |" in log


@pytest.mark.usefixtures("replaced")
def test_a_part_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    args = gpu_check.build_parser().parse_args(["--out", str(tmp_path), "--dry-run"])
    assert gpu_check.run_part("small", args, most=1.0).end == "out of time"


def test_parts_that_no_longer_fit_are_listed(tmp_path: Path) -> None:
    out = tmp_path / "check"
    assert main(["--minutes", "1e-9", "--out", str(out), "--dry-run"]) == 0
    assert set(pd.read_csv(out / "parts.csv").end) == {"skipped"}
    assert (out / "log.md").read_text().count(": skipped") == len(gpu_parts.PARTS)


def test_each_part_has_a_least_time() -> None:
    assert LEAST.keys() == gpu_parts.PARTS.keys()


@NO_GPU
@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--minutes", "0", "--dry-run"], "error: --minutes: 0; accepted: a number above 0"),
        (["--minutes", "nan", "--dry-run"], "error: --minutes: nan; accepted: a number above 0"),
        ([], "error: no CUDA device is here; accepted: a machine with one, or --dry-run"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "check"), *options]) == 2
    err = capsys.readouterr().err
    assert error in err
    assert err.count("\n") == 1
    assert not (tmp_path / "check").exists()


def test_a_folder_with_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "parts.csv").write_text("earlier")
    assert main(["--out", str(tmp_path), "--dry-run"]) == 2
    assert "is not empty; accepted: a new folder" in capsys.readouterr().err


def test_an_unknown_part_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_parts.main(["network", "--out", str(tmp_path)]) == 2
    assert "did you mean 'networks'" in capsys.readouterr().err
