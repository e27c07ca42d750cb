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
from search.study import SCORED, read
from studies.synthetic import Synthetic
from trainers.data import Data

WORK = Synthetic(weights=True)

# Run as root in mount namespaces of their own: a disk of a few MB, filled up, tried, emptied, tried again.
SCRIPT = """
set -u
mount -t tmpfs -o size=$SIZE none "$DISK" || exit 77
set +e
$SEARCH --out "$DISK/run" $1 > "$LOG/first.out" 2> "$LOG/first.err"
echo $? > "$LOG/first.code"
head -c 100M /dev/zero > "$DISK/ballast" 2> /dev/null
$SEARCH --out "$DISK/run" $2 > "$LOG/second.out" 2> "$LOG/second.err"
echo $? > "$LOG/second.code"
rm -f "$DISK/ballast"
mount -o remount,size=200m "$DISK"
$SEARCH --out "$DISK/run" $2 > "$LOG/third.out" 2> "$LOG/third.err"
echo $? > "$LOG/third.code"
cp -r "$DISK/run" "$LOG/run"
"""


def said(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root may mount a small disk")
@pytest.mark.parametrize("size", ["6m", "6400k", "7m"])
@pytest.mark.parametrize("executor", ["local", "tune"])
def test_on_a_small_disk(executor: str, size: str, tiny_space: Path, tmp_path: Path) -> None:
    """Of three sizes, so that it fills up at different files: the front's page takes 5 MB of it."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    log.mkdir()
    command = f"{sys.executable} -m search.run --space {tiny_space} --executor {executor} --train-images 100"
    env = os.environ | {"DISK": str(disk), "LOG": str(log), "SIZE": size, "OMP_NUM_THREADS": "1"}
    options = ["--trials 3 --epochs 3 --workers 1", "--trials 6 --epochs 3 --workers 1"]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", SCRIPT, "bash", *options],
        env=env | {"SEARCH": command},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"mounting is not permitted: {done.stderr}")
    assert done.returncode == 0, done.stderr
    for attempt in ("first", "second"):
        if said(log / f"{attempt}.code") != ["0"]:
            (line,) = said(log / f"{attempt}.err")
            assert line.startswith(
                f"python -m search.run: error: --out: the disk of '{disk / 'run'}' is full; accepted"
            )
            assert said(log / f"{attempt}.code") == ["2"]
    assert said(log / "second.code") == ["2"]
    assert (said(log / "third.code"), said(log / "third.err")) == (["0"], [])
    records = list(read(log / "run"))
    scored = [r.key for r in records if r.outcome == SCORED]
    assert len(scored) == len(set(scored)) == 6
    assert not [r for r in records if r.state in ("RUNNING", "WAITING")]
    assert all(runs.weights_path(log / "run", r.number).is_file() for r in records if r.outcome == SCORED)
    assert list((log / "run").rglob(".*.tmp")) == []
    assert list((log / "run/checkpoints").iterdir()) == []


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
            with pytest.raises(UserError, match=r"^--out: the disk of '.*' is full; accepted: the same command"):
                search(settings, folder)
            monkeypatch.undo()
        monkeypatch.setattr("trainers.data.load", lambda *_, **__: loaded)
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
