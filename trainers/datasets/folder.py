"""A folder of images in ImageNet's layout: `DIR/train/<class>/*.JPEG` and `DIR/val/<class>/*.JPEG`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from res2net.errors import UserError
from trainers.datasets.base import DataSet, Files
from trainers.datasets.files import SUFFIXES, guess_size

LAYOUT = "a folder with train/ and val/, each with a folder of images for each class"

Part = Literal["train", "val"]


class Folder(DataSet):
    """A data set of your own images. The folders in `train/` name the classes; `val/` is the test split.

    Images are resized to `image_size` pixels along a side. By default, `guess_size` takes the median shorter side of
    sampled training images, limited to 8..224 pixels.
    """

    name = "folder"
    resizable = True
    streamable = True

    def classes(self) -> tuple[str, ...]:
        """Return the sorted names of the folders in `train/`, or in `val/` for a trained network."""
        return _classes(self._part("train" if self.trained_classes is None else "val"))

    def train(self) -> Files:
        """Return the files below `train/`."""
        files = _scan(self._part("train"), self.image_size or 0)
        return files if self.image_size else replace(files, image_size=guess_size(files))

    def test(self) -> Files:
        """Return the files below `val/`. Raise `UserError` if the classes of `val/` differ from the training classes.

        If both `image_size` and `trained_classes` are given, `train/` may be absent.
        """
        size = self.image_size or self.train().image_size
        expected = self.classes() if self.trained_classes is None else self.trained_classes
        root = self._part("val")
        _check_same(root, _classes(root), expected)
        return _scan(root, size)

    def _part(self, part: Part) -> Path:
        top = self.root(LAYOUT)
        if not (top / part).is_dir():
            state = f"holds no {part}/" if top.is_dir() else "is no folder"
            raise UserError(f"`data_dir`: {top} {state}; accepted: {LAYOUT}")
        return top / part


def _classes(root: Path) -> tuple[str, ...]:
    names = tuple(sorted(e.name for e in _entries(str(root)) if e.is_dir()))
    if len(names) < 2:
        state = f"a single class folder, {names[0]!r}" if names else "no class folder"
        raise UserError(f"`data_dir`: {root} holds {state}; accepted: {LAYOUT}, of two classes or more")
    return names


def _scan(root: Path, image_size: int) -> Files:
    """List the images of all classes without opening a file."""
    classes = _classes(root)
    found = [[f"{name}/{path}" for path in _images(f"{root}/{name}")] for name in classes]
    for name, paths in zip(classes, found, strict=True):
        if not paths:
            raise UserError(
                f"`data_dir`: {root / name} holds no image; accepted: files ending in {', '.join(SUFFIXES)}"
            )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(paths) for paths in found])
    # Sort the paths: the order of a directory's entries differs between machines, and the splits that a seed draws
    # depend on the order of the paths.
    return Files(root, tuple(path for paths in found for path in sorted(paths)), labels, image_size)


def _check_same(root: Path, found: tuple[str, ...], expected: tuple[str, ...]) -> None:
    if found != expected:
        first = min(set(found) ^ set(expected))
        state = "is not among the classes of training" if first in found else "is missing"
        raise UserError(
            f"`data_dir`: in {root}, with {len(found)} classes, {first!r} {state}; accepted: the same {len(expected)} "
            f"classes as in training"
        )


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, except hidden entries (thumbnails, version control)."""
    try:
        with os.scandir(folder) as entries:
            yield from (e for e in entries if not e.name.startswith("."))
    except OSError as error:
        raise UserError(f"`data_dir`: {folder} cannot be read: {error.strerror}; accepted: {LAYOUT}") from None


def _images(folder: str) -> Iterator[str]:
    """Yield the paths of all images below a folder, relative to this folder."""
    for entry in _entries(folder):
        # Do not follow a link to a folder: it may lead back to a folder above, and the listing would never end.
        if entry.is_dir(follow_symlinks=False):
            yield from (f"{entry.name}/{path}" for path in _images(entry.path))
        elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            yield entry.name
