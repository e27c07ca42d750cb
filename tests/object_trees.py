"""Small data sets of images with objects, in COCO's and Pascal VOC's layouts. Colours of an image encode its objects.

An object is a rectangle of the colour of its class (`mask_trees.COLOURS`). Smaller objects lie in front of larger ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mask_trees import COLOURS, image_of, write
from PIL import Image

from trainers.datasets.base import OBJECTS

# Not in the order of the ids: classes are red, green, blue.
CATEGORIES = [{"id": 7, "name": "green"}, {"id": 3, "name": "red"}, {"id": 90, "name": "blue"}]
IDS = (0, 3, 7, 90)  # by class number
VOC_NAMES = ("background", "aeroplane", "bicycle", "bird")
POINTS = ("nose", "left_eye", "right_eye")
OFFICIAL = "annotations/instances_train2017.json"


class Thing(NamedTuple):
    """A rectangle in pixels, x2 and y2 exclusive, and its class number from 1."""

    x1: int
    y1: int
    x2: int
    y2: int
    label: int

    @property
    def area(self) -> int:
        return (self.x2 - self.x1) * (self.y2 - self.y1)


def things(seed: int, width: int, height: int) -> list[Thing]:
    """Return 1 to 4 objects of different areas."""
    rng = np.random.default_rng(seed)
    found: dict[int, Thing] = {}
    for label in rng.integers(1, 4, 1 + seed % 4).tolist():
        w, h = rng.integers(9, width // 2), rng.integers(9, height // 2)
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        thing = Thing(x, y, x + int(w), y + int(h), label)
        found.setdefault(thing.area, thing)
    return list(found.values())


def size_of(i: int) -> tuple[int, int]:
    """Return width and height of image i."""
    return 60 + i % 3, 44 + i % 5


def owners(objects: Sequence[Thing], width: int, height: int) -> np.ndarray:
    """Return the number of the object that owns each pixel, from 1, [height, width]; 0 for none."""
    found = np.zeros((height, width), np.int64)
    for i in sorted(range(len(objects)), key=lambda i: -objects[i].area):
        x1, y1, x2, y2, _ = objects[i]
        found[y1:y2, x1:x2] = i + 1
    return found


def labels_of(objects: Sequence[Thing], width: int, height: int) -> np.ndarray:
    """Return the class number of each pixel, uint8 [height, width]."""
    return np.array([0, *(thing.label for thing in objects)], np.uint8)[owners(objects, width, height)]


def runs(thing: Thing, width: int, height: int) -> list[int]:
    """Return the pixels of a rectangle as COCO's runs."""
    inside = np.zeros((height, width), bool)
    inside[thing.y1 : thing.y2, thing.x1 : thing.x2] = True
    flat = np.concatenate([[False], inside.T.ravel()])
    ends = np.flatnonzero(np.diff(flat)).tolist()
    return np.diff([0, *ends, height * width]).tolist()


def polygon(thing: Thing) -> list[float]:
    x1, y1, x2, y2, _ = thing
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def entry(number: int, image: int, thing: Thing, width: int, height: int) -> dict[str, Any]:
    """Return COCO's annotation of an object: runs for odd numbers, polygons for even ones."""
    outline: Any = {"size": [height, width], "counts": runs(thing, width, height)} if number % 2 else [polygon(thing)]
    box = [thing.x1, thing.y1, thing.x2 - thing.x1, thing.y2 - thing.y1]
    shared = {"id": number, "image_id": image, "category_id": IDS[thing.label], "bbox": box, "area": thing.area}
    return shared | {"iscrowd": 0, "segmentation": outline}


def coco_tree(root: Path, train: int = 6, val: int = 3, own: bool = False) -> Path:
    """Write COCO's layout. own: with the short names."""
    for part, numbers in (("train", range(train)), ("val", range(100, 100 + val))):
        folder = part if own else f"{part}2017"
        images, annotations = [], []
        for i in numbers:
            (width, height), objects = size_of(i), things(i, *size_of(i))
            write(root / folder / f"{i:06}.jpg", image_of(labels_of(objects, width, height)))
            images.append({"id": 1000 - i, "file_name": f"{i:06}.jpg", "width": width, "height": height})
            annotations += [entry(10 * i + k, 1000 - i, thing, width, height) for k, thing in enumerate(objects)]
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        save(root / f"annotations/{part}.json" if own else root / f"annotations/instances_{part}2017.json", content)
    return root


