"""Image folders, as ImageNet's: `DIR/train/<class>/*.JPEG` and `DIR/val/<class>/*.JPEG`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from res2net.errors import UserError
from trainers.decode import centre_view, decode, decoders
from trainers.meta import cores

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, in 0..1
KINDS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
LAYOUT = "a folder with train/ and val/, each with a folder of images for each class"
MAX_SIZE = 224  # pixels along a side that larger images are reduced to if no other size is asked for
MIN_SIZE = 8
CHUNK = 16  # images that a thread decodes at a time
SHOWN = 2000  # fewer images are decoded before a bar could be read

Part = Literal["train", "test"]


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """Image files and their class numbers."""

    root: Path
    paths: tuple[str, ...]  # below the root, sorted
    labels: np.ndarray  # int64 [N]
    image_size: int  # pixels along a side of what a network gets

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_channels(self) -> int:
        """Colour channels: all images are made RGB."""
        return 3

    def take(self, index: np.ndarray) -> Files:
        """These of the files."""
        return replace(self, paths=tuple(self.paths[i] for i in index.tolist()), labels=self.labels[index])


def scan(data_dir: str | Path | None, part: Part, image_size: int | None = None) -> tuple[tuple[str, ...], Files]:
    """The classes, which are the folders' sorted names, and a part's files; the size is guessed if None."""
    if image_size is not None:
        check_size(image_size)
    root = _root(data_dir, part)
    classes = _classes(root)
    found = [[f"{name}/{path}" for path in _images(f"{root}/{name}")] for name in classes]
    for name, paths in zip(classes, found, strict=True):
        if not paths:
            raise UserError(f"--data-dir: {root / name} holds no image; accepted: files ending in {', '.join(KINDS)}")
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(paths) for paths in found])
    files = Files(root, tuple(path for paths in found for path in sorted(paths)), labels, image_size or 0)
    return classes, files if image_size else replace(files, image_size=guess_size(files))


def scan_test(
    data_dir: str | Path | None, image_size: int | None = None, classes: tuple[str, ...] | None = None
) -> Files:
    """The test part's files, whose classes must be those given, or else the train part's, which also give the size."""
    if image_size is None:
        classes, train = scan(data_dir, "train")
        image_size = train.image_size
    expected = classes_of(data_dir) if classes is None else classes
    found, files = scan(data_dir, "test", image_size)
    _check_same(files.root, found, expected)
    return files


def classes_of(data_dir: str | Path | None) -> tuple[str, ...]:
    """The classes: the sorted names of train's folders."""
    return _classes(_root(data_dir, "train"))


def check_size(image_size: int) -> None:
    """`UserError` for a size that no network takes."""
    if image_size < MIN_SIZE:
        raise UserError(f"--image-size: {image_size} is too small; accepted: at least {MIN_SIZE} pixels along a side")


def _root(data_dir: str | Path | None, part: Part) -> Path:
    if data_dir is None:
        raise UserError(f"--data-dir: None, and --data folder needs one; accepted: {LAYOUT}")
    top = Path(data_dir).expanduser()
    root = top / ("train" if part == "train" else "val")
    if not root.is_dir():
        state = f"holds no {root.name}/" if top.is_dir() else "is no folder"
        raise UserError(f"--data-dir: {top} {state}; accepted: {LAYOUT}")
    return root


def _classes(root: Path) -> tuple[str, ...]:
    names = tuple(sorted(e.name for e in _entries(str(root)) if e.is_dir()))
    if len(names) < 2:
        state = f"a single class folder, {names[0]!r}" if names else "no class folder"
        raise UserError(f"--data-dir: {root} holds {state}; accepted: {LAYOUT}, of two classes or more")
    return names


def _check_same(root: Path, found: tuple[str, ...], expected: tuple[str, ...]) -> None:
    if found != expected:
        first = min(set(found) ^ set(expected))
        where = "is not among the classes of training" if first in found else "is missing"
        raise UserError(
            f"--data-dir: in {root}, with {len(found)} classes, {first!r} {where}; accepted: the same {len(expected)} "
            f"classes as in training"
        )


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (e for e in entries if not e.name.startswith("."))
    except OSError as error:
        raise UserError(f"--data-dir: {folder} cannot be read: {error.strerror}; accepted: {LAYOUT}") from None


