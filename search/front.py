"""The front of quality (more is better) against cost (less is better): pure functions of two columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def front(quality: Sequence[float], cost: Sequence[float]) -> list[int]:
    """Return the indices of the points that no other point dominates, cheapest first.

    A point dominates another if it is at least as good at no more cost, and better in one of the two. Of equal points,
    only the one with the lowest index is returned.
    """
    best, kept = -math.inf, []
    for i in sorted(range(len(cost)), key=lambda i: (cost[i], -quality[i], i)):
        if quality[i] > best:
            best = quality[i]
            kept.append(i)
    return kept


def hypervolume(
    quality: Sequence[float], cost: Sequence[float], low: float, high: float, log: bool = True, chance: float = 0.0
) -> float:
    """Return the best quality within a budget above chance, in %, averaged over budgets from `low` to `high`.

    This is the dominated area of (cost, quality) with the reference point (`high`, `chance`), divided by the area of
    the whole range up to a quality of 100 %. It is 0 if no point costs less than `high`.
    quality: in %.
    log: whether budgets are averaged on a logarithmic axis.
    chance: the quality of a guess, in %; points at or below it count 0. With 0, the result is the mean best quality.
    """
    axis = math.log if log else float
    inside = [i for i in front(quality, cost) if cost[i] < high and quality[i] > chance]
    if not inside or not high > low or (log and low <= 0):
        return 0.0
    edges = [max(low, cost[i]) for i in inside] + [high]
    steps = zip(inside, edges[:-1], edges[1:], strict=True)
    area = sum((quality[i] - chance) * (axis(b) - axis(a)) for i, a, b in steps)
    return area / (axis(high) - axis(low)) * (100 / (100 - chance))


def knee(quality: Sequence[float], cost: Sequence[float], log: bool = True) -> int:
    """Return the index of the front's point farthest above the line between the front's ends."""
    points = front(quality, cost)
    x = np.asarray([cost[i] for i in points], dtype=float)
    x = np.log(x) if log else x
    y = np.asarray([quality[i] for i in points], dtype=float)
    if len(points) < 3:
        return points[-1]
    above = (y - y[0]) / (y[-1] - y[0]) - (x - x[0]) / (x[-1] - x[0])
    return points[int(np.argmax(above))]
