"""The images of `scenes` for `studies.tasks`: training images, scored images, and targets without small objects."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np

import trainers.datasets.data
from res2net.errors import UserError
from studies.task_answers import box_of
from trainers.datasets import scenes
from trainers.datasets.base import OBJECTS, VOID, Data, Split
from trainers.tasks.task import Task

NAME = scenes.Scenes.name


def read_images(task: Task, args: argparse.Namespace) -> Data:
    """Return the training and validation images. With `overfit`, both are the same few images."""
    count = args.overfit or args.train_images
    known: dict[str, Any] = {"seed": args.seed, "image_size": args.image_size, "target": task.target}
    try:
        data = trainers.datasets.data.load(NAME, train_images=count, **known)
    except UserError as error:
        if not args.overfit:
            raise
        raise UserError(str(error).replace("`train_images`", "`overfit`")) from None
    assert isinstance(data.train, Split), "generated images are in memory"
    assert isinstance(data.val, Split), "generated images are in memory"
    pool = scenes.TRAIN_POOL
    train = without_small(data.train, task.target, args.least, pool)
    val = train if args.overfit else without_small(data.val, task.target, args.least, pool)
    return replace(data, train=train, val=val)


def read_test_images(task: Task, data: Data, args: argparse.Namespace) -> Split:
    """Return the test images. They are read once, after all trainings of a task."""
    test = trainers.datasets.data.load_test(NAME, image_size=args.image_size, classes=data.classes, target=task.target)
    assert isinstance(test, Split), "generated images are in memory"
    return without_small(test, task.target, args.least, scenes.TEST_SET)


def without_small(part: Split, target: str, least: int, pool: tuple[int, int]) -> Split:
    """Return a data split in which the metrics ignore small objects.

    An object is small if the square root of the area of its box is below `least` pixels. For the target "mask", its
    pixels become `VOID`. For "boxes" and "instances", it becomes a crowd. Other targets are not changed.

    pool: number and seed of the generated images that contain the split.
    Raise `UserError` if no object is left.
    """
    if not least or target not in ("mask", "boxes", "instances"):
        return part
    if target == "mask":
        labels = _mask(part, least, pool)
        left = ((labels > 0) & (labels != VOID)).any()
    elif target == "boxes":
        labels = part.labels.copy()
        used = labels[..., 4] > 0
        labels[..., 5][used & (sides(labels[..., :4]) < least)] = 1
        left = (used & (labels[..., 5] == 0)).any()
    else:
        labels = np.stack([_instances(image, least) for image in part.labels])
        left = (labels % OBJECTS > 0).any()
    if not left:
        raise UserError(f"`least`: {least}; no object of {NAME} is as large; accepted: fewer pixels")
    return replace(part, labels=labels)


def sides(boxes: np.ndarray) -> np.ndarray:
    """Return the square root of the area of each box, in pixels. boxes: [..., 4]."""
    return np.sqrt((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def _mask(part: Split, least: int, pool: tuple[int, int]) -> np.ndarray:
    """Return masks [N, S, S] with `VOID` in place of the classes of small objects."""
    truth = scenes.generate(*pool, part.image_size)
    # A mask does not separate objects of the same class. So find each image among the generated images, with its boxes.
    places = {image.tobytes(): i for i, image in enumerate(truth.images)}
    rows = [places[image.tobytes()] for image in part.images]
    small = np.pad(sides(truth.boxes[rows]) < least, ((0, 0), (1, 0)))  # by number in `instances`
    labels = part.labels.copy()
    for mask, hidden, numbers in zip(labels, small, truth.instances[rows], strict=True):
        mask[hidden[numbers]] = VOID
    return labels


def _instances(image: np.ndarray, least: int) -> np.ndarray:
    """Return a map [S, S] of the target "instances" in which small objects are crowds."""
    out = image.copy()
    for value in np.unique(image):
        mask = image == value
        if value % OBJECTS and sides(np.array(box_of(mask))) < least:
            out[mask] = value // OBJECTS * OBJECTS
    return out
