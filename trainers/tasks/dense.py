"""The base class of tasks whose targets are masks, boxes or key points."""

from __future__ import annotations

from trainers.datasets.data import Data

PIXELS = 1 << 20  # maximum number of pixels of a scored batch


class Dense:
    """The base class of tasks whose networks have a head in place of the classifier (see `Task`)."""

    recipe = "dense"
    detects = False

    def check(self) -> None:
        """Do nothing: most tasks need no further package."""

    def head_size(self, data: Data) -> int:
        """Return the number of the data set's classes."""
        return data.num_classes

    def eval_batch(self, image_size: int) -> int:
        """Return the number of images that are scored at once."""
        return max(1, PIXELS // image_size**2)
