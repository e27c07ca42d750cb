"""The types of a data set's images (`Split`, `Files`, `Data`), and `DataSet`, the base class of every data set."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from res2net.errors import UserError
from trainers.decode import Choose, View

# The kinds of targets. `labels` of a `Split` holds one entry for each image.
TARGETS = {
    "class": "a class for each image: class numbers, int64 [N]",
    "mask": "a class for each pixel: class numbers, uint8 [N, size, size], 0 for the background, 255 for none",
    "salient": "the salient pixels: uint8 [N, size, size], 1 on salient objects, 0 elsewhere, 255 for unknown",
    "points": "the key points of one object: x, y and visibility, float32 [N, key points + 1, 3]",
    "boxes": "the objects: a box, a class and a flag for each, float32 [N, objects, 6]",
    "instances": "the pixels of each object: int32 [N, size, size]",
}
# For "points", an image is a square around the given box of one object. Square and box have the same centre. The square
# has 1.25 times the longer side of the box. The square is resized to the data set's size. `classes()` names the key
# points. Each key point has a row: x and y in pixels of the image, and the visibility (0 not labelled, 1 hidden, 2
# visible). Pixel i spans i to i + 1. The last row has three numbers: the object's area in pixels of the image; the area
# of its box in pixels of the photograph; the number of image pixels per photograph pixel, along a side.
BOX_MARGIN = 1.25
# For "boxes", a row is x1, y1, x2, y2 in pixels of the image, the class number from 1, and a flag: 1 for a crowd or a
# "difficult" object, which the metrics ignore, else 0. An empty row is six zeros. All images of a split have the same
# number of rows, at least 1. Used rows come first. In a training batch, a crop may remove an object, which leaves an
# empty row between used rows. `classes()[0]` is "background".
# For "instances", a pixel is 0 on the background, else `OBJECTS` times the class number plus the number of the object
# in its image, from 1. A crowd region has the object number 0. `classes()[0]` is "background".
OBJECTS = 1000
Sizes = tuple[float, float]  # bounds between small, medium and large objects (`DataSet.sizes`)
COCO_SIZES: Sizes = (32.0, 96.0)
MAPS = ("mask", "salient")  # targets that are cropped and mirrored with the images
MIN_SIZE = 8  # pixels along a side; below it, most maps of a network would be a single pixel
VOID = 255  # the label of a pixel without a class
IMAGENET_SIZE = 128  # pixels along a side; smallest images whose search base is `imagenet` (`DataSet.base`)


def partners(names: Sequence[str]) -> tuple[int, ...]:
    """Return, for each key point, the index of the key point that takes its place in a mirrored image.

    `left_eye` and `right_eye` take each other's place. A key point without such a partner keeps its place.
    """
    index = {name: i for i, name in enumerate(names)}
    return tuple(index.get(re.sub("left|right", _other_side, name), i) for i, name in enumerate(names))


def _other_side(match: re.Match[str]) -> str:
    return "right" if match[0] == "left" else "left"


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images in memory and their targets."""

    images: np.ndarray  # uint8 [N, channels, size, size]
    labels: np.ndarray  # class numbers int64 [N]; for other targets see `TARGETS`

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Pixels along a side."""
        return self.images.shape[-1]

    @property
    def in_channels(self) -> int:
        """Colour channels."""
        return self.images.shape[1]

    def take(self, index: np.ndarray) -> Split:
        """Return the images at these rows."""
        return Split(self.images[index], self.labels[index])


class Annotations(Protocol):
    """Targets of image files, in pixels of the files: boxes, outlines of objects, or key points.

    The view of an image places both its pixels and its targets.
    """

    def take(self, rows: Sequence[int]) -> Annotations:
        """Return the annotations of the files at these rows."""
        ...

    def form(self, size: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Return the shape and the type of the labels of an image of `size` pixels along a side."""
        ...

    def choose(self, row: int, size: int, flip: bool, seed: int | None) -> Choose:
        """Return the function that chooses the view of an image. seed: of the random crop; None for scoring."""
        ...

    def draw(self, row: int, view: View, shape: tuple[int, int], size: int, out: Tensor) -> None:
        """Write the labels of a view into `out`.

        shape: height and width of the file. size: pixels along a side of the image.

        Raise `ValueError` if the annotations describe an image of another size.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """Image files that are not decoded yet, and their class numbers, their mask files or their annotations.

    A training decodes the files on demand (`Stream`) or decodes all files before the first epoch (`to_split`).
    """

    root: Path
    paths: tuple[str, ...]  # relative to `root`, sorted
    labels: np.ndarray  # int64 [N]; zeros for images with masks or annotations
    image_size: int  # pixels along a side of the decoded images
    masks: tuple[str, ...] | None = None  # a PNG for each image, relative to `root`; None for images without masks
    # Number of classes: pixel values are class numbers below it, or `VOID`. None: salient objects are above 127.
    mask_classes: int | None = None
    annotations: Annotations | None = None  # annotations of all images; None for images with masks or class numbers

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def padded(self) -> bool:
        """Whether decoding pads images to a square instead of cropping them, because they have masks or annotations."""
        return self.masks is not None or self.annotations is not None

    @property
    def in_channels(self) -> int:
        """Colour channels: decoding converts every image to RGB."""
        return 3

    def take(self, index: np.ndarray) -> Files:
        """Return the files at these rows."""
        rows = index.tolist()
        masks = None if self.masks is None else tuple(self.masks[i] for i in rows)
        annotations = None if self.annotations is None else self.annotations.take(rows)
        paths = tuple(self.paths[i] for i in rows)
        return replace(self, paths=paths, labels=self.labels[index], masks=masks, annotations=annotations)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """The part of a data set that a search may see: everything but the test split."""

    name: str
    classes: tuple[str, ...]
    train: Split | Files
    val: Split | Files  # empty with a validation fraction of 0
    mean: tuple[float, ...]  # mean of each channel of the training images, in 0..1; ImageNet's mean for `Files`
    std: tuple[float, ...]  # standard deviation of each channel, in the same way, at least 1/255
    target: str = "class"  # a key of `TARGETS`
    sizes: Sizes = COCO_SIZES  # bounds between small, medium and large objects (`DataSet.sizes`)

    @property
    def num_classes(self) -> int:
        """Number of classes, including classes that a small training split lacks."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Pixels along a side."""
        return self.train.image_size

    @property
    def in_channels(self) -> int:
        """Colour channels."""
        return self.train.in_channels

    def describe(self) -> dict[str, object]:
        """Return the description of the data for `run.json`, as plain JSON values."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "train_images": len(self.train),
            "val_images": len(self.val),
            "mean": list(self.mean),
            "std": list(self.std),
            "image_size": self.image_size,
        }


@dataclass(frozen=True, slots=True)
class DataSet(ABC):
    """A data set: its images, its classes, and defaults for its use.

    To add a data set, derive from this class, set `name`, and write `classes`, `train` and `test`. The user's options
    are in `self.data_dir`, `self.image_size` and `self.target`. A class in your own module needs no registration:
    select it by `--data my_package.my_module:MyData`.
    """

    name: ClassVar[str]  # appears in reports and in the names of run folders
    val_fraction: ClassVar[float] = 0.1  # default share of the training images for validation
    resizable: ClassVar[bool] = False  # whether the option `image_size` applies
    streamable: ClassVar[bool] = False  # whether `train` and `test` return `Files`
    targets: ClassVar[tuple[str, ...]] = ("class",)  # keys of `TARGETS` that the data set has

    data_dir: str | Path | None = None
    image_size: int | None = None  # pixels along a side; None for the data set's own size
    trained_classes: tuple[str, ...] | None = None  # classes that the test split must have; None: those of `train`
    target: str = "class"  # the targets to return, one of `targets`

    def __post_init__(self) -> None:
        if self.image_size is not None:
            self.check_image_size(self.image_size)

    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Return the class names, in the order of the class numbers.

        For masks, boxes and instances: `background` first. For salient objects: one name, `object`. For points: the
        names of the key points. Names that differ in "left" and "right" change places when an image is mirrored.
        """

    def sizes(self) -> Sizes:
        """Return the bounds between small, medium and large objects: the square root of a box's area, in pixels."""
        return COCO_SIZES

    @abstractmethod
    def train(self) -> Split | Files:
        """Return all training images. `load` cuts the validation split from them."""

    @abstractmethod
    def test(self) -> Split | Files:
        """Return the test images."""

    def root(self, accepted: str) -> Path:
        """Return the path `data_dir`, with `~` replaced by the home folder.

        accepted: the accepted folders, for errors. Raise `UserError` if `data_dir` is None or names an unknown user.
        """
        if self.data_dir is None:
            raise UserError(f"`data_dir`: None; {self.name} needs a folder; accepted: {accepted}")
        try:
            return Path(self.data_dir).expanduser()
        except RuntimeError:
            raise UserError(f"`data_dir`: {self.data_dir} starts at an unknown home; accepted: {accepted}") from None

    def note(self) -> str | None:
        """Return a line about the files that `train` reads, which `fit` shows before the training, or None."""
        return None

    def download(self) -> None:
        """Fetch the files into `data_dir` unless they exist. Raise `UserError` if they cannot be fetched."""
        raise UserError(f"`download`: {self.name} cannot be downloaded; accepted: `data_dir` with its files")

    @classmethod
    def base(cls, image_size: int | None) -> str:
        """Return the search base (a key of `space.BASES`) for images of this size. image_size: None if unknown."""
        return "imagenet" if (image_size or 0) >= IMAGENET_SIZE else "cifar"

    @classmethod
    def check_image_size(cls, image_size: int) -> None:
        """Raise `UserError` if the data set cannot provide images of this size."""
        if not cls.resizable:
            raise UserError(
                f"`image_size`: {image_size}, but {cls.name} has a size of its own; "
                "accepted: only with `data` coco, folder, masks, scenes or voc"
            )
        if image_size < MIN_SIZE:
            raise UserError(
                f"`image_size`: {image_size} is too small; accepted: at least {MIN_SIZE} pixels along a side"
            )
