"""Folders of images and masks: your own, or the folders in which salient-object data sets are distributed."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from res2net.errors import UserError
from trainers.datasets.base import VOID, DataSet, Files
from trainers.datasets.files import SUFFIXES, guess_size
from trainers.datasets.pairs import MaskError, read_mask
from trainers.decode import decoders
from trainers.meta import cores

MASK_SUFFIX = ".png"
CLASSES_FILE = "classes.txt"  # a name on each line, the background first
GUESSED = 200  # from this largest value on, masks may be grey masks, so their values are not taken for classes
PROBED = 20  # masks that are read to check that they are masks of salient objects

Part = Literal["train", "test"]
Pair = tuple[str, str]  # folder of images, folder of masks


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of the training part and of the test part below `data_dir`; None for a part that is missing."""

    train: Pair | None
    test: Pair | None

    def __str__(self) -> str:
        parts = [f"{part} in {_text(pair)}" for part, pair in (("train", self.train), ("test", self.test)) if pair]
        return ", ".join(parts)


def _text(pair: Pair) -> str:
    images, masks = pair
    if images != masks:
        return f"{images}/ and {masks}/"
    return f"{'the folder itself' if images == '.' else f'{images}/'} (masks: {MASK_SUFFIX}; images: other suffixes)"


# The accepted layouts, in order of preference. The last one needs no subfolder.
LAYOUTS = (
    Layout(("train/images", "train/masks"), ("test/images", "test/masks")),
    Layout(("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"), ("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask")),
    Layout(("MSRA-B", "MSRA-B"), ("ECSSD/images", "ECSSD/ground_truth_mask")),  # the protocol of DSS and of Res2Net
    Layout(None, ("images", "ground_truth_mask")),  # ECSSD
    Layout(("images", "masks"), None),
    Layout((".", "."), None),  # MSRA-B
)
ACCEPTED = "; or ".join(str(layout) for layout in LAYOUTS)


class Masks(DataSet):
    """A data set of your own images and masks, which are PNGs of the same names.

    Semantic segmentation: the values of a mask are class numbers, and 255 marks pixels without a class. The file
    `classes.txt` names the classes, the background first. Without this file, the names are the numbers from 0 to the
    largest class number in the training masks.
    Salient objects: pixels with grey values above 127 are salient.

    By default, `image_size` is the median longer side of sampled images, limited to 8..513 pixels.
    """

    name = "masks"
    resizable = True
    streamable = True
    targets = ("mask", "salient")

    def classes(self) -> tuple[str, ...]:
        """Return the class names, the background first; for salient objects, the single name `object`."""
        if self.target == "salient":
            return ("object",)
        if named := _named(self._top() / CLASSES_FILE):
            return named
        if _layout(self._top()).train is None:
            raise UserError(
                f"`data_dir`: {self._top()} holds no training masks, whose values would number the classes; accepted: "
                f"a file {CLASSES_FILE} with a class name on each line, the background first"
            )
        return _numbered(self._files("train"))

    def train(self) -> Files:
        """Return the training images and their masks."""
        return self._complete(self._files("train"), self.classes())

    def test(self) -> Files:
        """Return the test images and their masks."""
        return self._complete(self._files("test"), self.trained_classes or self.classes())

    def _complete(self, files: Files, classes: tuple[str, ...]) -> Files:
        """Return the files with their size and number of classes."""
        size = self.image_size or guess_size(files)
        if self.target != "salient":
            return replace(files, image_size=size, mask_classes=len(classes))
        _check_salient(files)
        return replace(files, image_size=size)

    def _top(self) -> Path:
        top = self.root(ACCEPTED)
        if not top.is_dir():
            raise UserError(f"`data_dir`: {top} is no folder; accepted: {ACCEPTED}")
        return top

    def _files(self, part: Part) -> Files:
        """Return the images of a part, with the names of their masks. Missing masks are only detected when read."""
        top = self._top()
        layout = _layout(top)
        pair = layout.train if part == "train" else layout.test
        what = "training" if part == "train" else "test"
        if pair is None:
            raise UserError(f"`data_dir`: {top} holds no {what} images (it has {layout}); accepted: {ACCEPTED}")
        if not (top / pair[0]).is_dir():
            raise UserError(f"`data_dir`: {top} holds no {what} images ({pair[0]}/); accepted: {ACCEPTED}")
        return _pairs(top, pair)


