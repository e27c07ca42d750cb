"""Load the training, validation and test splits of a data set. A seed draws the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from res2net.errors import UserError
from res2net.plugins import PATH
from trainers.datasets import cifar, coco, scene_objects, scenes, shapes, voc
from trainers.datasets.base import MAPS, OBJECTS, TARGETS, VOID, Data, DataSet, Files, Split
from trainers.datasets.files import MEAN, STD, to_split
from trainers.datasets.registry import DATASETS, get, names

__all__ = [
    "MAPS",
    "OBJECTS",
    "VOID",
    "Data",
    "Files",
    "Split",
    "classes_of",
    "download",
    "form_of",
    "get",
    "load",
    "load_test",
    "names",
    "sizes_of",
]
# Pixels along a side of a data set's images, and where they differ, for a kind of targets. All have three channels.
SIDES = {
    "shapes": shapes.SIZE,
    "cifar10": cifar.SHAPE[-1],
    "cifar100": cifar.SHAPE[-1],
    "scenes": scene_objects.SIZE,
    "scenes points": scenes.CROP_SIZE,
    "coco": coco.SIZE,
    "coco points": coco.POINTS_SIZE,
    "voc": voc.SIZE,
    "voc boxes": voc.BOXES_SIZE,
}

LEAST_STD = 1 / 255  # one grey level


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    seed: int = 0,
    val_fraction: float | None = None,
    train_images: int | None = None,
    image_size: int | None = None,
    stream: bool = False,
    target: str = "class",
    console: Console | None = None,
) -> Data:
    """Return the training and validation splits of a data set, drawn by `seed` from all training images.

    name: a registered name, or the import path of a class (see `trainers.datasets.get`).
    data_dir: folder of the data set's files.
    val_fraction: share of all training images for the validation split; the data set's default if None.
    train_images: number of images in the training split; all images outside the validation split if None.
    image_size: pixels along a side, for `scenes` and data sets of image files; if None, their own size or a guess.
    stream: leave image files undecoded, for a training that decodes them on demand.
    target: the targets that a task needs, a key of `TARGETS`.
    console: shows the progress of decoding many files.
    """
    if seed < 0:
        raise UserError(f"`seed`: {seed}; accepted: 0 or more")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"`val_fraction`: {val_fraction}; accepted: 0 up to, not including, 1")
    dataset = _opened(name, target, data_dir, image_size)
    classes, pool = dataset.classes(), dataset.train()
    if console is not None and (line := dataset.note()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _check(dataset.name, pool, classes, target)
    strata = pool.labels if target == "class" else np.zeros(len(pool), np.int64)
    order = _stratified_order(strata, seed)
    fraction = dataset.val_fraction if val_fraction is None else val_fraction
    cut = min(round(fraction * len(order)), len(order) - 1)
    left = len(order) - cut
    kept = left if train_images is None else train_images
    if not 1 <= kept <= left:
        raise UserError(f"`train_images`: {kept}; accepted: 1 to {left} ({dataset.name} with {cut} validation images)")
    # Sort the rows, so that the images of a split keep the order of the files with every seed.
    train, val = pool.take(np.sort(order[cut : cut + kept])), pool.take(np.sort(order[:cut]))
    if stream and isinstance(train, Files):
        # Use ImageNet's mean and std, which suit photographs. Computing the data set's own values would decode all
        # training images.
        return Data(dataset.name, classes, train, val, MEAN, STD, target, dataset.sizes())
    padded = isinstance(train, Files) and train.padded
    train, val = _in_memory(train, console), _in_memory(val, console)
    # Images with masks or annotations are padded. Their own mean and std would count the padding, so use ImageNet's.
    mean, std = (MEAN, STD) if padded else _mean_std(train.images)
    return Data(dataset.name, classes, train, val, mean, std, target, dataset.sizes())


def load_test(
    name: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    stream: bool = False,
    classes: tuple[str, ...] | None = None,
    target: str = "class",
) -> Split | Files:
    """Return the test split, for the single final score of a network. A search must never call this function.

    image_size: pixels along a side, for `scenes` and data sets of image files; if None, their own size or a guess.
    stream: leave image files undecoded.
    classes: the classes of the trained network; if None, the classes of the training images.
    target: see `load`.

    Raise `UserError` if the test split of a data set of image folders does not have exactly these classes.
    """
    dataset = _opened(name, target, data_dir, image_size, classes)
    part = dataset.test()
    _check(dataset.name, part, classes or dataset.classes(), target)
    return part if stream else _in_memory(part)


def classes_of(
    name: str, data_dir: str | Path | None = None, target: str = "class", trained: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Return the class names of a data set, in the order of the class numbers.

    trained: the classes of a trained network. With them, a data set of image folders needs only its test split.
    """
    return _opened(name, target, data_dir, None, trained).classes()


