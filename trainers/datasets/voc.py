"""Pascal VOC in its official layout: semantic segmentation, with or without the augmented masks (SBD), and boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from res2net.errors import UserError
from trainers.datasets.base import DataSet, Files
from trainers.datasets.voc_boxes import XML, read_boxes

SIZE = 513  # pixels along a side, as for DeepLab: images of up to 500 pixels are scored at their own size
BOXES_SIZE = 512  # a multiple of 32, the strides of detection heads; images of up to 500 pixels keep their own size
PLACES = ("", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007")  # below `data_dir`
IMAGES, MASKS, AUGMENTED, LISTS = "JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"
BOX_LISTS = "ImageSets/Main"
PLACED = f"or a folder with {PLACES[1]}/ or {PLACES[2]}/ of this layout"
LAYOUT = (
    f"a folder with {IMAGES}/, {MASKS}/ or {AUGMENTED}/, and {LISTS}/ with train.txt or trainaug.txt, and val.txt; "
    f"{PLACED}"
)
BOXES_LAYOUT = (
    f"a folder with {IMAGES}/, {XML}/, and {BOX_LISTS}/ with train.txt and val.txt, or trainval.txt and test.txt; "
    f"{PLACED}"
)
# fmt: off
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


class Voc(DataSet):
    """Pascal VOC with a class for each pixel, or with boxes: 20 classes and the background.

    Masks: the training split is `trainaug.txt` if this list and the augmented masks exist, else `train.txt`. The test
    split is `val.txt`, as in the published protocol.

    Boxes: if all images of `test.txt` have annotations, as in VOC 2007, the test split is `test.txt` and the training
    split is `trainval.txt`. Otherwise the test split is `val.txt` and the training split is `train.txt`.

    A search cuts its validation split from the training images.
    """

    name = "voc"
    resizable = True
    streamable = True
    targets = ("mask", "boxes")

    def classes(self) -> tuple[str, ...]:
        """Return the class names, the background first."""
        return CLASSES

    def train(self) -> Files:
        """Return the training images and their masks or boxes."""
        if self.target == "boxes":
            return self._boxes(self._lists()[0])
        return self._files(*self._training())

    def test(self) -> Files:
        """Return the test images and their masks or boxes."""
        if self.target == "boxes":
            return self._boxes(self._lists()[1])
        # Prefer the official masks: the augmented ones lack the void pixels along the edges of objects.
        return self._files("val.txt", MASKS if (self._root() / MASKS).is_dir() else AUGMENTED)

    def note(self) -> str:
        """Return the list and the targets of the training images."""
        if self.target == "boxes":
            return f"{self._root()}: training images of {self._lists()[0]}, boxes of {XML}"
        name, masks = self._training()
        return f"{self._root()}: training images of {name}, masks of {masks}"

    @classmethod
    def base(cls, image_size: int | None) -> str:
        """Return the search base for images of this size."""
        return super().base(image_size or SIZE)

    def _root(self) -> Path:
        accepted = BOXES_LAYOUT if self.target == "boxes" else LAYOUT
        top = self.root(accepted)
        found = next((top / place for place in PLACES if (top / place / IMAGES).is_dir()), None)
        if found is None:
            places = " and no ".join(f"{place}/{IMAGES}/".lstrip("/") for place in PLACES)
            state = f"holds no {places}" if top.is_dir() else "is no folder"
            raise UserError(f"`data_dir`: {top} {state}; accepted: {accepted}")
        return found

    def _training(self) -> tuple[str, str]:
        """Return the list of the training images and the folder of their masks."""
        root = self._root()
        if (root / AUGMENTED).is_dir() and (root / LISTS / "trainaug.txt").is_file():
            return "trainaug.txt", AUGMENTED
        return "train.txt", MASKS if (root / MASKS).is_dir() else AUGMENTED

    def _files(self, name: str, masks: str) -> Files:
        """Return the images of a list. Missing images or masks are only detected when they are decoded."""
        root = self._root()
        stems = _stems(root / LISTS / name, LAYOUT)
        if not any((root / masks / f"{stem}.png").is_file() for stem in stems):
            raise UserError(
                f"`data_dir`: {root / masks} holds no mask of an image of {LISTS}/{name}; accepted: {LAYOUT}"
            )
        paths, masks_of = (tuple(f"{at}.{end}" for at in stems) for end in ("jpg", "png"))
        return Files(
            root,
            tuple(f"{IMAGES}/{path}" for path in paths),
            np.zeros(len(stems), np.int64),
            self.image_size or SIZE,
            tuple(f"{masks}/{path}" for path in masks_of),
            len(CLASSES),
        )

    def _lists(self) -> tuple[str, str]:
        """Return the lists of the training images and of the test images that have boxes."""
        root = self._root()
        test = root / BOX_LISTS / "test.txt"
        # The list of VOC 2012 names images without annotations.
        if test.is_file() and all((root / XML / f"{stem}.xml").is_file() for stem in _stems(test, BOXES_LAYOUT)):
            return "trainval.txt", "test.txt"
        return "train.txt", "val.txt"

    def _boxes(self, name: str) -> Files:
        """Return the images of a list and their boxes. Images whose annotations cannot be read are left out."""
        root = self._root()
        stems, boxes = read_boxes(root / XML, _stems(root / BOX_LISTS / name, BOXES_LAYOUT), CLASSES)
        paths = tuple(f"{IMAGES}/{stem}.jpg" for stem in stems)
        labels = np.zeros(len(stems), np.int64)
        return Files(root, paths, labels, self.image_size or BOXES_SIZE, annotations=boxes)


def _stems(path: Path, layout: str) -> list[str]:
    """Return the sorted names of a list's images. A line is a name, or the paths of an image and of its mask."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"`data_dir`: {path} cannot be read: {reason}; accepted: {layout}") from None
    found = sorted({Path(line.split()[0]).stem for line in lines if line.strip()})
    if not found:
        raise UserError(f"`data_dir`: {path} names no image; accepted: a name on each line, such as 2007_000032")
    return found
