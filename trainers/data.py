"""The data sets: training images, a validation split cut from them by seed, and the test split behind its own door."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from res2net.errors import UserError, unknown
from trainers import cifar, shapes

# Of the training images. `shapes` is small, so it gives more of them to keep the scores' noise at about a percent.
VAL_FRACTION = {"shapes": 0.2, "cifar10": 0.1, "cifar100": 0.1}


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images and their class numbers."""

    images: np.ndarray  # uint8 [N, channels, height, width]
    labels: np.ndarray  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """What a search may see of a data set: never its test split."""

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split  # empty when the fraction asked for is 0
    mean: tuple[float, ...]  # per channel, of the train images, in 0..1
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Classes, also those that a few train images may lack."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Pixels along a side."""
        return self.train.images.shape[-1]

    @property
    def in_channels(self) -> int:
        """Colour channels."""
        return self.train.images.shape[1]


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
) -> Data:
    """The train and validation splits, cut by `seed`; `train_images` keeps only so many of what the cut leaves."""
    if seed < 0:
        raise UserError(f"--seed: {seed}; accepted: 0 or more")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"--val-fraction: {val_fraction}; accepted: 0 up to, not including, 1")
    images, labels = _read(name, data_dir, "train")
    order = _stratified_order(labels, seed)
    fraction = VAL_FRACTION[name] if val_fraction is None else val_fraction
    cut = min(round(fraction * len(order)), len(order) - 1)
    left = len(order) - cut
    kept = left if train_images is None else train_images
    if not 1 <= kept <= left:
        raise UserError(f"--train-images: {kept}; accepted: 1 to {left} ({name} with {cut} validation images)")
    # Sorted, so that a split keeps the files' order whatever the seed.
    val, train = np.sort(order[:cut]), np.sort(order[cut : cut + kept])
    train_split = Split(images[train], labels[train])
    mean, std = _mean_std(train_split.images)
    return Data(name, _classes(name), train_split, Split(images[val], labels[val]), mean, std)


def load_test(name: str, data_dir: str | Path | None = None) -> Split:
    """The test split, for the one final score of a network: a search must never call this."""
    return Split(*_read(name, data_dir, "test"))


def download(name: str, data_dir: str | Path | None) -> None:
    """Fetch a data set's official archive into a folder, unless it is there; `shapes` needs none."""
    if name not in names():
        raise unknown("--data", name, names())
    if name in cifar.KINDS:
        cifar.download(cifar.KINDS[name], data_dir)


def _read(name: str, data_dir: str | Path | None, part: cifar.Part) -> cifar.Arrays:
    if name not in names():
        raise unknown("--data", name, names())
    if name in cifar.KINDS:
        return cifar.read(cifar.KINDS[name], data_dir, part)
    return shapes.train_pool() if part == "train" else shapes.test_set()


def _classes(name: str) -> tuple[str, ...]:
    return cifar.KINDS[name].classes if name in cifar.KINDS else shapes.CLASSES


def _stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order of the images in which every run from any place holds the classes in proportion.

    The validation images are its head and the train images follow, so fewer train images are a subset of more.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    position = np.empty(len(labels))  # of each shuffled image within its class, in 0..1
    for label, count in zip(classes, counts, strict=True):
        position[labels[shuffled] == label] = (np.arange(count) + 0.5) / count
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
