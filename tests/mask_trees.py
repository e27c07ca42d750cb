"""Small data sets of images and masks, in each layout. The colours of an image encode its mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# The colour of each class. Halfway between two of them, no third colour is nearer.
COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)


def mask(seed: int, width: int = 60, height: int = 44, classes: int = 4) -> np.ndarray:
    """Return a mask uint8 [height, width] of random rectangles, in which all classes occur."""
    rng = np.random.default_rng(seed)
    found = np.zeros((height, width), np.uint8)
    for label in [*rng.integers(1, classes, 3), *range(1, classes)]:
        w, h = rng.integers(9, width // 2), rng.integers(9, height // 2)
        left, top = rng.integers(0, width - w), rng.integers(0, height - h)
        found[top : top + h, left : left + w] = label
    return found


def image_of(labels: np.ndarray) -> Image.Image:
    """Return the image whose colours encode a mask."""
    return Image.fromarray(COLOURS[labels])


def agreement(pixels: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of pixels [..., H, W, 3] whose colour is that of their label [..., H, W].

    Pixels without a label do not count, nor do those on an edge, whose colour is a mixture.
    """
    distances = np.abs(pixels[..., None, :].astype(int) - COLOURS).sum(-1)
    clear = (labels != 255) & (distances.min(-1) < 80)
    return float((distances.argmin(-1)[clear] == labels[clear]).mean())


def palette(labels: np.ndarray) -> Image.Image:
    """Return a mask as an image with a palette."""
    image = Image.fromarray(labels)
    image.putpalette(np.resize(COLOURS, (256, 3)).flatten().tolist())  # fewer colours would be saved in fewer bits
    return image


def write(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    image.save(path, **options)
    return path


def write_pair(images: Path, masks: Path, stem: str, labels: np.ndarray, salient: bool = False) -> None:
    """Write an image and its mask. salient: with white on all classes but 0, else with a palette of class numbers."""
    write(images / f"{stem}.jpg", image_of(labels))
    write(masks / f"{stem}.png", Image.fromarray(255 * (labels > 0).astype(np.uint8)) if salient else palette(labels))


def masks_tree(
    root: Path, train: tuple[str, str] | None, test: tuple[str, str] | None, n: int = 6, salient: bool = False
) -> Path:
    """Write a folder of images and masks. train, test: the folders of images and masks of each part."""
    for first, pair in ((0, train), (100, test)):
        for i in range(first, first + n if pair else first):
            labels = mask(i, 60 + i % 3, 44 + i % 5)
            write_pair(root / pair[0], root / pair[1], f"{i:03}", labels, salient)
    return root


def voc_tree(root: Path, train: int = 6, val: int = 3, augmented: int = 0) -> Path:
    """Write Pascal VOC's layout.

    augmented: number of images of `trainaug.txt` besides those of `train.txt`; 0 for no such list and no such masks.
    """
    lists = {"train": range(train), "val": range(100, 100 + val)}
    if augmented:
        lists["trainaug"] = range(train + augmented)
    for name, numbers in lists.items():
        for i in numbers:
            labels = mask(i, 60 + i % 3, 44 + i % 5)
            write(root / "JPEGImages" / f"2007_{i:06}.jpg", image_of(labels))
            if augmented:
                write(root / "SegmentationClassAug" / f"2007_{i:06}.png", Image.fromarray(labels))
            if name != "trainaug":
                labels[0] = 255  # as along the edges of objects
                write(root / "SegmentationClass" / f"2007_{i:06}.png", palette(labels))
        write_list(root, name, [f"2007_{i:06}" for i in numbers])
    return root


def write_list(root: Path, name: str, lines: Sequence[str]) -> None:
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