def _layout(top: Path) -> Layout:
    """Return the first layout whose folders exist. Else return the first with an image folder, else the last."""
    for count in (2, 1):
        for layout in LAYOUTS[:-1]:
            if any(pair and all((top / at).is_dir() for at in pair[:count]) for pair in (layout.train, layout.test)):
                return layout
    return LAYOUTS[-1]


def _pairs(top: Path, pair: Pair) -> Files:
    """List the images of a folder and the masks of the same names, without opening a file."""
    folder, mask_folder = top / pair[0], top / pair[1]
    together = pair[0] == pair[1]
    suffixes = tuple(s for s in SUFFIXES if not (together and s == MASK_SUFFIX))
    images = _names(folder, suffixes)
    if not images:
        raise UserError(f"`data_dir`: {folder} holds no image ({', '.join(suffixes)}); accepted: {ACCEPTED}")
    masks = {Path(name).stem: name for name in (_names(mask_folder, (MASK_SUFFIX,)) if mask_folder.is_dir() else ())}
    stems = [Path(name).stem for name in images]
    if not masks.keys() & set(stems):
        raise UserError(
            f"`data_dir`: {folder} holds images, but {mask_folder} holds no mask of the same name "
            f"({stems[0]}{MASK_SUFFIX}); accepted: {ACCEPTED}"
        )
    paths = tuple(os.path.normpath(f"{pair[0]}/{name}") for name in images)
    found = [masks.get(stem, f"{stem}{MASK_SUFFIX}") for stem in stems]
    return Files(
        top, paths, np.zeros(len(images), np.int64), 0, tuple(os.path.normpath(f"{pair[1]}/{name}") for name in found)
    )


def _names(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the sorted names of a folder's files, except hidden files."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"`data_dir`: {folder} cannot be read: {error.strerror}; accepted: {ACCEPTED}") from None
    return sorted(name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))


def _named(path: Path) -> tuple[str, ...]:
    """Return the class names of a file, or () if there is no such file."""
    if not path.is_file():
        return ()
    try:
        names = tuple(name for line in path.read_text(encoding="utf-8").splitlines() if (name := line.strip()))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"`data_dir`: {path} cannot be read: {reason}; accepted: a class name on each line") from None
    if not 2 <= len(names) <= VOID:
        raise UserError(
            f"`data_dir`: {path} names {len(names)} classes; accepted: 2 to {VOID}, the background first, one a line"
        )
    return names


def _numbered(files: Files) -> tuple[str, ...]:
    """Return the numbers up to the largest class number of the masks, as names of the classes."""
    most, where = _largest(str(files.root), files.masks or ()), f"`data_dir`: the masks of {files.root}"
    if most == 0:
        raise UserError(
            f"{where} hold no class number but 0 (the background) and {VOID} (none); accepted: numbers from 1, or "
            f"`task` saliency"
        )
    if most >= GUESSED:
        raise UserError(
            f"{where} hold values up to {most}; accepted: class numbers below {GUESSED}, a file {CLASSES_FILE} with a "
            f"class name on each line, or `task` saliency for grey masks"
        )
    return ("background", *(f"class {i}" for i in range(1, most + 1)))


@lru_cache(maxsize=4)  # the files do not change while a program runs
def _largest(root: str, masks: tuple[str, ...]) -> int:
    """Return the largest class number of masks, 0 for none. Masks that cannot be read do not count."""

    def largest(mask: str) -> int:
        try:
            values = read_mask(f"{root}/{mask}", VOID)
        except MaskError:  # decoding the mask will name it on stderr
            return 0
        return int(values[values != VOID].max(initial=0))

    with decoders(cores()) as pool:
        return max(pool.map(largest, masks), default=0)


def _check_salient(files: Files) -> None:
    """Raise `UserError` if no sampled mask has a salient pixel: the masks may hold class numbers."""
    masks = files.masks or ()
    rows = np.unique(np.linspace(0, len(masks) - 1, PROBED).round().astype(int)).tolist()
    for i in rows:
        with contextlib.suppress(MaskError):
            if read_mask(f"{files.root}/{masks[i]}", None).any():
                return
    raise UserError(
        f"`data_dir`: none of {len(rows)} sampled masks of {files.root} is grey with values above 127; accepted: masks "
        f"whose salient pixels are white, or `task` segment for masks of class numbers"
    )
