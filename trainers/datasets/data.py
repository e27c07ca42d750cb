"""The data sets: training images, a validation split cut from them by seed, and the test split behind its own door."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from res2net.errors import UserError, unknown
from trainers.datasets import cifar, folder, shapes
from trainers.datasets.folder import Files

# Of the training images. `shapes` is small, so it gives more of them to keep the scores' noise at about a percent.
VAL_FRACTION = {"shapes": 0.2, "cifar10": 0.1, "cifar100": 0.1, "folder": 0.1}


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images and their class numbers."""

    images: np.ndarray  # uint8 [N, channels, height, width]
    labels: np.ndarray  # int64 [N]

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
        """These of the images."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """What a search may see of a data set: never its test split."""

    name: str
    classes: tuple[str, ...]
    train: Split | Files  # files where they are decoded as they are asked for
    val: Split | Files  # empty when the fraction asked for is 0
    mean: tuple[float, ...]  # per channel, of the train images, in 0..1; ImageNet's where they are files
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Classes, also those that a few train images may lack."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Pixels along a side."""
        return self.train.image_size

    @property
    def in_channels(self) -> int:
        """Colour channels."""
        return self.train.in_channels


def names() -> tuple[str, ...]:
    """The data sets that can be loaded."""
    return tuple(VAL_FRACTION)


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    seed: int = 0,
    val_fraction: float | None = None,
    train_images: int | None = None,
    image_size: int | None = None,
    stream: bool = False,
    console: Console | None = None,
) -> Data:
    """The train and validation splits, cut by `seed`; `train_images` keeps only so many of what the cut leaves.

    Of `folder`, images are of `image_size` pixels along a side (a guess from the files if None); `stream` leaves them
    files, and without it `console` shows how far their decoding is.
    """
    if seed < 0:
        raise UserError(f"--seed: {seed}; accepted: 0 or more")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"--val-fraction: {val_fraction}; accepted: 0 up to, not including, 1")
    classes, pool = _pool(name, data_dir, image_size)
    order = _stratified_order(pool.labels, seed)
    fraction = VAL_FRACTION[name] if val_fraction is None else val_fraction
    cut = min(round(fraction * len(order)), len(order) - 1)
    left = len(order) - cut
    kept = left if train_images is None else train_images
    if not 1 <= kept <= left:
        raise UserError(f"--train-images: {kept}; accepted: 1 to {left} ({name} with {cut} validation images)")
    # Sorted, so that a split keeps the files' order whatever the seed.
    train, val = pool.take(np.sort(order[cut : cut + kept])), pool.take(np.sort(order[:cut]))
    if stream and isinstance(train, Files):
        return Data(name, classes, train, val, folder.MEAN, folder.STD)
    train, val = (_in_memory(part, console) for part in (train, val))
    return Data(name, classes, train, val, *_mean_std(train.images))


def load_test(
    name: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    stream: bool = False,
    classes: tuple[str, ...] | None = None,
) -> Split | Files:
    """The test split, for the one final score of a network: a search must never call this.

    Of `folder`, its classes must be `classes`, or those of the train images, which also give the size if it is None.
    """
    if name == "folder":
        files = folder.scan_test(data_dir, image_size, classes)
        return files if stream else _in_memory(files)
    _check_name(name, image_size)
    return Split(*(cifar.read(cifar.KINDS[name], data_dir, "test") if name in cifar.KINDS else shapes.test_set()))


def classes_of(name: str, data_dir: str | Path | None = None) -> tuple[str, ...]:
    """The classes of a data set, by their numbers."""
    if name == "folder":
        return folder.classes_of(data_dir)
    _check_name(name, None)
    return cifar.KINDS[name].classes if name in cifar.KINDS else shapes.CLASSES


def download(name: str, data_dir: str | Path | None) -> None:
    """Fetch a data set's official archive into a folder, unless it is there; `shapes` needs none."""
    _check_name(name, None)
    if name == "folder":
        raise UserError(f"--download: there is none of --data folder; accepted: with {', '.join(cifar.KINDS)}")
    if name in cifar.KINDS:
        cifar.download(cifar.KINDS[name], data_dir)


def _pool(name: str, data_dir: str | Path | None, image_size: int | None) -> tuple[tuple[str, ...], Split | Files]:
    """The classes, and what the train and validation splits are cut from."""
    if name == "folder":
        return folder.scan(data_dir, "train", image_size)
    _check_name(name, image_size)
    if name in cifar.KINDS:
        kind = cifar.KINDS[name]
        return kind.classes, Split(*cifar.read(kind, data_dir, "train"))
    return shapes.CLASSES, Split(*shapes.train_pool())


def check_image_size(name: str, image_size: int) -> None:
    """`UserError` for a size that no network takes, or with images that have one of their own."""
    if name != "folder":
        raise UserError(f"--image-size: {image_size}, but {name} has a size of its own; accepted: with --data folder")
    folder.check_size(image_size)


def _check_name(name: str, image_size: int | None) -> None:
    if name not in names():
        raise unknown("--data", name, names())
    if image_size is not None:
        check_image_size(name, image_size)


def _in_memory(part: Split | Files, console: Console | None = None) -> Split:
    return Split(*folder.to_arrays(part, part.image_size, console)) if isinstance(part, Files) else part


def _stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order of the images in which every run from any place holds the classes in proportion.

    The validation images are its head and the train images follow, so fewer train images are a subset of more.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    counts = np.unique(labels, return_counts=True)[1]
    position = np.empty(len(labels))  # of each shuffled image within its class, in 0..1
    by_class = np.split(np.argsort(labels[shuffled], kind="stable"), np.cumsum(counts)[:-1])
    for rows, count in zip(by_class, counts, strict=True):
        position[rows] = (np.arange(count) + 0.5) / count
    # Stable, so that ties between classes of one size are broken by the shuffle, not by the class number.
    return shuffled[np.argsort(position, kind="stable")]


def _mean_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, exact and in little memory: from counts of the 256 values."""
    channels = images.shape[1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 1000):
        for channel in range(channels):
            counts[channel] += np.bincount(images[start : start + 1000, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    return tuple(mean.tolist()), tuple(std.tolist())
