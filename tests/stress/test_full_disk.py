"""A full disk ends a search in one line, and the same command resumes once there is room."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

import res2net.files
from res2net.errors import UserError
from search import runs
from search.api import search
from search.study.trials import SCORED
from trainers.datasets.data import Data

from . import full_disk


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root may mount a small disk")
@pytest.mark.parametrize("options", ["--executor local", "--executor tune --rooms 400 900"], ids=["local", "tune"])
def test_on_a_small_disk(options: str, capfd: pytest.CaptureFixture) -> None:
    code = full_disk.main(options.split())
    out, error = capfd.readouterr()
    if "mount: not permitted" in error:
        pytest.skip(error)
    assert code == 0, out + error
    assert "lost: 0, doubled: 0, left RUNNING or WAITING: 0" in out


class TestEveryWrite:
    """Each file that a search writes meets a full disk once."""

    @pytest.fixture
    def refuse(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Return a function that makes the disk full for files of a name (a glob pattern)."""
        fsync = os.fsync

        def refuse(name: str) -> None:
            def full(number: int) -> None:
                if Path(os.readlink(f"/proc/self/fd/{number}")).match(f".{name}.*.tmp"):
                    raise OSError(errno.ENOSPC, "No space left on device")
                fsync(number)

            monkeypatch.setattr(res2net.files.os, "fsync", full)

        return refuse

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the written file in /proc")
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
    """Return an exception that wraps `error`, as Optuna and Tune do."""
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
