"""Read COCO's annotation files: boxes, outlines and key points. Unusable entries are named and left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from res2net.errors import UserError
from trainers.datasets.base import OBJECTS, Annotations, partners
from trainers.datasets.boxes import Boxes, usable
from trainers.datasets.files import Damaged
from trainers.datasets.instances import Instances, Outline, need_masks, outline
from trainers.datasets.points import Points

ACCEPTED = "COCO's JSON with the lists images, annotations and categories"
LISTS = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """The annotations of a file for one target."""

    categories: dict[int, str]  # names by id, in the order of the ids
    classes: tuple[str, ...]  # names as `DataSet.classes` returns them
    paths: tuple[str, ...]  # an image file for each entry, sorted, relative to the folder of images
    annotations: Annotations


class Photo(NamedTuple):
    """An image of the file."""

    path: str
    width: int
    height: int


class Person(NamedTuple):
    """An annotated object with key points."""

    points: np.ndarray  # x, y and visibility, float64 [K, 3]
    box: tuple[float, float, float, float]
    area: float


# A function that reads an annotation, given its image, its class number and the earlier entries of the image. It
# returns None for an annotation that the target does not need.
Take = Callable[[dict[str, Any], Photo, int, Sequence[Any]], Any]


@lru_cache(maxsize=4)  # the files do not change while a program runs
def read(path: str, target: str) -> Content:
    """Return the annotations of a file for a target: "boxes", "instances" or "points".

    Raise `UserError` for a file that cannot be read, has no annotations, or has too many unusable entries.
    """
    if target == "instances":
        need_masks()
    content = _lists(path)
    categories = _categories(path, content["categories"])
    damaged = Damaged(len(content["images"]) + len(content["annotations"]), "images and annotations")
    photos = _photos(path, content["images"], damaged)
    if target == "points":
        owner, names = _key_points(path, content["categories"])
        classes, numbers = names, {key: int(key == owner) for key in categories}
        take: Take = partial(_person, len(names))
    else:
        classes, numbers = ("background", *categories.values()), {key: i for i, key in enumerate(categories, 1)}
        take = _row if target == "boxes" else _outline
    entries: dict[int, list[Any]] = {key: [] for key in photos}
    for i, given in enumerate(content["annotations"]):
        try:
            photo, key = _photo_of(given, photos)
            number = _known(given, "category_id", numbers)
            found = take(given, photo, number, entries[key]) if photo is not None and number else None
            if found is not None:
                entries[key].append(found)
        except (ValueError, OverflowError) as error:
            damaged.add(f"{path}: annotations[{i}]", error)
    if not any(entries.values()):
        what = "key points" if target == "points" else "objects"
        raise UserError(f"`data_dir`: {path} holds no annotation of {what}; accepted: {ACCEPTED}")
    whole = [(photo, entries[key]) for key, photo in photos.items() if photo is not None]
    whole.sort(key=lambda pair: pair[0].path)
    if target == "points":
        whole = [(photo, [person]) for photo, people in whole for person in people]
    shapes = tuple((photo.height, photo.width) for photo, _ in whole)
    paths, objects = tuple(photo.path for photo, _ in whole), [found for _, found in whole]
    return Content(categories, classes, paths, _annotations(target, objects, shapes, classes))


def _annotations(
    target: str, objects: Sequence[list[Any]], shapes: tuple[tuple[int, int], ...], names: tuple[str, ...]
) -> Annotations:
    """Return the annotations of images. objects: the entries of each image, which the functions below return."""
    if target == "boxes":
        rows = tuple(np.array(found, np.float64).reshape(-1, 6) for found in objects)
        return Boxes(rows, shapes, max(map(len, rows)))
    if target == "instances":
        return Instances(tuple(map(tuple, objects)), shapes)
    people: list[Person] = [found[0] for found in objects]
    return Points(
        np.stack([person.points for person in people]),
        np.array([person.box for person in people]),
        np.array([person.area for person in people]),
        shapes,
        partners(names),
    )


def _lists(path: str) -> dict[str, list[Any]]:
    """Return the lists `images`, `annotations` and `categories` of a file."""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"`data_dir`: {path} cannot be read: {error.strerror}; accepted: {ACCEPTED}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"`data_dir`: {path} is no JSON ({error}); accepted: {ACCEPTED}") from None
    missing = [name for name in LISTS if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise UserError(f"`data_dir`: {path} lacks {', '.join(missing)}; accepted: {ACCEPTED}")
    return content


def _categories(path: str, given: list[Any]) -> dict[int, str]:
    """Return the names of the categories by id, in the order of the ids."""
    found: dict[int, str] = {}
    for entry in given:
        number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if type(number) is not int or not isinstance(name, str) or number in found:
            raise UserError(f"`data_dir`: {path}: the category {_short(entry)}; accepted: a name, and an id of its own")
        found[number] = name
    if not found:
        raise UserError(f"`data_dir`: {path} holds no category; accepted: {ACCEPTED}")
    return dict(sorted(found.items()))


def _key_points(path: str, given: list[Any]) -> tuple[int, tuple[str, ...]]:
    """Return the id of the category with key points, and the names of the key points."""
    found = [entry for entry in given if entry.get("keypoints")]
    names = found[0]["keypoints"] if len(found) == 1 else None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise UserError(
            f"`data_dir`: {path} has {len(found)} categories with key points; accepted: one, with a list of different "
            f"names in keypoints"
        )
    return found[0]["id"], tuple(names)


def _photos(path: str, given: list[Any], damaged: Damaged) -> dict[int, Photo | None]:
    """Return the images by id. None: an unusable image. Its annotations are left out without a message."""
    found: dict[int, Photo | None] = {}
    for i, entry in enumerate(given):
        try:
            number = _whole(entry, "id")
            if number in found:
                raise ValueError(f"the id {number} of an earlier image; accepted: an id of its own")
            found[number] = None
            name, sides = entry.get("file_name"), (_whole(entry, "width"), _whole(entry, "height"))
            if not isinstance(name, str) or not name or min(sides) < 1:
                raise ValueError(f"the image {_short(entry)}; accepted: file_name, and width and height in pixels")
            found[number] = Photo(name, *sides)
        except ValueError as error:
            damaged.add(f"{path}: images[{i}]", error)
    return found


def _photo_of(given: Any, photos: dict[int, Photo | None]) -> tuple[Photo | None, int]:
    """Return the image of an annotation, and the image's id. None: an unusable image."""
    number = _whole(given, "image_id")
    if number not in photos:
        raise ValueError(f"image_id {number}; accepted: the id of an image")
    return photos[number], number


