"""A run's folder: `run.json` holds the settings, `study.db` the trials, `weights/` the trained networks."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from res2net.errors import UserError
from res2net.files import write_atomic
from search.lock import LOCK_FILE
from search.settings import FREE, FREE_OF_DRIVERS, Settings
from search.study import storage
from search.study.trials import Record
from space import Space
from trainers.datasets.data import Data, get
from trainers.meta import environment

RUN_FILE, WEIGHTS, ARTIFACTS = "run.json", "weights", "artifacts"
T = TypeVar("T")
PACKAGE, FIRST_VERSION = "res2net-search", "0.1"  # version 0.1 wrote no version number, and settings without groups
KEEP_BYTES = 2 * 2**30  # limit on all weights of a run; beyond it, weights of dominated networks are deleted


def new_name(settings: Settings) -> str:
    """Return the default name of a new run: the space, the data and the time."""
    space = Path(settings.scope.space).stem
    data = get(settings.scope.data).name  # an import path holds a colon, which some file systems refuse
    return f"{space}-{data}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def read(folder: Path) -> dict[str, Any]:
    """Return the content of `run.json`; raise `UserError` for a folder that holds no run."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise UserError(f"run folder {str(folder)!r}: {RUN_FILE} is missing; accepted: the folder of a search")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), dict) for key in ("settings", "space")):
        raise UserError(f"{path}: not the settings and the space of a search")
    return content


def settings_of(folder: Path) -> Settings:
    """Return the settings of a run. For unknown settings, raise `UserError` with the version that wrote `run.json`."""
    return _value(folder, "settings", Settings.from_dict)


def records_of(folder: Path, may_lack: bool = False) -> list[Record]:
    """Return the records of a run's trials, from its folder or its shared study.

    may_lack: whether a run without a study has no records. Otherwise, raise `UserError`.
    """
    where = settings_of(folder).resources
    return list(storage.read(folder, where.storage, where.study, may_lack))


def space_of(folder: Path) -> Space:
    """Return the space of a run. For an unknown space, raise `UserError` with the version that wrote `run.json`."""
    return _value(folder, "space", Space.from_dict)


def _value(folder: Path, key: str, make: Callable[[Mapping[str, Any]], T]) -> T:
    content = read(folder)
    try:
        return make(content[key])
    except (UserError, KeyError, TypeError) as error:  # written by a newer version, or changed by hand
        wrote = content.get("version", FIRST_VERSION)
        raise UserError(f"{folder / RUN_FILE}, written by version {wrote} (this is {_version()}): {error}") from None


def _version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:  # a checkout that was never installed
        return "unknown"


def space_for(folder: Path, settings: Settings, data: Data) -> Space:
    """Return the space of the settings, for the data's classes and image size.

    A resumed search whose YAML file is gone uses the space in `run.json`.
    """
    path = settings.scope.space
    if settings.scope.base is None and (folder / RUN_FILE).exists():  # an earlier session may have had another default
        settings = settings.replace(base=space_of(folder).base)
    if path.endswith((".yaml", ".yml")) and not Path(path).exists() and (folder / RUN_FILE).exists():
        return space_of(folder)
    return settings.scope.get_space(data.num_classes, data.image_size, data.in_channels)


def check(folder: Path, settings: Settings, space: Space) -> None:
    """Raise `UserError` if the folder holds another search (the error names the differences) or other files."""
    if not settings.resources.storage:
        storage.sqlite_url(folder)  # raises for a path that cannot hold a study
    if not folder.exists() or not (folder / RUN_FILE).exists():
        if folder.is_dir() and any(p.name != LOCK_FILE and p not in _unfinished(folder) for p in folder.iterdir()):
            raise UserError(f"`out`: {str(folder)!r} holds files but no search; accepted: a new folder, or a search's")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"`out`: {str(folder)!r} is a file; accepted: a folder")
        return
    _refuse(
        f"`out`: {str(folder)!r}", settings.differences(settings_of(folder), FREE), space_of(folder), settings, space
    )


def check_study(search: dict[str, Any], settings: Settings, space: Space) -> None:
    """Raise `UserError` if the shared study holds another search. search: the first driver's `described`."""
    different = settings.differences(Settings.from_dict(search["settings"]), FREE_OF_DRIVERS)
    _refuse(f"`study`: {settings.resources.study!r}", different, Space.from_dict(search["space"]), settings, space)


