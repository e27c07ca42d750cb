"""Load image files and their masks into memory: check the free memory, decode in threads, leave damaged files out."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from res2net.errors import UserError
from trainers.datasets.base import MIN_SIZE, Files, Split
from trainers.datasets.pairs import MaskError, colour_of, decode_pair, whole_view
from trainers.decode import Choose, centre_view, decode, decoders
from trainers.meta import cores

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images, per channel, in 0..1
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_SIZE = 224  # pixels along a side; largest size that `guess_size` returns for images without masks
MAX_MASK_SIZE = 513  # the same for images with masks: the size of DeepLab's crops
PROBED = 100  # number of files whose headers `guess_size` reads
CHUNK = 16  # images that a thread decodes per task: large enough to hide the cost of a task
SHOWN = 2000  # minimum number of images for a progress bar; fewer images are decoded before a user can read it


def guess_size(files: Files) -> int:
    """Return the median shorter side of evenly spread files, limited to 8..224 pixels. Only headers are read.

    For images with masks, return the median longer side, limited to 8..513 pixels: these images are kept whole.
    """
    side, most = (min, MAX_SIZE) if files.masks is None else (max, MAX_MASK_SIZE)
    sides = []
    for i in np.unique(np.linspace(0, len(files) - 1, PROBED).round().astype(int)).tolist():
        try:
            with Image.open(files.root / files.paths[i]) as image:
                sides.append(side(image.size))
        except Exception:  # Pillow raises almost anything on a damaged file
            continue
    if not sides:
        raise UserError(f"`data_dir`: no sampled image of {files.root} can be read; accepted: {', '.join(SUFFIXES)}")
    return max(MIN_SIZE, min(most, int(np.median(sides))))


def left_out(path: str, error: Exception) -> str:
    """Return the line that names an unreadable file and the reason."""
    # The text of an `UnidentifiedImageError` names an object in memory, not the file.
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "no image" if unknown else " ".join((str(error) or type(error).__name__).split())
    return f"{path}: left out, it cannot be read ({reason})"


class Damaged:
    """The unreadable files of a data split, images and masks. Each file is named once on stderr.

    Too many files raise `UserError`.
    """

    def __init__(self, files: Files) -> None:
        # Accept 10 files or one in a thousand, whichever is more, but never all files.
        self.total = total = len(files)
        self.limit = min(max(10, total // 1000), max(0, total - 1))
        self.what = "images" if files.masks is None else "images with masks"
        self._names: set[str] = set()
        self._lock = threading.Lock()  # decoding threads report at the same time
        self._error: UserError | None = None

    def add(self, path: str, error: Exception) -> None:
        """Report a file as left out. Raise `UserError` once the limit is passed."""
        with self._lock:
            if path not in self._names and self._error is None:
                self._names.add(path)
                self._report(path, error)
            # Every later call raises the same error. So the text that a user sees is the same from every thread.
            if self._error is not None:
                raise self._error

    def _report(self, path: str, error: Exception) -> None:
        print(left_out(path, error), file=sys.stderr)
        if len(self._names) > self.limit:
            self._error = UserError(
                f"`data_dir`: {len(self._names)} of {self.total} {self.what} cannot be read, the last is {path}; "
                f"accepted: at most {self.limit}"
            )


def decode_row(
    files: Files,
    row: int,
    choose: Choose,
    damaged: Damaged,
    pixels: torch.Tensor,
    mask: torch.Tensor | None,
    colour: tuple[int, ...],
) -> bool:
    """Decode the view of an image into `pixels`, and that of its mask, if it has one, into `mask`.

    pixels: uint8 [size, size, 3]. mask: uint8 [size, size]. colour: fills the pixels beside an image with a mask.

    Return False for a damaged file, which is reported.
    """
    path = f"{files.root}/{files.paths[row]}"
    try:
        if files.masks is None or mask is None:
            decode(path, choose, pixels)
        else:
            decode_pair(path, f"{files.root}/{files.masks[row]}", files.mask_classes, choose, colour, pixels, mask)
    except MaskError as error:
        damaged.add(error.path, error)
    except Exception as error:  # decoders raise almost anything on a damaged file
        damaged.add(path, error)
    else:
        return True
    return False


def to_split(files: Files, console: Console | None = None) -> Split:
    """Return the decoded images, without damaged files.

    The shorter side of each image is resized to `image_size`, and the centre square is kept. An image with a mask is
    kept whole (`whole_view`). It is padded with the mean colour of ImageNet's images.
    console: shows a progress bar for many files.

    Raise `UserError` if the images do not fit into memory, or if too many files are damaged (see `Damaged`).
    """
    size = files.image_size
    _check_memory(len(files), size, 3 if files.masks is None else 4)
    images = np.empty((len(files), 3, size, size), np.uint8)
    labels = files.labels if files.masks is None else np.empty((len(files), size, size), np.uint8)
    damaged = Damaged(files)
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    shown = console is not None and len(files) >= SHOWN
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar, decoders(cores()) as pool:
        task = bar.add_task("", total=len(files))
        starts = range(0, len(files), CHUNK)
        chunks: list[Future[list[int]]] = [pool.submit(_fill, files, images, labels, i, damaged) for i in starts]
        lost: list[int] = []
        for chunk in chunks:
            lost += chunk.result()
            bar.advance(task, CHUNK)
    if not lost:
        return Split(images, labels)
    return Split(np.delete(images, lost, 0), np.delete(labels, lost, 0))


def _fill(files: Files, images: np.ndarray, labels: np.ndarray, start: int, damaged: Damaged) -> list[int]:
    """Decode the chunk that begins at row `start` into `images`, and its masks into `labels`.

    Return the rows of damaged files.
    """
    size, colour = files.image_size, colour_of(MEAN)
    choose = partial(centre_view if files.masks is None else whole_view, size)
    pixels, lost = torch.empty(size, size, 3, dtype=torch.uint8), []
    for row in range(start, min(start + CHUNK, len(files))):
        mask = None if files.masks is None else torch.from_numpy(labels[row])
        if not decode_row(files, row, choose, damaged, pixels, mask, colour):
            lost.append(row)
        images[row] = pixels.permute(2, 0, 1).numpy()
    return lost


def _check_memory(count: int, size: int, channels: int) -> None:
    """Raise `UserError` if the images need more than half of the free memory: the training needs the rest."""
    free = _free_memory()
    if free is None:
        return
    needed, room = count * channels * size * size, free // 2
    if needed > room:
        fits, side = room // (channels * size * size), int((room / (channels * count)) ** 0.5)
        raise UserError(
            f"`image_size`: {count} images of {size} x {size} need {needed / 2**30:.1f} GiB, and half of the free "
            f"memory is {room / 2**30:.1f} GiB; accepted: `train_images` up to about {fits}, or `image_size` up to "
            f"{side}"
        )


def _free_memory() -> int | None:
    """Return the number of bytes that processes may still allocate.

    On macOS, return the total memory instead. On Windows, return None, because both are unknown.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        # Read the available memory, not the free memory: only the available memory includes the page cache, which Linux
        # gives up on demand.
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
