"""Outlines of objects, as polygons or runs of pixels: maps of the target "instances" (`trainers.datasets.base`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from res2net.errors import UserError
from trainers.datasets.base import OBJECTS
from trainers.datasets.pairs import check_shape, draw_map, pair_view
from trainers.decode import Choose, View

PACKAGE = "faster_coco_eval"
ACCEPTED = "accepted: polygons of at least 3 points, or runs of pixels"
MOST_CHARACTERS = 12  # maximum length of a number in compressed text: 60 bits


def need_masks() -> None:
    """Raise `UserError` if the package that draws polygons is missing."""
    if find_spec(PACKAGE) is None:
        raise UserError("`data`: outlines need faster-coco-eval; run pip install 'res2net-search[detection]'")


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """The pixels of an object, in pixels of its image file: polygons or runs.

    value: the value of the object's pixels in the map.
    polygons: x, y, x, y, ... of the points of each polygon, float64 [2 * points].
    runs: lengths of the runs of pixels, int64. Runs outside and inside the object alternate. Pixels are counted column
        by column, downwards, from the left column.
    """

    value: int
    polygons: tuple[np.ndarray, ...] = ()
    runs: np.ndarray | None = None


def outline(value: int, given: Any, height: int, width: int) -> Outline:
    """Return the outline of a COCO annotation's `segmentation`. Raise `ValueError` if it cannot be read."""
    if isinstance(given, list):
        return Outline(value, _polygons(given, height, width))
    if not isinstance(given, dict) or given.get("size") != [height, width]:
        size = f"{width} x {height}"
        raise ValueError(f"a segmentation that is neither a list nor runs of an image of {size}; {ACCEPTED}")
    counts = given.get("counts")
    whole = isinstance(counts, list) and all(type(n) is int and 0 <= n <= height * width for n in counts)
    runs = _unpacked(counts) if isinstance(counts, str) else np.array(counts if whole else [], np.int64)
    if ((runs < 0) | (runs > height * width)).any() or runs.sum() != height * width:
        raise ValueError(f"a segmentation whose runs do not fill an image of {width} x {height} pixels; {ACCEPTED}")
    return Outline(value, runs=runs)


def _polygons(given: list[Any], height: int, width: int) -> tuple[np.ndarray, ...]:
    found = []
    for polygon in given:
        try:
            points = np.array(polygon, np.float64)
        except (ValueError, TypeError, OverflowError):
            points = np.empty(0)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError(f"a segmentation with a polygon that is not 3 or more points; {ACCEPTED}")
        # Clip points far outside the image: drawing a line to them would need much memory. COCO draws points that lie a
        # little outside, so keep them.
        found.append(np.clip(points.reshape(-1, 2), (-width, -height), (2 * width, 2 * height)).ravel())
    if not found:
        raise ValueError(f"an empty segmentation; {ACCEPTED}")
    return tuple(found)


def _unpacked(text: str) -> np.ndarray:
    """Return the runs in COCO's compressed text, int64. Raise `ValueError` for another text.

    A number is several characters, the lowest bits first. The code of a character, minus 48, has six bits: five bits of
    the number, and a sixth bit that is set if more characters follow. The highest bit of the last character's five is
    the sign. From the fourth number on, a number is the difference between its run and the run two places earlier.
    """
    bits = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits & 32 == 0)
    if not len(ends) or ends[-1] != len(bits) - 1 or bits.min() < 0 or bits.max() > 63:
        raise ValueError(f"a segmentation whose text holds no runs; {ACCEPTED}")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MOST_CHARACTERS:
        raise ValueError(f"a segmentation with a run of {lengths.max()} characters; {ACCEPTED}")
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << shifts, starts) - np.where(bits[ends] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The outlines of the objects of image files (`Annotations`).

    Where objects overlap, a pixel belongs to the object with fewer pixels. Objects take precedence over crowd regions.
    """

    objects: tuple[tuple[Outline, ...], ...]  # the outlines of each image
    shapes: tuple[tuple[int, int], ...]  # height and width of each file

    def take(self, rows: Sequence[int]) -> Instances:
        """Return the outlines of the files at these rows."""
        return Instances(tuple(self.objects[i] for i in rows), tuple(self.shapes[i] for i in rows))

    def form(self, size: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Return the shape and the type of the labels of an image."""
        return (size, size), torch.int32

    def choose(self, row: int, size: int, flip: bool, seed: int | None) -> Choose:
        """Return the function that chooses the view of an image: the whole image, or a random crop."""
        return pair_view(size, flip, seed)

    def draw(self, row: int, view: View, shape: tuple[int, int], size: int, out: Tensor) -> None:
        """Write the map of a view. The border is background."""
        check_shape(self.shapes[row], shape)
        draw_map(_map(self.objects[row], *shape), view, 0, out)


def _map(objects: Sequence[Outline], height: int, width: int) -> np.ndarray:
    """Return the map of an image file, int32 [height, width]."""
    runs = [_runs(found, height, width) for found in objects]
    pixels = [int(found[1::2].sum()) for found in runs]
    # Draw crowd regions first, then large objects.
    order = sorted(range(len(objects)), key=lambda i: (objects[i].value % OBJECTS > 0, -pixels[i]))
    columns = np.zeros(width * height, np.int32)  # runs go down the columns
    for i in order:
        ends = np.cumsum(runs[i]).tolist()
        for start, end in zip(ends[0::2], ends[1::2], strict=False):
            columns[start:end] = objects[i].value
    return columns.reshape(width, height).T


def _runs(found: Outline, height: int, width: int) -> np.ndarray:
    if found.runs is not None:
        return found.runs
    from faster_coco_eval.core import mask  # slow to import, and in the extra `detection`

    parts: Any = mask.frPyObjects([polygon.tolist() for polygon in found.polygons], height, width)
    text = mask.merge(parts)["counts"]
    return _unpacked(text if isinstance(text, str) else text.decode("ascii"))
