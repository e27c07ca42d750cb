"""COCO's objects and key points: COCO 2017, or a data set of your own with annotations in COCO's format."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from res2net.errors import UserError
from trainers.datasets import coco_file
from trainers.datasets.base import DataSet, Files

SIZE = 640  # pixels along a side: COCO's images have at most 640, so they keep their own size
POINTS_SIZE = 256  # pixels along a side of the image of a person, as for SimpleBaseline (arXiv 1804.06208)
# The start of an annotation file's name, by target.
KINDS = {"boxes": "instances", "instances": "instances", "points": "person_keypoints"}
LAYOUT = (
    "a folder with annotations/instances_train2017.json, annotations/instances_val2017.json, train2017/ and val2017/ "
    "(key points: person_keypoints_train2017.json, person_keypoints_val2017.json); or with annotations/train.json, "
    "annotations/val.json, train/ and val/"
)

Part = Literal["train", "val"]


class Coco(DataSet):
    """Photographs with a box or an outline for each object, or one person with key points for each image.

    The test split is `val`. A search cuts its validation split from the training images. Class numbers follow the order
    of the categories' ids. Unusable annotations are named on stderr and left out. Too many of them raise `UserError`
    (see `trainers.datasets.files.Damaged`).

    Key points: an image for each person with a labelled key point. The training and the validation split may have
    persons of the same photograph.
    """

    name = "coco"
    resizable = True
    streamable = True
    targets = ("boxes", "instances", "points")

    def classes(self) -> tuple[str, ...]:
        """Return the names of the categories, the background first; for points, the names of the key points."""
        # Prefer the test split's file, which is small. `train` compares the categories of both files.
        return self._read("val" if self._found("val") else "train").classes

    def train(self) -> Files:
        """Return the training images and their annotations."""
        if self._found("val") and self._read("train").categories != self._read("val").categories:
            raise UserError(
                f"`data_dir`: {self._place('train')[0]} has other categories than "
                f"{self._place('val')[0].name}; accepted: the same ids and names in both"
            )
        return self._files("train")

    def test(self) -> Files:
        """Return the images of `val` and their annotations."""
        path, found = self._place("val")[0], self._read("val").classes
        if self.trained_classes is not None and found != self.trained_classes:
            raise UserError(
                f"`data_dir`: {path} has other classes ({len(found)}) than the trained network; accepted: the same "
                f"{len(self.trained_classes)}"
            )
        return self._files("val")

    @classmethod
    def base(cls, image_size: int | None) -> str:
        """Return the search base for images of this size."""
        return super().base(image_size or POINTS_SIZE)

    def _top(self) -> Path:
        top = self.root(LAYOUT)
        if not top.is_dir():
            raise UserError(f"`data_dir`: {top} is no folder; accepted: {LAYOUT}")
        return top

    def _found(self, part: Part) -> tuple[Path, Path] | None:
        """Return the annotation file and the image folder of a part, or None if there is no annotation file."""
        top, kind = self._top(), KINDS[self.target]
        names = {f"{kind}_{part}2017": f"{part}2017", f"{kind}_{part}": part, part: part}
        places = [(top / f"annotations/{name}.json", top / folder) for name, folder in names.items()]
        return next((place for place in places if place[0].is_file()), None)

    def _place(self, part: Part) -> tuple[Path, Path]:
        """Return the annotation file and the image folder of a part. Raise `UserError` if there is no such file."""
        found = self._found(part)
        if found is None:
            names = f"annotations/{KINDS[self.target]}_{part}2017.json and no annotations/{part}.json"
            raise UserError(f"`data_dir`: {self._top()} holds no {names}; accepted: {LAYOUT}")
        return found

    def _read(self, part: Part) -> coco_file.Content:
        return coco_file.read(str(self._place(part)[0]), self.target)

    def _files(self, part: Part) -> Files:
        """Return the images of a part. Missing images are only detected when they are decoded."""
        folder, content = self._place(part)[1], self._read(part)
        if not folder.is_dir():
            raise UserError(f"`data_dir`: {folder.parent} holds no {folder.name}/; accepted: {LAYOUT}")
        size = self.image_size or (POINTS_SIZE if self.target == "points" else SIZE)
        labels = np.zeros(len(content.paths), np.int64)
        return Files(folder, content.paths, labels, size, annotations=content.annotations)
