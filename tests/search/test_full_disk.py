"""A full disk ends a search in one line, and the same command goes on once there is room."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import res2net.files
from res2net.errors import UserError
from search import runs
from search.api import search
from search.study.storage import read
from search.study.trials import SCORED
from studies.synthetic import Synthetic
from trainers.datasets.data import Data

WORK = Synthetic(weights=True)

# Run by root in a mount namespace of its own. Each search has a disk of so little room that it gets so far; then more.
SCRIPT = """
import subprocess, sys
from pathlib import Path
import numpy as np
import trainers.datasets.data
from search import run
from trainers.datasets.data import Data, Split

disk, space, executor, *rooms = sys.argv[1:]
split = Split(np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8), np.arange(40) % 10)
trainers.datasets.data.load = lambda *_, **__: Data("shapes", tuple("abcdefghij"), split, split, (0.5,) * 3, (0.3,) * 3)
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", disk]).returncode:
    sys.exit(77)
command = f"--space {space} --executor {executor} --workers 1 --trials 3 --epochs 3 --batch-size 20 --out".split()
for room in rooms:
    folder = f"{disk}/{room}"
    # A size of 0 would be no limit at all.
    used = int(subprocess.check_output(["du", "-sk", disk]).split()[0])
    subprocess.run(["mount", "-o", f"remount,size={max(4, used + int(room))}k", disk], check=True)
    codes = [run.main([*command, folder])]
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    codes.append(run.main([*command, folder]))
    print("codes", room, *codes, flush=True)
subprocess.run(["cp", "-r", disk, f"{disk}-copy"], check=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root may mount a small disk")
@pytest.mark.parametrize(
    ("executor", "rooms"), [("local", (0, 40, 250, 400, 600, 900, 5000)), ("tune", (400, 900))], ids=["local", "tune"]
)
def test_on_a_small_disk(executor: str, rooms: tuple[int, ...], tiny_space: Path, tmp_path: Path) -> None:
    """Of several sizes, in KB, so that it fills up at other files: the study, weights, tables, the front's page."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", SCRIPT, str(disk), str(tiny_space), executor, *map(str, rooms)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"mounting is not permitted: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("codes")] == [f"codes {r} 2 0" for r in rooms]
    said = [line for line in done.stderr.splitlines() if line]
    assert len(said) == len(rooms), done.stderr
    for room, line in zip(rooms, said, strict=True):
        assert line.startswith(f"python -m search.run: error: --out: the disk of '{disk}"), line
        assert f"{room}' is full; accepted: the same command, once there is room" in line or room == 0
        folder = tmp_path / "disk-copy" / str(room)
        records = list(read(folder))
        scored = [r.key for r in records if r.outcome == SCORED]
        assert len(scored) == len(set(scored)) == 3
        assert not [r for r in records if r.state in ("RUNNING", "WAITING")]
        assert all(runs.weights_path(folder, r.number).is_file() for r in records if r.outcome == SCORED)
        assert list(folder.rglob(".*.tmp")) == []
        assert list((folder / "checkpoints").iterdir()) == []


class TestEveryWrite:
    """The files that a search writes, each refused by the disk once."""

    @pytest.fixture
    def refuse(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """From now on there is no room for files of this name."""
        fsync = os.fsync

        def refuse(name: str) -> None:
            def full(number: int) -> None:
                if Path(os.readlink(f"/proc/self/fd/{number}")).match(f".{name}.*.tmp"):
                    raise OSError(errno.ENOSPC, "No space left on device")
                fsync(number)

            monkeypatch.setattr(res2net.files.os, "fsync", full)

        return refuse

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds out by /proc what is written")
    @pytest.mark.parametrize(
        "name", ["run.json", "[0-9].pt", "[0-9].safetensors", "trials.csv", "pareto.png", "pareto.html", "arch.json"]
    )
    def test_is_one_line_and_loses_nothing(
        self,
        name: str,
        refuse: Callable,
        loaded: Data,
        make_settings: Callable,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        settings, folder = make_settings(trials=3, epochs=3), tmp_path / "run"
        with monkeypatch.context():
            refuse(name)
            with pytest.raises(UserError, match=r"^`out`: the disk of '.*' is full; accepted: the same command"):
                search(settings, folder)
            monkeypatch.undo()
        monkeypatch.setattr("trainers.datasets.data.load", lambda *_, **__: loaded)
        assert list(folder.rglob(".*.tmp")) == []
        result = search(settings, folder)
        assert (result.trials.outcome == SCORED).sum() == 3
        assert result.trials[result.trials.outcome == SCORED].key.is_unique
        assert not result.trials.state.isin(["RUNNING", "WAITING"]).any()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("no luck"), False),
        (sqlite3.OperationalError("database is locked"), False),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception, full: bool, tmp_path: Path) -> None:
    for wrapped in (error, _raised_from(error)):
        with pytest.raises(UserError if full else type(wrapped)), runs.disk_watched(tmp_path):
            raise wrapped


def _raised_from(error: Exception) -> Exception:
    """As Optuna and Tune wrap what went wrong."""
    wrapped = RuntimeError("the trial's result could not be handled")
    wrapped.__cause__ = error
    return wrapped


def test_a_database_says_itself_that_its_disk_is_full(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "small.db")
    connection.execute("PRAGMA max_page_count = 2")
    connection.execute("CREATE TABLE t (x)")
    with pytest.raises(UserError, match="is full"), runs.disk_watched(tmp_path):
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()
