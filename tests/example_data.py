"""A data set of a user's own: all that `--data example_data:Stripes` needs."""

from __future__ import annotations

import numpy as np

from trainers.datasets import DataSet, Split


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
