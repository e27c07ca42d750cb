"""Disks that fail at the n-th call, for tests of files that are written whole or not at all."""

import builtins
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from res2net import files


def listing(folder: Path) -> list[str]:
    """Return every path under `folder`, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class Disk:
    """A disk that fails at the n-th call of one kind."""

    def __init__(self, fail_at: int) -> None:
        self.left = fail_at

    def tick(self) -> None:
        self.left -= 1
        if not self.left:
            raise OSError(28, "No space left on device")


def fail_replacing(disk: Disk, patch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def fake(*args: Any, **kwargs: Any) -> None:
        disk.tick()
        replace(*args, **kwargs)

    patch.setattr(os, "replace", fake)


def fail_flushing(disk: Disk, patch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def fake(file: int) -> None:
        disk.tick()
        fsync(file)

    patch.setattr(os, "fsync", fake)


class HalfWritten:
    """A file that writes the first half of its data, may fail, and writes the rest."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def __enter__(self) -> "HalfWritten":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        self._file.write(data[: len(data) // 2])
        self._disk.tick()
        self._file.write(data[len(data) // 2 :])
        return len(data)


def fail_writing(disk: Disk, patch: pytest.MonkeyPatch) -> None:
    def fake(*args: Any, **kwargs: Any) -> HalfWritten:
        return HalfWritten(builtins.open(*args, **kwargs), disk)

    patch.setattr(files, "open", fake, raising=False)


def fails(fault: Callable[[Disk, pytest.MonkeyPatch], None], fail_at: int, action: Callable[[], Any]) -> None:
    """Check that `action` meets the fault and raises its error."""
    with pytest.MonkeyPatch.context() as patch:
        fault(Disk(fail_at), patch)
        with pytest.raises(OSError, match="No space left"):
            action()


FAULTS = [
    *(pytest.param(fail_writing, n, id=f"write-{n}") for n in (1, 2)),
    *(pytest.param(fail_flushing, n, id=f"flush-{n}") for n in (1, 2)),
    *(pytest.param(fail_replacing, n, id=f"replace-{n}") for n in (1, 2, 3, 4)),
]
