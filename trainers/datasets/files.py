"""Load image files and their masks into memory: check the free memory, decode in threads, leave damaged files out."""

from __future__ import annotations

import math
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
from trainers.datasets.pairs import MaskError, colour_of, decode_onto, decode_pair, pair_view
from trainers.decode import Choose, centre_view, decode, decoders, random_view
from trainers.meta import cores

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's normalisation, per channel, in 0..1
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_SIZE = 224  # pixels along a side; largest size that `guess_size` returns for images without masks
MAX_MASK_SIZE = 513  # the same for images with masks: the size of DeepLab's crops
PROBED = 100  # number of files whose headers `guess_size` reads
CHUNK = 16  # images that a thread decodes per task: large enough to hide the cost of a task
SHOWN = 2000  # minimum number of images for a progress bar: decoding fewer images takes less time than reading the bar


def guess_size(files: Files) -> int:
    """Return the median shorter side of evenly spread files, limited to 8..224 pixels. Only headers are read.

    Images with masks are not cropped. For them, return the median longer side, limited to 8..513 pixels.
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
    """Report the unreadable images, masks or annotations of a data split: name each of them once on stderr.

    Raise `UserError` if there are too many.

    total: number of all entries, readable or not. what: their name in the error.
    """

    def __init__(self, total: int, what: str = "images") -> None:
        # Accept 10 or one in a thousand, whichever is more, but never all.
        self.total, self.what = total, what
        self.limit = min(max(10, total // 1000), max(0, total - 1))
        self._names: set[str] = set()
        self._lock = threading.Lock()  # decoding threads report at the same time
        self._error: UserError | None = None

    @classmethod
    def of(cls, files: Files) -> Damaged:
        """Return a report without entries, for these files."""
        return cls(len(files), "images" if files.masks is None else "images with masks")

    def add(self, path: str, error: Exception) -> None:
        """Report a file or an annotation as left out. Raise `UserError` once the limit is passed."""
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


def target_form(files: Files) -> tuple[tuple[int, ...], torch.dtype] | None:
    """Return the shape and the type of the target that is decoded with each image. None: the target is a class."""
    size = files.image_size
    if files.annotations is not None:
        return files.annotations.form(size)
    return None if files.masks is None else ((size, size), torch.uint8)


def choose_view(files: Files, row: int, resize: int, flip: bool = False, seed: int | None = None) -> Choose:
    """Return the function that chooses the view of an image.

    resize: shorter side of a scored image before the centre square is cut out, if its target is a class number.
    flip: whether to mirror a training image with probability 1/2. seed: of the random crop; None for scoring.
    """
    if files.annotations is not None:
        return files.annotations.choose(row, files.image_size, flip, seed)
    if files.masks is not None:
        return pair_view(files.image_size, flip, seed)
    return partial(centre_view, resize) if seed is None else partial(random_view, files.image_size, flip, seed)


def decode_row(
    files: Files,
    row: int,
    choose: Choose,
    damaged: Damaged,
    pixels: torch.Tensor,
    target: torch.Tensor | None,
    colour: tuple[int, ...],
) -> bool:
    """Decode the view of an image into `pixels`, and the same view of its mask or annotations into `target`.

    pixels: uint8 [size, size, 3]. target: see `target_form`. colour: the colour of the padding.

    Return False for a damaged file, which is reported.
    """
    path = f"{files.root}/{files.paths[row]}"
    try:
        if target is None:
            decode(path, choose, pixels)
        elif files.annotations is not None:
            view, shape = decode_onto(path, choose, colour, pixels)
            files.annotations.draw(row, view, shape, files.image_size, target)
        elif files.masks is not None:
            decode_pair(path, f"{files.root}/{files.masks[row]}", files.mask_classes, choose, colour, pixels, target)
    except MaskError as error:
        damaged.add(error.path, error)
    except Exception as error:  # decoders raise almost anything on a damaged file
        damaged.add(path, error)
    else:
        return True
    return False


def to_split(files: Files, console: Console | None = None) -> Split:
    """Return the decoded images, without damaged files.

    The shorter side of each image is resized to `image_size`, and the centre square is kept. An image with a mask or
    annotations is kept whole. It is padded with the mean colour of ImageNet's images.
    console: shows a progress bar for many files.

    Raise `UserError` if the images do not fit into memory, or if too many files are damaged (see `Damaged`).
    """
    size, form = files.image_size, target_form(files)
    check_memory(len(files), size, 3 + (math.prod(form[0]) * form[1].itemsize / size**2 if form else 0))
    images = np.empty((len(files), 3, size, size), np.uint8)
    targets = torch.empty((len(files), *form[0]), dtype=form[1]) if form else None
    labels = files.labels if targets is None else targets.numpy()
    damaged = Damaged.of(files)
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeRemainingColumn())
    shown = console is not None and len(files) >= SHOWN
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar, decoders(cores()) as pool:
        task = bar.add_task("", total=len(files))
        starts = range(0, len(files), CHUNK)
        chunks: list[Future[list[int]]] = [pool.submit(_fill, files, images, targets, i, damaged) for i in starts]
        lost: list[int] = []
        for chunk in chunks:
            lost += chunk.result()
            bar.advance(task, CHUNK)
    if not lost:
        return Split(images, labels)
    return Split(np.delete(images, lost, 0), np.delete(labels, lost, 0))


def _fill(files: Files, images: np.ndarray, targets: torch.Tensor | None, start: int, damaged: Damaged) -> list[int]:
    """Decode the chunk that begins at row `start` into `images` and `targets`.

    Return the rows of damaged files.
    """
    size, colour = files.image_size, colour_of(MEAN)
    pixels, lost = torch.empty(size, size, 3, dtype=torch.uint8), []
    for row in range(start, min(start + CHUNK, len(files))):
        target = None if targets is None else targets[row]
        if not decode_row(files, row, choose_view(files, row, size), damaged, pixels, target, colour):
            lost.append(row)
        images[row] = pixels.permute(2, 0, 1).numpy()
    return lost


def check_memory(count: int, size: int, channels: float, fixed: bool = False) -> None:
    """Raise `UserError` if the images need more than half of the free memory: the training needs the rest.

    channels: bytes per pixel, for an image and its target together.
    fixed: whether the setting `train_images` does not change the number of images.
    """
    free = _free_memory()
    if free is None:
        return
    needed, room = count * channels * size * size, free // 2
    if needed > room:
        fits, side = int(room // (channels * size * size)), int((room / (channels * count)) ** 0.5)
        fewer = "" if fixed else f"`train_images` up to about {fits}, or "
        raise UserError(
            f"`image_size`: {count} images of {size} x {size} need {needed / 2**30:.1f} GiB, and half of the free "
            f"memory is {room / 2**30:.1f} GiB; accepted: {fewer}`image_size` up to {side}"
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
