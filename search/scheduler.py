"""Decide which trials continue: successive halving that knows the front, as pure functions of a rung's values.

A trial that reaches a rung (an epoch) continues if it is among the best 1/eta of all trials that reached it so far,
itself included. The decision is asynchronous: no worker waits (ASHA, arXiv 1810.05934). `asha` ranks by quality alone,
which stops small networks, the cheap end of the front. `pareto-asha` ranks by non-dominated sorting of quality and cost
with ties broken by crowding distance (NSGA-II, Deb et al. 2002), which compares cheap networks with cheap ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SCHEDULERS = ("pareto-asha", "asha", "none")


def rungs(epochs: int, min_epochs: int, eta: int) -> tuple[int, ...]:
    """Return the epochs after which trials are compared: `min_epochs` times powers of `eta`, below the full budget."""
    out, epoch = [], min_epochs
    while epoch < epochs:
        out.append(epoch)
        epoch *= eta
    return tuple(out)


def continues(
    scheduler: str, eta: int, quality: Sequence[float], cost: Sequence[float], which: int, log: bool = True
) -> bool:
    """Return whether the trial at index `which` of a rung continues: fewer than n / eta of the n trials are better.

    Trials of equal rank continue or stop together. Under `pareto-asha`, the cheapest and the best network share the
    best rank, so both always continue. With few trials at a rung, a strict top 1/eta would drop the cheapest network.
    log: whether the cost axis is logarithmic.
    """
    if scheduler == "none":
        return True
    values = np.asarray(quality, float)
    if scheduler == "asha":
        better = values > values[which]
    else:
        fronts, crowding = rank(quality, cost, log)
        better = (fronts < fronts[which]) | ((fronts == fronts[which]) & (crowding > crowding[which]))
    return bool(better.sum() < len(values) / eta)


def rank(quality: Sequence[float], cost: Sequence[float], log: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return each point's front (0 is the best) and its crowding distance in that front (more is better)."""
    fronts = front_numbers(quality, cost)
    crowding = np.zeros(len(fronts))
    for number in np.unique(fronts):
        members = np.flatnonzero(fronts == number)
        crowding[members] = crowding_distance(
            np.asarray(quality, float)[members], np.asarray(cost, float)[members], log
        )
    return fronts, crowding


def front_numbers(quality: Sequence[float], cost: Sequence[float]) -> np.ndarray:
    """Return the number of each point's front: 0 if nothing dominates it, 1 if only points of front 0 do, and so on.

    O(n log n): in the order of cost, a point joins the first front whose best quality so far is below the point's.
    """
    values, price = np.asarray(quality, float), np.asarray(cost, float)
    out = np.zeros(len(values), int)
    best: list[float] = []  # the best quality of each front so far; it falls as the front's number grows
    previous: dict[tuple[float, float], int] = {}
    for i in np.lexsort((-values, price)):
        point = (float(values[i]), float(price[i]))
        if point in previous:  # equal points do not dominate each other
            out[i] = previous[point]
            continue
        low, high = 0, len(best)
        while low < high:
            middle = (low + high) // 2
            if best[middle] < point[0]:
                high = middle
            else:
                low = middle + 1
        out[i] = previous[point] = low
        best[low : low + 1] = [point[0]]
    return out


def crowding_distance(quality: np.ndarray, cost: np.ndarray, log: bool = True) -> np.ndarray:
    """Return each point's crowding distance in its front: the summed sides of the box between its two neighbours.

    Sides are relative to the front's ranges. The distance is infinite at both ends; equal points share one distance.
    """
    axis = np.log(cost) if log else cost
    points, which = np.unique(np.stack([quality, axis], 1), axis=0, return_inverse=True)
    out = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        out[order[[0, -1]]] = math.inf
        if values[order[-1]] > values[order[0]]:
            out[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / (values[order[-1]] - values[order[0]])
    return out[which.reshape(-1)]
