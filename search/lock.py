"""A lock on a folder, held by one process at a time. The lock ends when the process ends, even by a kill."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from res2net.errors import UserError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock inside the block; raise `UserError` if another process holds it. Make a missing folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"`out`: a search is running in {str(folder)!r}; accepted: another folder") from None
    try:
        yield
    finally:
        lock.release()
