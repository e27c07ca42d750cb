"""Fetch an official archive: check size and MD5, unpack into a temporary folder, rename to the final folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from res2net.errors import UserError

CHUNK = 1 << 20  # bytes read at once from the network
TIMEOUT = 60  # seconds to wait for the server's next bytes
# Refuse paths outside the folder. Python 3.11.0 to 3.11.3 cannot refuse them, so there only the MD5 protects the user.
SAFE: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


@dataclass(frozen=True, slots=True)
class Archive:
    """A .tar.gz file, with the size and the MD5 that its publisher lists."""

    url: str
    size: int  # bytes
    md5: str


def fetch(archive: Archive, folder: Path, check: Callable[[Path], None]) -> None:
    """Download the archive and unpack the archive's folder `folder.name` to `folder`.

    check: called with the unpacked folder; raises if the folder is incomplete.

    A failed download raises `UserError` and leaves no files.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Unpack beside the final place, so that the last step is an atomic rename within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            path = Path(temporary) / "archive"
            _download(archive, path)
            with tarfile.open(path, "r:gz") as tar:
                tar.extractall(temporary, **SAFE)
            check(Path(temporary) / folder.name)
            os.rename(Path(temporary) / folder.name, folder)
    except (OSError, http.client.HTTPException, tarfile.TarError) as error:
        raise UserError(
            f"`download`: {archive.url} could not be fetched into {folder.parent}: {error or type(error).__name__}; "
            f"accepted: a network that reaches it, or `data_dir` with {folder.name}"
        ) from error


def _download(archive: Archive, to: Path) -> None:
    """Download the archive to the file `to`. Raise `UserError` if size or MD5 differ from the publisher's values."""
    digest = hashlib.md5(usedforsecurity=False)
    size = 0
    with urllib.request.urlopen(archive.url, timeout=TIMEOUT) as source, to.open("wb") as sink:
        # Stop after the expected size: an endless answer must not fill the disk.
        while size <= archive.size and (chunk := source.read(CHUNK)):
            sink.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if size != archive.size:
        more = " or more" if size > archive.size else ""
        raise UserError(f"`download`: {archive.url} gave {size}{more} bytes; expected {archive.size}")
    if digest.hexdigest() != archive.md5:
        raise UserError(f"`download`: {archive.url} has MD5 {digest.hexdigest()}; expected {archive.md5}")