def described(settings: Settings, space: Space) -> dict[str, Any]:
    """Return the description of a search for a shared study; drivers that join compare their settings with it."""
    return {"settings": settings.replace(storage=None, study=None).to_dict(), "space": space.to_dict()}


def _refuse(where: str, different: list[str], before: Space, settings: Settings, space: Space) -> None:
    """Raise `UserError` if settings differ, or if the space's content has changed (in its YAML file)."""
    if not different and before.to_dict() != space.to_dict():
        different = [f"another content of `space` {settings.scope.space}"]
    if different:
        new = "a new folder" if where.startswith("`out`") else "another `study`"
        raise UserError(f"{where} holds a search with {'; '.join(different)}; accepted: the same settings, or {new}")


def open_run(
    folder: Path, settings: Settings, space: Space, data: dict[str, Any], plan: dict[str, Any] | None = None
) -> int:
    """Write `run.json`, or add this session to it; return the session's number, from 0.

    plan: the plan of this session, and the measurements that it was made from.
    """
    for path in _unfinished(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    old = read(folder) if (folder / RUN_FILE).exists() else {"created": now, "sessions": []}
    content = {
        "version": _version(),
        "settings": settings.to_dict(),
        "space": space.to_dict(),
        "data": data,
        "created": old["created"],
        "sessions": [*old["sessions"], {"started": now, **environment(), "time": settings.budget.time, "plan": plan}],
    }
    # `run.json` is written first. After a kill, a folder with files but without `run.json` would be refused.
    write_atomic(folder / RUN_FILE, json.dumps(content, indent=2) + "\n")
    (folder / WEIGHTS).mkdir(exist_ok=True)
    (folder / ARTIFACTS).mkdir(exist_ok=True)
    return len(old["sessions"])


def note_spent(folder: Path, number: int, seconds: float) -> None:
    """Record the seconds that a session has taken so far."""
    content = read(folder)
    content["sessions"][number]["spent"] = round(seconds, 1)
    write_atomic(folder / RUN_FILE, json.dumps(content, indent=2) + "\n")


def time_left(folder: Path) -> float:
    """Return the seconds that the last session of a run left of its time; 0 without a run or a time."""
    if not (folder / RUN_FILE).exists():
        return 0.0
    last = read(folder)["sessions"][-1]
    return max(0.0, (last.get("time") or 0.0) - last.get("spent", 0.0))


def _unfinished(folder: Path) -> list[Path]:
    """Return the leftovers of a killed driver: temporary files, unfinished folders."""
    return [*folder.glob(".*.tmp"), *folder.glob("[!.]*/.*.tmp"), *folder.glob(".best.*"), *folder.glob(".included.*")]


@contextlib.contextmanager
def disk_watched(folder: Path) -> Iterator[None]:
    """Inside the block, turn any library's error about a full disk into a one-line `UserError` that names the disk."""
    try:
        yield
    except Exception as error:
        places = [p for p in (folder, Path(tempfile.gettempdir())) if p.exists()]
        full = min(places, key=lambda place: shutil.disk_usage(place).free)
        if not _disk_full(error, shutil.disk_usage(full).free):
            raise
        raise UserError(
            f"`out`: the disk of {str(full)!r} is full; accepted: the same command, once there is room: "
            "it resumes, and nothing is lost"
        ) from None


def _disk_full(error: BaseException | None, free: int) -> bool:
    """Return whether the error, or an error that caused it, is about a full disk. free: the bytes left on the disk."""
    if isinstance(error, sqlite3.Error):
        kind = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte of an extended code is the primary code
        # The write-ahead log's shared memory is a file. SQLite reports an I/O error if that file cannot grow.
        return kind == sqlite3.SQLITE_FULL or (kind == sqlite3.SQLITE_IOERR and free < 2**20)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return error is not None and _disk_full(error.__cause__ or error.__context__, free)


def weights_path(folder: Path, number: int) -> Path:
    """Return the file of a trial's weights."""
    return folder / WEIGHTS / f"{number}.safetensors"


def keep_weights(folder: Path, number: int, weights: bytes, front: set[int]) -> None:
    """Store a trial's weights. Beyond `KEEP_BYTES` in all, delete weights of dominated trials, oldest first."""
    files = sorted((folder / WEIGHTS).glob("*.safetensors"), key=lambda p: int(p.stem))
    total = sum(f.stat().st_size for f in files) + len(weights)
    for file in files:
        if total <= KEEP_BYTES:
            break
        if int(file.stem) not in front:
            total -= file.stat().st_size
            file.unlink()
    write_atomic(weights_path(folder, number), weights)
