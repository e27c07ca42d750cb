"""The front of accuracy (more is better) against MACs (fewer is better): pure functions of two columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def front(accuracy: Sequence[float], macs: Sequence[float]) -> list[int]:
    """Indices of the points that no other dominates, cheapest first; of equal points the first stands.

    A point dominates another if it is at least as accurate at no more MACs, and better in one of the two.
    """
    best, kept = -math.inf, []
    for i in sorted(range(len(macs)), key=lambda i: (macs[i], -accuracy[i], i)):
        if accuracy[i] > best:
            best = accuracy[i]
            kept.append(i)
    return kept


def hypervolume(accuracy: Sequence[float], macs: Sequence[float], low: float, high: float) -> float:
    """The best accuracy within a budget of MACs, averaged over budgets from `low` to `high` on a log scale.

    This is the dominated area of (log MACs, accuracy) with the reference point (`high`, 0), divided by the width of the
    range: in the unit of accuracy, 0 where nothing is within `high`.
    """
    inside = [i for i in front(accuracy, macs) if macs[i] < high]
    if not inside or not high > low > 0:
        return 0.0
    edges = [max(low, macs[i]) for i in inside] + [high]
    area = sum(accuracy[i] * math.log(b / a) for i, a, b in zip(inside, edges[:-1], edges[1:], strict=True))
    return area / math.log(high / low)


def knee(accuracy: Sequence[float], macs: Sequence[float]) -> int:
    """Index of the front's point farthest above the line between its ends, in (log MACs, accuracy)."""
    points = front(accuracy, macs)
    x = np.log([macs[i] for i in points])
    y = np.asarray([accuracy[i] for i in points], dtype=float)
    if len(points) < 3:
        return points[-1]
    above = (y - y[0]) / (y[-1] - y[0]) - (x - x[0]) / (x[-1] - x[0])
    return points[int(np.argmax(above))]