def sizes_of(
    name: str, data_dir: str | Path | None = None, target: str = "class", image_size: int | None = None
) -> tuple[float, float]:
    """Return the bounds between small, medium and large objects of a data set (`DataSet.sizes`)."""
    return _opened(name, target, data_dir, image_size).sizes()


def form_of(
    name: str, data_dir: str | Path | None = None, target: str = "class", image_size: int | None = None
) -> tuple[int, int]:
    """Return the pixels along a side and the colour channels of a data set's images.

    Data sets of a known size need no files. Of other registered data sets, the files are listed. A data set of a user's
    own returns its training images.
    """
    dataset = _opened(name, target, data_dir, image_size)
    side = image_size or SIDES.get(f"{name} {target}", SIDES.get(name))
    if name in DATASETS and side is not None:
        return side, 3
    part = dataset.train()
    return part.image_size, part.in_channels


def download(name: str, data_dir: str | Path | None) -> None:
    """Fetch the files of a data set into `data_dir` unless they exist. A generated data set needs no files."""
    get(name)(data_dir).download()


def check_target(name: str, target: str) -> None:
    """Raise `UserError` if a data set has no targets of this kind."""
    kind = get(name)
    if target not in kind.targets:
        able = [known for known, other in DATASETS.items() if target in other.targets]
        raise UserError(
            f"`data`: {name} has no targets of the kind {target} ({TARGETS[target]}); accepted for this task: "
            f"{', '.join((*able, PATH))}"
        )


def _opened(name: str, target: str, *options: Any) -> DataSet:
    """Return the data set with these targets. Raise `UserError` if it lacks them."""
    check_target(name, target)
    kind = get(name)
    # A data set of a user's own may have a constructor without `target`.
    return kind(*options) if target == "class" else kind(*options, target=target)


def _in_memory(part: Split | Files, console: Console | None = None) -> Split:
    return to_split(part, console) if isinstance(part, Files) else part


