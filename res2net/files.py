"""Write files and folders under temporary names, then rename them. A crash leaves no partial content."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file atomically: write a temporary file in the same folder, flush it to the disk, rename it to `path`."""
    data = content.encode() if isinstance(content, str) else content
    # The process id in the name keeps apart two processes that write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            # Without the flush, a power failure after the rename can leave an empty file under the final name.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(folder: Path, fill: Callable[[Path], None], keep: Callable[[str], bool] = lambda name: False) -> None:
    """Let `fill` write into a temporary folder, then rename the temporary folder to `folder`.

    An existing folder is deleted. So callers must first check it, for example with `res2net.folder.check_replaceable`.
    keep: whether a file or folder of this name moves from the existing folder to the new one.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not in the system's temporary folder, because a rename cannot cross file systems.
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    old = temporary.with_name(temporary.name + ".old")
    try:
        temporary.chmod(0o755)  # mkdtemp creates folders that only their owner can read
        fill(temporary)
        # A rename cannot replace a folder that is not empty, so move the existing folder away. If the second rename
        # fails, move it back. A crash between both renames leaves the existing folder under the name `old`.
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
        except BaseException:
            if old.exists():
                os.replace(old, folder)
            raise
        for path in old.iterdir() if old.exists() else ():
            if keep(path.name):
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)  # after an error, it may still have files to keep