def _images(folder: str) -> Iterator[str]:
    """Images in a folder and those inside it; no file is opened, and a link to a folder is not followed."""
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from (f"{entry.name}/{path}" for path in _images(entry.path))
        elif entry.name.lower().endswith(KINDS) and entry.is_file():
            yield entry.name


def guess_size(files: Files) -> int:
    """The median shorter side of a hundred files spread over all, by their headers; 224 at most."""
    sides = []
    for i in np.unique(np.linspace(0, len(files) - 1, 100).round().astype(int)).tolist():
        try:
            with Image.open(files.root / files.paths[i]) as image:
                sides.append(min(image.size))
        except Exception:  # a damaged file raises almost anything
            continue
    if not sides:
        raise UserError(
            f"--data-dir: no image of {files.root} that was tried can be read; accepted: {', '.join(KINDS)}"
        )
    return max(MIN_SIZE, min(MAX_SIZE, int(np.median(sides))))


class Damaged:
    """Files that cannot be read: each named once, and an error when they are more than a few."""

    def __init__(self, total: int) -> None:
        self.total, self.limit = total, min(max(10, total // 1000), max(0, total - 1))  # one is left in any case
        self._names: set[str] = set()
        self._lock = threading.Lock()
        self._error: UserError | None = None

    def add(self, path: str, error: Exception) -> None:
        """Say that a file is left out; `UserError` if that is, or was, one too many."""
        with self._lock:
            if path not in self._names and self._error is None:
                self._names.add(path)
                self._say(path, error)
            if self._error is not None:  # the same one, whichever thread is asked first
                raise self._error

    def _say(self, path: str, error: Exception) -> None:
        unknown = isinstance(error, UnidentifiedImageError)  # whose text is of our memory, not of the file
        reason = "no image" if unknown else " ".join((str(error) or type(error).__name__).split())
        print(f"{path}: left out, it cannot be read ({reason})", file=sys.stderr)
        if len(self._names) > self.limit:
            self._error = UserError(
                f"--data-dir: {len(self._names)} of {self.total} images cannot be read, the last is {path}; "
                f"accepted: at most {self.limit}"
            )


Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, 3, size, size], labels int64 [N]


def to_arrays(files: Files, size: int, console: Console | None = None) -> Arrays:
    """All images in memory, the shorter side resized to `size`, the centre square; those that are damaged left out."""
    _check_memory(len(files), size)
    images = np.empty((len(files), 3, size, size), np.uint8)
    damaged = Damaged(len(files))
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    shown = console is not None and len(files) >= SHOWN
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar, decoders(cores()) as pool:
        task = bar.add_task("", total=len(files))
        starts = range(0, len(files), CHUNK)
        chunks: list[Future[list[int]]] = [pool.submit(_fill, files, images, i, size, damaged) for i in starts]
        lost = []
        for chunk in chunks:
            lost += chunk.result()
            bar.advance(task, CHUNK)
    if not lost:
        return images, files.labels
    return np.delete(images, lost, 0), np.delete(files.labels, lost)


def _fill(files: Files, images: np.ndarray, start: int, size: int, damaged: Damaged) -> list[int]:
    """Decode one chunk into its rows; the rows that could not be."""
    pixels, lost = torch.empty(size, size, 3, dtype=torch.uint8), []
    for row in range(start, min(start + CHUNK, len(files))):
        path = f"{files.root}/{files.paths[row]}"
        try:
            decode(path, partial(centre_view, size), pixels)
        except Exception as error:  # a damaged file raises almost anything
            damaged.add(path, error)
            lost.append(row)
        images[row] = pixels.permute(2, 0, 1).numpy()
    return lost


def _check_memory(count: int, size: int) -> None:
    needed, room = count * 3 * size * size, _available() // 2
    if needed > room:
        fits, side = room // (3 * size * size), int((room / (3 * count)) ** 0.5)
        raise UserError(
            f"--image-size: {count} images of {size} x {size} take {needed / 2**30:.1f} GiB, and half of the free "
            f"memory is {room / 2**30:.1f}; accepted: --train-images up to about {fits}, or --image-size up to {side}"
        )


def _available() -> int:
    """Bytes of memory that are free, or would be if asked for."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
