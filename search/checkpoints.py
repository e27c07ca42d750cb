"""Files of trials in the run's folder: checkpoints to resume from, and trunks that larger networks grow from."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path

from res2net.files import write_atomic

CHECKPOINTS, TRUNKS = "checkpoints", "trunks"


class Checkpoints(MutableMapping[int, bytes]):
    """One file for each trial, by trial number: `checkpoints/N.pt`. The worker that reads a file validates it."""

    def __init__(self, run: Path, name: str = CHECKPOINTS) -> None:
        self._folder = run / name
        self._folder.mkdir(exist_ok=True)

    def __getitem__(self, number: int) -> bytes:
        try:
            return self._path(number).read_bytes()
        except FileNotFoundError:
            raise KeyError(number) from None
        except OSError:
            return b""  # unreadable: the worker refuses it, trains from the start and notes why

    def __setitem__(self, number: int, checkpoint: bytes) -> None:
        write_atomic(self._path(number), checkpoint)

    def __delitem__(self, number: int) -> None:
        if number not in self:
            raise KeyError(number)
        self._path(number).unlink()

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self._path(number).exists()

    def __iter__(self) -> Iterator[int]:
        return (int(path.stem) for path in self._folder.glob("*.pt") if path.stem.isdigit())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.pt"
