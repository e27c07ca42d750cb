"""A data set of a user's own: all that `--data example_data:Stripes` needs."""

from __future__ import annotations

import numpy as np

from trainers.datasets import DataSet, Split
from trainers.datasets.base import OBJECTS


class Stripes(DataSet):
    """Grey images of 16 x 16 pixels, with stripes across or along."""

    name = "stripes"
    val_fraction = 0.25

    def classes(self) -> tuple[str, ...]:
        return ("across", "along")

    def train(self) -> Split:
        return _draw(80, seed=0)

    def test(self) -> Split:
        return _draw(20, seed=1)

    @classmethod
    def base(cls, image_size: int | None) -> str:
        return "micro"


def _draw(n: int, seed: int) -> Split:
    noise = np.random.default_rng(seed).integers(0, 100, (n, 1, 16, 16), np.uint8)
    labels = np.arange(n, dtype=np.int64) % 2
    stripes = np.uint8(150) * (np.indices((16, 16)) % 4 < 2).astype(np.uint8)
    return Split(noise + stripes[labels][:, None], labels)


class Blocks(DataSet):
    """Images of 16 x 16 pixels with one bright block of a primary colour: its mask, corners, box and pixels."""

    name = "blocks"
    val_fraction = 0.25
    targets = ("class", "mask", "salient", "points", "boxes", "instances")

    def classes(self) -> tuple[str, ...]:
        colours = ("red", "green", "blue")
        corners = ("top_left", "top_right", "bottom_left", "bottom_right")
        names = {"class": colours, "salient": ("object",), "points": corners}
        return names.get(self.target, ("background", *colours))

    def train(self) -> Split:
        return self._draw(64, seed=0)

    def test(self) -> Split:
        return self._draw(24, seed=1)

    @classmethod
    def base(cls, image_size: int | None) -> str:
        return "micro"

    def _draw(self, n: int, seed: int) -> Split:
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 100, (n, 3, 16, 16), np.uint8)
        masks, labels = np.zeros((n, 16, 16), np.uint8), np.arange(n, dtype=np.int64) % 3
        points, boxes = np.full((n, 5, 3), 2, np.float32), np.zeros((n, 2, 6), np.float32)
        for i, (colour, side) in enumerate(zip(labels, rng.integers(4, 10, n), strict=True)):
            top, left = rng.integers(0, 16 - side, 2)
            images[i, colour, top : top + side, left : left + side] += 150
            masks[i, top : top + side, left : left + side] = colour + 1
            points[i, :4, :2] = [(left + x, top + y) for y in (0, side) for x in (0, side)]
            points[i, 4] = side**2, side**2, 1
            boxes[i, 0] = left, top, left + side, top + side, colour + 1, 0
        instances = np.where(masks > 0, OBJECTS * masks.astype(np.int32) + 1, 0).astype(np.int32)
        found = {"class": labels, "mask": masks, "salient": np.minimum(masks, 1), "points": points}
        found |= {"boxes": boxes, "instances": instances}
        return Split(images, found[self.target])