def save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def people_tree(root: Path, train: int = 5, val: int = 2) -> Path:
    """Write COCO's layout of key points: two people a photograph. A block of the colour of a key point is around it."""
    categories = [{"id": 1, "name": "person", "keypoints": list(POINTS)}, {"id": 2, "name": "dog"}]
    for part, numbers in (("train", range(train)), ("val", range(100, 100 + val))):
        images, annotations = [], []
        for i in numbers:
            rng, pixels = np.random.default_rng(i), np.zeros((90, 120, 3), np.uint8)
            images.append({"id": i, "file_name": f"{i:06}.png", "width": 120, "height": 90})
            for k in range(2):
                x, y = 5 + 60 * k + int(rng.integers(0, 9)), 3 + int(rng.integers(0, 20))
                w, h = 42, int(rng.integers(45, 64))
                places = [(x + 21, y + 8), (x + 8, y + 24), (x + 34, y + 36)]
                seen = [2, 1 + k, 2 - 2 * (i % 2)]
                for number, ((at, down), visible) in enumerate(zip(places, seen, strict=True), 1):
                    if visible:
                        pixels[down - 4 : down + 4, at - 4 : at + 4] = COLOURS[number]
                points = [
                    v for (at, down), s in zip(places, seen, strict=True) for v in ((at, down, s) if s else (0, 0, 0))
                ]
                one = {"id": 10 * i + k, "image_id": i, "category_id": 1, "bbox": [x, y, w, h], "area": w * h / 2}
                annotations.append(one | {"iscrowd": 0, "keypoints": points, "num_keypoints": sum(s > 0 for s in seen)})
            write(root / f"{part}2017" / f"{i:06}.png", Image.fromarray(pixels))
        content = {"images": images, "annotations": annotations, "categories": categories}
        save(root / f"annotations/person_keypoints_{part}2017.json", content)
    return root


def voc_boxes_tree(root: Path, **lists: Sequence[int]) -> Path:
    """Write Pascal VOC's layout with boxes. lists: the numbers of the images of each list, without its suffix."""
    for name, numbers in lists.items():
        for i in numbers:
            (width, height), objects = size_of(i), things(i, *size_of(i))
            write(root / f"JPEGImages/{i:06}.jpg", image_of(labels_of(objects, width, height)))
            write_xml(root, i, width, height, objects)
        path = root / f"ImageSets/Main/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{i:06}\n" for i in numbers))
    return root


def write_xml(root: Path, i: int, width: int, height: int, objects: Sequence[Thing]) -> Path:
    """Write the boxes of an image, which count from 1. The first object of an even image is difficult."""
    texts = [
        f"<object><name>{VOC_NAMES[thing.label]}</name><difficult>{int(not k and i % 2 == 0)}</difficult><bndbox>"
        f"<xmin>{thing.x1 + 1}</xmin><ymin>{thing.y1 + 1}</ymin><xmax>{thing.x2}</xmax><ymax>{thing.y2}</ymax></bndbox>"
        "<part><name>head</name></part></object>"
        for k, thing in enumerate(objects)
    ]
    path = root / f"Annotations/{i:06}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{size}{''.join(texts)}</annotation>")
    return path


def edited(root: Path, change: Callable[[dict[str, Any]], object], name: str = OFFICIAL) -> Path:
    """Change an annotation file."""
    content = json.loads((root / name).read_text())
    change(content)
    save(root / name, content)
    return root


def check_labels(labels: torch.Tensor, target: str, i: int) -> None:
    """Check the labels of image i of a tree, which is not resized."""
    width, height = size_of(i)
    objects = things(i, width, height)
    if target == "boxes":
        assert [row[:5] for row in labels.tolist()][: len(objects)] == [list(thing) for thing in objects]
        assert not labels[len(objects) :].any()
        assert not labels[:, 5].any()
    else:
        own = owners(objects, width, height)
        expected = np.where(own, OBJECTS * labels_of(objects, width, height).astype(int) + own, 0)
        assert np.array_equal(labels[:height, :width], expected)
        assert not labels[height:].any()
        assert not labels[:, width:].any()
