"""Plan a search from its time: which networks to train, how long each, and in which order. Pure functions.

The planner maximizes the front's expected volume: the mean, over budgets on the cost axis, of the best accuracy within
the budget. In a short time, a plan has few levels of cost. In a longer time, it has more levels, and more networks per
level.
The expected accuracies come from a formula (`expected`); the seconds come from a measurement on the machine (`Pace`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from search.plan import LEAST_EPOCHS, Candidate, Level, Pace, Plan, Terms, volume_of
from search.timing import grown, independent

MOST_LEVELS = 14
SOON = 40.0  # seconds after which there should be a first front
ETA = 3  # candidates of a level per survivor
LEAST_GAIN = 1e-3  # a change of a plan must gain more points of volume than this

Way: TypeAlias = Callable[[Sequence[Candidate], float, Sequence[float], Terms, float], Plan | None]


def plan(
    candidates: Sequence[Candidate],
    seconds: float,
    workers: int,
    terms: Terms,
    overhead: float = 1.0,
    ways: Sequence[Way] = (independent,),
) -> Plan:
    """Return the best plan for the time. candidates: by rising cost.

    ways: how networks may be trained: `independent`, or `grown` if each candidate contains the cheaper ones. The plan
        uses the way with the largest expected volume.
    If the first score would come late, the plan starts with a preview, or shortens the cheapest network's training.
    The plan has no levels if not even the cheapest network can be trained for one epoch.
    """
    plans = [_soon(way, candidates, seconds, workers, terms, overhead) for way in ways]
    return _with_exploration(max(plans, key=lambda found: found.volume if found.levels else -1.0), overhead)


def _soon(
    way: Way, candidates: Sequence[Candidate], seconds: float, workers: int, terms: Terms, overhead: float
) -> Plan:
    """Return the best plan of one way to train, with an early first score."""
    idle = [0.0] * workers
    best = _best(way, candidates, seconds, idle, terms, overhead)
    if not best.levels or best.first <= SOON:
        return best
    cheapest = candidates[0]
    soon = max(LEAST_EPOCHS, (SOON - overhead) / cheapest.seconds)
    hurried = _best(way, [replace(cheapest, most=soon), *candidates[1:]], seconds, idle, terms, overhead)
    preview = _preview(seconds * workers, cheapest, overhead)
    if preview is None:
        return hurried
    rest = _best(way, candidates, seconds, [preview.seconds, *idle[1:]], terms, overhead)
    return max(hurried, replace(rest, levels=(preview, *rest.levels)), key=lambda found: found.volume)


def _best(
    way: Way,
    candidates: Sequence[Candidate],
    seconds: float,
    free: Sequence[float],
    terms: Terms,
    overhead: float,
) -> Plan:
    """Return the plan of the largest volume. free: for each worker, the seconds until it is free.

    Of all evenly spread sets of networks, take the best one. Then change one network at a time while the volume rises.
    """
    best, chosen = Plan(seconds, len(free), (), 0, volume_of(terms, terms.known), 1.0), set[int]()

    def better(indices: set[int]) -> bool:
        nonlocal best, chosen
        found = way([candidates[i] for i in sorted(indices)], seconds, free, terms, overhead)
        if found is None or (best.levels and found.volume <= best.volume + LEAST_GAIN):
            return False
        best, chosen = found, indices
        return True

    for count in range(1, min(MOST_LEVELS, len(candidates)) + 1):
        for top in range(count - 1, len(candidates)):
            better(_spread(candidates, count, top))
    improving = bool(chosen)
    while improving:
        changed = [chosen ^ {i} for i in range(len(candidates))]  # one network more or less
        changed += [chosen ^ {i, j} for i in chosen for j in (i - 1, i + 1) if 0 <= j < len(candidates)]
        improving = any(better(indices) for indices in changed if 0 < len(indices) <= MOST_LEVELS)
    return best


def _spread(candidates: Sequence[Candidate], count: int, top: int) -> set[int]:
    """Return `count` candidates from the cheapest to number `top`, at even distances on the logarithmic axis."""
    logs = [math.log(c.cost) for c in candidates]
    wanted = np.linspace(logs[0], logs[top], count)
    return {min(range(len(logs)), key=lambda i: abs(logs[i] - w)) for w in wanted}


def _preview(seconds: float, cheapest: Candidate, overhead: float) -> Level | None:
    """Return a short first training of the cheapest network; None if it would cost too much of the time."""
    epochs = max(LEAST_EPOCHS, (0.6 * SOON - overhead) / cheapest.seconds)
    length = epochs * cheapest.seconds + overhead
    if length > 0.1 * seconds:
        return None
    return Level(dict(cheapest.params), cheapest.cost, epochs, 0.0, length)


def _with_exploration(found: Plan, overhead: float) -> Plan:
    """Return the plan with the number of further networks that can be trained in the time after its levels."""
    if not found.levels:
        return found
    left = found.idle * found.seconds * found.workers
    usual = float(np.mean([level.seconds for level in found.levels])) * (1 / ETA + 1 / ETA**2) + overhead
    explore = int(left / usual)
    return replace(found, explore=explore)


def retimed(
    levels: Sequence[Level],
    seconds: float,
    free: Sequence[float],
    terms: Terms,
    pace: Pace,
    inherits: float | None = None,
) -> Level | None:
    """Return the level to start now, with epochs that suit the time left. Return None if no level fits.

    levels: the levels that are not started. free: for each worker, the seconds until it is free. One is free now.
    inherits: if networks grow, the sum of the epochs of the trunk so far, each times its cost.
    If the time does not suffice for all levels, the dearest levels are dropped. A preview keeps its planned epochs.
    Other levels of the first front get at most their planned epochs.
    """
    if levels and any(level.cost == levels[0].cost for level in levels[1:]):  # the same network follows: a preview
        length = levels[0].epochs * pace.of(levels[0].cost) + pace.overhead
        if min(free) + length <= seconds:
            return replace(levels[0], start=min(free), seconds=length)
    way = independent if inherits is None else partial(grown, inherited=inherits)
    left = sorted({level.cost: level for level in levels}.values(), key=lambda level: level.cost)
    while left:
        candidates = [Candidate(x.params, x.cost, pace.of(x.cost), _most(x, left)) for x in left]
        found = way(candidates, seconds, free, terms, pace.overhead)
        if found is not None:
            return min(found.levels, key=lambda level: (level.start, level.cost))
        left.pop()
    return None


def _most(level: Level, levels: Sequence[Level]) -> float:
    """Return the maximum of a level's epochs: the planned ones, if it gives the first front and other levels follow."""
    return level.epochs if level.start + level.seconds <= SOON and len(levels) > 1 else math.inf