def _check(name: str, part: Split | Files, classes: tuple[str, ...], target: str) -> None:
    """Raise `UserError` for a split without images or with unusable arrays. A user's own data set may return either."""
    if len(part) == 0:
        raise UserError(f"`data`: {name} has no images; accepted: at least 1")
    if isinstance(part, Files):
        return
    images, labels = part.images, part.labels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise UserError(
            f"`data`: images of {name} are {images.dtype} {list(images.shape)}; "
            f"accepted: uint8 [N, channels, size, size]"
        )
    if target in MAPS:
        _check_maps(name, images, labels, _top_class(name, classes, target))
        return
    if target == "points":
        _check_points(name, labels, (len(images), len(classes) + 1, 3), classes)
        return
    if target == "boxes":
        _check_boxes(name, labels, images.shape[-1], len(images), classes)
        return
    if target == "instances":
        _check_instances(name, labels, (len(images), *images.shape[2:]), classes)
        return
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise UserError(
            f"`data`: labels of {name} are {labels.dtype} {list(labels.shape)}; accepted: int64 [{len(images)}]"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(
            f"`data`: labels of {name} are {labels.min()} to {labels.max()}; accepted: 0 to {len(classes) - 1}"
        )


def _top_class(name: str, classes: tuple[str, ...], target: str) -> int:
    """Return the largest number that a mask may hold, apart from `VOID`."""
    if target != "salient":
        if len(classes) > VOID:
            raise UserError(f"`data`: {name} has {len(classes)} classes; accepted with masks: at most {VOID}")
        return len(classes) - 1
    if len(classes) != 1:
        raise UserError(f"`data`: {name} has the classes {', '.join(classes)}; accepted for salient objects: one class")
    return 1


def _check_maps(name: str, images: np.ndarray, labels: np.ndarray, top: int) -> None:
    """Raise `UserError` for unusable masks. top: the largest class number."""
    wanted = (len(images), *images.shape[2:])
    if labels.dtype != np.uint8 or labels.shape != wanted:
        raise UserError(
            f"`data`: masks of {name} are {labels.dtype} {list(labels.shape)}; accepted: uint8 {list(wanted)}"
        )
    for chunk in np.array_split(labels, -(-len(labels) // 1000)):  # bounds the memory
        if len(found := chunk[(chunk > top) & (chunk != VOID)]):
            raise UserError(f"`data`: masks of {name} hold class {found[0]}; accepted: 0 to {top}, or {VOID} for none")


def _check_points(name: str, labels: np.ndarray, wanted: tuple[int, ...], classes: tuple[str, ...]) -> None:
    """Raise `UserError` for unusable key points. wanted: shape of the labels."""
    if len(set(classes)) < len(classes):
        raise UserError(f"`data`: key points of {name} are {', '.join(classes)}; accepted: different names")
    if labels.dtype != np.float32 or labels.shape != wanted:
        raise UserError(
            f"`data`: key points of {name} are {labels.dtype} {list(labels.shape)}; accepted: float32 {list(wanted)}"
        )
    if not np.isfinite(labels).all():
        raise UserError(f"`data`: key points of {name} hold NaN or infinity; accepted: numbers")
    seen = labels[:, :-1, 2]
    if not np.isin(seen, (0, 1, 2)).all():
        wrong = seen[~np.isin(seen, (0, 1, 2))][0]
        raise UserError(f"`data`: key points of {name} have the visibility {wrong:g}; accepted: 0, 1, 2")
    if labels[:, -1].min() <= 0:
        raise UserError(
            f"`data`: key points of {name} have the last row {labels[labels[:, -1].min(1).argmin(), -1].tolist()}; "
            "accepted: areas of the object and of its box, and a scale, all above 0"
        )


def _check_boxes(name: str, boxes: np.ndarray, size: int, count: int, classes: tuple[str, ...]) -> None:
    """Raise `UserError` for unusable boxes. size: pixels along a side of the images. count: number of images."""
    _check_background(name, classes)
    shape = boxes.shape
    if boxes.dtype != np.float32 or len(shape) != 3 or shape[0] != count or not shape[1] or shape[2] != 6:
        raise UserError(
            f"`data`: boxes of {name} are {boxes.dtype} {list(shape)}; accepted: float32 [{count}, objects, 6]"
        )
    corners, numbers, flags = boxes[..., :4], boxes[..., 4], boxes[..., 5]
    used = numbers != 0
    empty = np.where(used[..., None], 0, boxes)  # the rows that must be zeros
    outside = (corners[..., :2] < 0).any(-1) | (corners[..., 2:] > size).any(-1)
    flat = (corners[..., 2:] <= corners[..., :2]).any(-1)
    top = len(classes) - 1
    for wrong, accepted in (
        (~np.isfinite(boxes).all(-1), "numbers"),
        (~np.isin(numbers, np.arange(top + 1)), f"class numbers from 1 to {top}, and 0 for an empty row"),
        (~np.isin(flags, (0, 1)), "a flag of 0 or 1"),
        (empty.any(-1), "zeros for an empty row"),
        (used & (outside | flat), f"x1 < x2 and y1 < y2, from 0 to {size}"),
        (np.pad(used[:, 1:] & ~used[:, :-1], ((0, 0), (1, 0))), "objects before empty rows"),
    ):
        if wrong.any():
            row = boxes[wrong][0].tolist()
            raise UserError(f"`data`: boxes of {name} have the row {row}; accepted: {accepted}")


def _check_instances(name: str, maps: np.ndarray, wanted: tuple[int, ...], classes: tuple[str, ...]) -> None:
    """Raise `UserError` for unusable maps of instances. wanted: shape of the maps."""
    _check_background(name, classes)
    if maps.dtype != np.int32 or maps.shape != wanted:
        raise UserError(
            f"`data`: instances of {name} are {maps.dtype} {list(maps.shape)}; accepted: int32 {list(wanted)}"
        )
    end = OBJECTS * len(classes)
    for chunk in np.array_split(maps, -(-len(maps) // 1000)):  # bounds the memory
        if len(found := chunk[(chunk != 0) & ((chunk < OBJECTS) | (chunk >= end))]):
            raise UserError(
                f"`data`: instances of {name} hold {found[0]}; accepted: 0, or {OBJECTS} * class number + "
                f"object number, up to {end - 1}"
            )


def _check_background(name: str, classes: tuple[str, ...]) -> None:
    """Raise `UserError` unless the first of several classes is the background."""
    if len(classes) < 2 or classes[0] != "background":
        raise UserError(
            f"`data`: {name} has the classes {', '.join(classes)}; accepted for objects: background, then the classes"
        )


def _stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order of the images. Every contiguous run holds the classes in the proportions of all images.

    `load` takes the validation images from the head of the order, and the training images after them. So a smaller
    training split is a subset of a larger training split, and both have the same validation split.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    counts = np.unique(labels, return_counts=True)[1]
    position = np.empty(len(labels))  # relative position of each shuffled image within its class, in 0..1
    by_class = np.split(np.argsort(labels[shuffled], kind="stable"), np.cumsum(counts)[:-1])
    for rows, count in zip(by_class, counts, strict=True):
        position[rows] = (np.arange(count) + 0.5) / count
    # Sort stably, so that the shuffle, not the class number, breaks ties between classes of equal size.
    return shuffled[np.argsort(position, kind="stable")]


def _mean_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel, in 0..1. The deviation is at least `LEAST_STD`."""
    channels = images.shape[1]
    # Counts of the 256 values give exact sums without a float copy of the images.
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 1000):
        for channel in range(channels):
            counts[channel] += np.bincount(images[start : start + 1000, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    # Normalisation divides by the deviation. A constant channel has a variance of 0, or just below 0 after rounding.
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, LEAST_STD**2))
    return tuple(mean.tolist()), tuple(std.tolist())
