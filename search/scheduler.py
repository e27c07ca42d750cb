"""Decide which trials continue: successive halving that knows the front, as pure functions of a rung's values.

A trial that reaches a rung (an epoch) continues if it is among the best 1/eta of all trials that reached it so far,
itself included. The decision is asynchronous: no worker waits (ASHA, arXiv 1810.05934). `asha` ranks by quality alone,
which stops small networks, the cheap end of the front. `pareto-asha` ranks by non-dominated sorting of quality and cost
with ties broken by crowding distance (NSGA-II, Deb et al. 2002), which compares cheap networks with cheap ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import moocore
import numpy as np

SCHEDULERS = ("pareto-asha", "asha", "none")


def rungs(epochs: int, min_epochs: int, eta: int) -> tuple[int, ...]:
    """Return the epochs after which trials are compared: `min_epochs` times powers of `eta`, below the full budget."""
    out, epoch = [], min_epochs
    while epoch < epochs:
        out.append(epoch)
        epoch *= eta
    return tuple(out)


def continues(scheduler: str, eta: int, which: int, quality: Sequence[float], *places: Sequence[float]) -> bool:
    """Return whether the trial at index `which` of a rung continues: fewer than n / eta of the n trials are better.

    Trials of equal rank continue or stop together. Under `pareto-asha`, the cheapest and the best network share the
    best rank, so both always continue. With few trials at a rung, a strict top 1/eta would drop the cheapest network.
    places: for each cost, the place of each trial on the cost's axis (`Objective.axis`).
    """
    if scheduler == "none":
        return True
    values = np.asarray(quality, float)
    if scheduler == "asha":
        better = values > values[which]
    else:
        fronts, crowding = rank(quality, *places)
        better = (fronts < fronts[which]) | ((fronts == fronts[which]) & (crowding > crowding[which]))
    return bool(better.sum() < len(values) / eta)


def rank(quality: Sequence[float], *places: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return each point's front and its crowding distance in that front (more is better).

    The front is 0 if nothing dominates the point, 1 if only points of front 0 do, and so on.
    """
    points = np.column_stack([np.negative(quality), *places]).astype(float)
    fronts = moocore.pareto_rank(points)
    crowding = np.zeros(len(fronts))
    for number in np.unique(fronts):
        members = np.flatnonzero(fronts == number)
        crowding[members] = crowding_distance(points[members])
    return fronts, crowding


def crowding_distance(columns: np.ndarray) -> np.ndarray:
    """Return the crowding distance of each point (a row) in its front: the summed sides of the box of its neighbours.

    Sides are relative to the front's ranges. The distance is infinite at both ends; equal points share one distance.
    """
    points, which = np.unique(columns, axis=0, return_inverse=True)
    out = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        out[order[[0, -1]]] = math.inf
        if values[order[-1]] > values[order[0]]:
            out[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / (values[order[-1]] - values[order[0]])
    return out[which.reshape(-1)]
