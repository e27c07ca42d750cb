"""A run's folder: `run.json` says what was searched, `study.db` what was found, `weights/` what it learned."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from res2net.errors import UserError
from res2net.files import write_atomic
from search.settings import FREE_OF_DRIVERS, Settings
from space import Space
from trainers.datasets.data import Data, get
from trainers.meta import environment

RUN_FILE, LOCK_FILE, WEIGHTS, ARTIFACTS = "run.json", ".lock", "weights", "artifacts"
KEEP_BYTES = 2 * 2**30  # of weights; beyond it those of dominated networks go, the oldest first


def new_name(settings: Settings) -> str:
    """A name for a run that was given none: the space, the data and the time."""
    space = Path(settings.space).stem
    data = get(settings.data).name  # an import path holds a colon, which some file systems refuse
    return f"{space}-{data}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def read(folder: Path) -> dict[str, Any]:
    """The content of `run.json`; `UserError` for a folder that holds no run."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise UserError(f"run folder {str(folder)!r}: {RUN_FILE} is missing; accepted: the --out of a search")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("settings", "space")):
        raise UserError(f"{path}: not the settings and the space of a search")
    return content


def settings_of(folder: Path) -> Settings:
    return Settings.from_dict(read(folder)["settings"])


def space_of(folder: Path) -> Space:
    return Space.from_dict(read(folder)["space"])


def space_for(folder: Path, settings: Settings, data: Data) -> Space:
    """The space of the settings, for the data's classes and image size.

    Of a search that goes on and whose YAML file is gone, the one it wrote down.
    """
    if (
        settings.space.endswith((".yaml", ".yml"))
        and not Path(settings.space).exists()
        and (folder / RUN_FILE).exists()
    ):
        return space_of(folder)
    return settings.get_space(data.num_classes, data.image_size, data.in_channels)


def check(folder: Path, settings: Settings, space: Space) -> None:
    """`UserError` if the folder holds another search (says what differs), or something that is no search."""
    if not folder.exists() or not (folder / RUN_FILE).exists():
        if folder.is_dir() and any(p.name != LOCK_FILE and p not in _unfinished(folder) for p in folder.iterdir()):
            raise UserError(f"--out: {str(folder)!r} holds files but no search; accepted: a new folder, or a search's")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out: {str(folder)!r} is a file; accepted: a folder")
        return
    _refuse(f"--out: {str(folder)!r}", settings.differences(settings_of(folder)), space_of(folder), settings, space)


def check_study(search: dict[str, Any], settings: Settings, space: Space) -> None:
    """`UserError` if the shared study is of another search; `search` is what `described` gave its first driver."""
    different = settings.differences(Settings.from_dict(search["settings"]), FREE_OF_DRIVERS)
    _refuse(f"--study: {settings.study!r}", different, Space.from_dict(search["space"]), settings, space)


def described(settings: Settings, space: Space) -> dict[str, Any]:
    """What is searched, and how, for other drivers to compare theirs with."""
    return {"settings": replace(settings, storage=None, study=None).to_dict(), "space": space.to_dict()}


def _refuse(where: str, different: list[str], before: Space, settings: Settings, space: Space) -> None:
    if not different and before.to_dict() != space.to_dict():
        different = [f"another content of --space {settings.space}"]
    if different:
        new = "a new folder" if where.startswith("--out") else "another --study"
        raise UserError(f"{where} holds a search with {'; '.join(different)}; accepted: the same settings, or {new}")


def open_run(folder: Path, settings: Settings, space: Space, data: dict[str, Any]) -> int:
    """Write `run.json`, or add this session to the one that is there; returns the session's number, from 0."""
    for path in _unfinished(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    old = read(folder) if (folder / RUN_FILE).exists() else {"created": now, "sessions": []}
    content = {
        "settings": settings.to_dict(),
        "space": space.to_dict(),
        "data": data,
        "created": old["created"],
        "sessions": [*old["sessions"], {"started": now, **environment()}],
    }
    write_atomic(folder / RUN_FILE, json.dumps(content, indent=2) + "\n")  # first: without it, the folder is no run
    (folder / WEIGHTS).mkdir(exist_ok=True)
    (folder / ARTIFACTS).mkdir(exist_ok=True)
    return len(old["sessions"])


def _unfinished(folder: Path) -> list[Path]:
    """What a driver that was killed was writing: its temporary files, and `best/` on its way."""
    return [*folder.glob(".*.tmp"), *folder.glob("[!.]*/.*.tmp"), *folder.glob(".best.*")]


@contextlib.contextmanager
def disk_watched(folder: Path) -> Iterator[None]:
    """`UserError` where a disk is full, and says which; whatever wrote, and through whatever wrapped its error."""
    try:
        yield
    except Exception as error:
        places = [p for p in (folder, Path(tempfile.gettempdir())) if p.exists()]
        full = min(places, key=lambda place: shutil.disk_usage(place).free)
        if not _disk_full(error, shutil.disk_usage(full).free):
            raise
        raise UserError(
            f"--out: the disk of {str(full)!r} is full; accepted: the same command, once there is room: "
            "it goes on, and nothing is lost"
        ) from None


def _disk_full(error: BaseException | None, free: int) -> bool:
    """Whether the error, or what it was raised from, comes of a full disk; `free` are the bytes left."""
    if isinstance(error, sqlite3.Error):
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF  # of an extended code, the low byte
        # What WAL shares between processes is a file too, and where that cannot grow it says an I/O error.
        return kind == sqlite3.SQLITE_FULL or (kind == sqlite3.SQLITE_IOERR and free < 2**20)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return error is not None and _disk_full(error.__cause__ or error.__context__, free)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it against a second driver; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--out: a search is running in {str(folder)!r}; accepted: another folder") from None
        yield


def weights_path(folder: Path, number: int) -> Path:
    return folder / WEIGHTS / f"{number}.safetensors"


def keep_weights(folder: Path, number: int, weights: bytes, front: set[int]) -> None:
    """Store a trial's weights; make room by those of dominated trials."""
    files = sorted((folder / WEIGHTS).glob("*.safetensors"), key=lambda p: int(p.stem))
    total = sum(f.stat().st_size for f in files) + len(weights)
    for file in files:
        if total <= KEEP_BYTES:
            break
        if int(file.stem) not in front:
            total -= file.stat().st_size
            file.unlink()
    write_atomic(weights_path(folder, number), weights)
