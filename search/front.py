"""The front of quality (more is better) against one or several costs (less is better): pure functions of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import moocore
import numpy as np


class Axis(NamedTuple):
    """The costs of points, and a range of budgets from `low` to `high`. log: whether the axis is logarithmic."""

    values: Sequence[float]
    low: float
    high: float
    log: bool = True


def front(quality: Sequence[float], *costs: Sequence[float]) -> list[int]:
    """Return the indices of the points that no other point dominates, cheapest first.

    A point dominates another if it is not worse in quality or in any cost, and better in at least one of them. Of equal
    points, only the one with the lowest index is returned.
    costs: for each cost, its value for each point. The first cost orders the result.
    """
    if not len(quality):
        return []
    points = np.column_stack([np.negative(quality), *costs]).astype(float)
    kept = np.flatnonzero(moocore.is_nondominated(points))
    order = np.lexsort((points[kept, 0], *points[kept, :0:-1].T))  # the last key comes first
    return kept[order].tolist()


def hypervolume(quality: Sequence[float], *axes: Axis, chance: float = 0.0) -> float:
    """Return the mean, over all budgets in the ranges of the axes, of the best quality within the budget, in %.

    Quality is counted above chance: chance counts as 0 %, and 100 % stays 100 %. So the result is the volume that the
    points dominate, with the reference point (`chance`, `high`, ...), divided by the volume of the whole range up to a
    quality of 100 %. It is 0 if no point costs less than `high`.
    quality: in %.
    chance: the quality of a guess, in %. Points at or below chance count as 0.
    """
    if not len(quality) or any(not a.high > a.low or (a.log and a.low <= 0) for a in axes):
        return 0.0
    lengths = [math.log(a.high / a.low) if a.log else a.high - a.low for a in axes]
    places = [_place(np.maximum(a.values, a.low), a) for a in axes]
    points = np.column_stack([np.negative(quality), *places])
    volume = moocore.hypervolume(points, ref=[-chance, *lengths])
    return float(volume / math.prod(lengths) * (100 / (100 - chance)))


def _place(values: np.ndarray, axis: Axis) -> np.ndarray:
    """Return the distances of costs from the axis's low end."""
    return np.log(values / axis.low) if axis.log else values - axis.low


def knee(quality: Sequence[float], *places: Sequence[float]) -> int:
    """Return the index of the front's point whose quality, scaled to the front's range, is most above its scaled costs.

    With one cost, this point is farthest above the line between the front's ends. Several scaled costs are averaged.
    places: for each cost, the place of each point on the cost's axis (`Objective.axis`).
    """
    points = front(quality, *places)
    if len(points) < 3:
        return max(points, key=lambda i: quality[i])
    columns = np.array([[column[i] for i in points] for column in (quality, *places)], dtype=float)
    low, span = columns.min(1, keepdims=True), np.ptp(columns, axis=1, keepdims=True)
    scaled = (columns - low) / np.where(span > 0, span, 1.0)
    return points[int(np.argmax(scaled[0] - scaled[1:].mean(0)))]
