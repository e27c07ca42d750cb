"""Which trials go on: successive halving that knows the front, as pure functions of what the rungs hold.

A trial that reaches a rung (an epoch) goes on if it is among the best 1/eta of all that reached it so far, itself
included: asynchronous, so no worker waits (ASHA, arXiv 1810.05934). What is best differs: `asha` goes by accuracy
alone, which stops the small networks, the cheap end of the front; `pareto-asha` by non-dominated sorting of accuracy
and MACs, ties by crowding distance (NSGA-II, Deb et al. 2002), so that a cheap network is compared with cheap ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SCHEDULERS = ("pareto-asha", "asha", "none")


def rungs(epochs: int, min_epochs: int, eta: int) -> tuple[int, ...]:
    """The epochs after which trials are compared: `min_epochs` times powers of `eta`, below the full budget."""
    out, epoch = [], min_epochs
    while epoch < epochs:
        out.append(epoch)
        epoch *= eta
    return tuple(out)


def goes_on(scheduler: str, eta: int, top1: Sequence[float], macs: Sequence[float], which: int) -> bool:
    """Whether the trial at place `which` of a rung goes on: fewer than n / eta of the n that reached it are better.

    top1: accuracies at the rung. macs: of the same trials. Trials that rank alike stand or fall together: both ends of
    the front, the cheapest network and the most accurate one, are always among the best.
    """
    if scheduler == "none":
        return True
    accuracy = np.asarray(top1, float)
    if scheduler == "asha":
        better = accuracy > accuracy[which]
    else:
        fronts, crowding = rank(top1, macs)
        better = (fronts < fronts[which]) | ((fronts == fronts[which]) & (crowding > crowding[which]))
    return bool(better.sum() < len(accuracy) / eta)


def rank(top1: Sequence[float], macs: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Each point's front (0 is the best) and how alone it is there (more is better)."""
    fronts = front_numbers(top1, macs)
    crowding = np.zeros(len(fronts))
    for number in np.unique(fronts):
        members = np.flatnonzero(fronts == number)
        crowding[members] = crowding_distance(np.asarray(top1, float)[members], np.asarray(macs, float)[members])
    return fronts, crowding


def front_numbers(top1: Sequence[float], macs: Sequence[float]) -> np.ndarray:
    """The front each point is on: 0 for those that nothing dominates, 1 for those that only front 0 does, and so on.

    O(n log n): by ascending MACs, a point is on the first front whose best accuracy so far is below its own.
    """
    accuracy, price = np.asarray(top1, float), np.asarray(macs, float)
    out = np.zeros(len(accuracy), int)
    best: list[float] = []  # of each front, negated accuracies ascending in quality: best[k] falls with k
    previous: dict[tuple[float, float], int] = {}
    for i in np.lexsort((-accuracy, price)):
        point = (accuracy[i], price[i])
        if point in previous:  # equal points do not dominate each other
            out[i] = previous[point]
            continue
        low, high = 0, len(best)
        while low < high:
            middle = (low + high) // 2
            if best[middle] < accuracy[i]:
                high = middle
            else:
                low = middle + 1
        out[i] = previous[point] = low
        best[low : low + 1] = [accuracy[i]]
    return out


def crowding_distance(top1: np.ndarray, macs: np.ndarray) -> np.ndarray:
    """How alone each point of one front is: the sides of the box between its neighbours, MACs on a log scale.

    Infinite at both ends. Points of equal accuracy and MACs share the distance.
    """
    points, which = np.unique(np.stack([top1, np.log(macs)], 1), axis=0, return_inverse=True)
    out = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        out[order[[0, -1]]] = math.inf
        if values[order[-1]] > values[order[0]]:
            out[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / (values[order[-1]] - values[order[0]])
    return out[which.reshape(-1)]
