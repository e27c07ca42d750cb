"""A program that searched on Ray ends with its own exit code, also after a Ctrl-C in the middle of the search."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
import trainers.datasets.data
from search import Settings, search
from studies.synthetic import Synthetic
from trainers.datasets.data import Data, Split

folder, waits = Path(sys.argv[1]), sys.argv[2] == "waits"
split = Split(np.zeros((10, 3, 8, 8), np.uint8), np.arange(10))
trainers.datasets.data.load = lambda *_, **__: Data("shapes", tuple("abcdefghij"), split, split, (0.5,) * 3, (0.5,) * 3)

def work(job, data):
    for report in Synthetic()(job, data):
        if waits and job.number >= 2:
            (folder.parent / "waits").touch()
            time.sleep(0.2)
        yield report

epochs = 30 if waits else 2
settings = Settings(space="scale_card", per_stage=True, trials=4, epochs=epochs, sampler="random", workers=2)
result = search(settings, folder, work=work)
print(result.interrupted, result.ledger.spent, flush=True)
sys.exit(7)
"""


def start(folder: Path, how: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    command = [sys.executable, "-c", PROGRAM, str(folder), how]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


@pytest.mark.slow
def test_after_a_whole_search(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "runs")
    out, error = process.communicate(timeout=200)
    assert (process.returncode, out, error) == (7, "False 4\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))  # without the handler, one interrupted search in four crashed at exit
def test_after_an_interrupted_search(attempt: int, tmp_path: Path) -> None:
    process = start(tmp_path / "run", "waits")
    try:
        deadline = time.monotonic() + 150
        while not (tmp_path / "waits").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, error) == (7, "")
    assert out.startswith("True ")