def _known(given: dict[str, Any], name: str, numbers: dict[int, int]) -> int:
    """Return the class number of an annotation; 0 for a category without a class."""
    number = _whole(given, name)
    if number not in numbers:
        raise ValueError(f"{name} {number}; accepted: the id of a category")
    return numbers[number]


def _whole(given: Any, name: str) -> int:
    """Return a whole number of an entry."""
    if not isinstance(given, dict) or type(given.get(name)) is not int:
        raise ValueError(f"no {name} in {_short(given)}; accepted: a whole number")
    return given[name]


def _short(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _numbers(given: Any, count: int, what: str) -> list[float]:
    """Return a list of finite numbers of an entry."""
    right = isinstance(given, list) and len(given) == count and all(type(v) in (int, float) for v in given)
    if not right or not all(map(math.isfinite, given)):
        raise ValueError(f"{what} {_short(given)}; accepted: {count} numbers")
    return [float(value) for value in given]


def _crowd(given: dict[str, Any]) -> bool:
    flag = given.get("iscrowd", 0)
    if flag not in (0, 1):
        raise ValueError(f"iscrowd {_short(flag)}; accepted: 0, 1")
    return bool(flag)


def _box(given: dict[str, Any], photo: Photo) -> tuple[float, float, float, float]:
    x, y, width, height = _numbers(given.get("bbox"), 4, "the box")
    return usable(x, y, x + width, y + height, photo.width, photo.height)


def _row(given: dict[str, Any], photo: Photo, number: int, before: Sequence[Any]) -> list[float]:
    """Return a row of `TARGETS["boxes"]` in pixels of the file."""
    return [*_box(given, photo), number, float(_crowd(given))]


def _outline(given: dict[str, Any], photo: Photo, number: int, before: Sequence[Outline]) -> Outline:
    if not _crowd(given):
        own = 1 + sum(found.value % OBJECTS > 0 for found in before)
        if own == OBJECTS:
            raise ValueError(f"object {own} of its image; accepted: up to {OBJECTS - 1}")
        return outline(OBJECTS * number + own, given.get("segmentation"), photo.height, photo.width)
    return outline(OBJECTS * number, given.get("segmentation"), photo.height, photo.width)


def _person(count: int, given: dict[str, Any], photo: Photo, number: int, before: Sequence[Any]) -> Person | None:
    """Return an object with key points. None: a crowd, or an object without a labelled key point."""
    if _crowd(given):
        return None
    points = np.array(_numbers(given.get("keypoints"), 3 * count, "the key points")).reshape(-1, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise ValueError(f"the key points {_short(given['keypoints'])}; accepted: a visibility of 0, 1 or 2")
    if not points[:, 2].any():
        return None
    (area,) = _numbers([given.get("area")], 1, "the area")
    if area <= 0:
        raise ValueError(f"the area {area:g}; accepted: above 0")
    return Person(points, _box(given, photo), area)
