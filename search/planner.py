"""Plan a search from its time: which networks to train, how long each, and in which order. Pure functions.

The planner maximizes the front's expected volume: the mean, over budgets on the cost axis, of the best accuracy within
the budget. Few levels of cost are trained in a short time, more levels and more networks a level in a longer one.
The expected accuracies come from a formula (`expected`); the seconds come from a measurement on the machine (`Pace`).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from search.front import hypervolume

# The formula of top-1 accuracy above chance, `expected`, is drawn by hand through a few trainings on CIFAR-10: a plan
# needs only the relative worth of networks and epochs.
FLOOR, ROOM, DECAY = 0.10, 0.22, 0.30  # the error of an endless training: FLOOR + ROOM * 2 ** (-DECAY * octaves)
LACK, GROWTH, POWER = 0.42, 0.10, 0.75  # the error of a short one: + LACK * (1 + GROWTH * octaves) * passes ** -POWER
REFERENCE = 45_000  # training images of one pass in the formula
MOST_LEVELS = 14
MOST_PASSES = 200.0  # longer trainings bring nothing that the formula knows of
LEAST_EPOCHS = 1.0
SOON = 50.0  # seconds after which the first front should be there
ETA = 3  # candidates of a level per survivor
STRETCH = 1.5  # the most by which a worker without a further network trains its last one longer
STEPS = 30  # bisection steps: the price of a second is then exact to a billionth of its range


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that a plan may train. cost: on the cost axis. seconds: of one epoch on one worker."""

    params: Mapping[str, int]
    cost: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Level:
    """A network that the plan trains. start, seconds: the expected start and duration; epochs may be a fraction."""

    params: Mapping[str, int]
    cost: float
    epochs: float
    start: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a time buys.

    seconds: the time for training. workers: concurrent trials.
    levels: the networks in their order of start.
    explore: how many further networks the sampler may propose.
    volume: the expected volume in %, `idle` the expected share of the workers' time without work.
    """

    seconds: float
    workers: int
    levels: tuple[Level, ...]
    explore: int
    volume: float
    idle: float

    @property
    def first(self) -> float:
        """The expected seconds until the first network has its score."""
        return min((level.start + level.seconds for level in self.levels), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the plan that `to_dict` wrote."""
        return cls(**{**data, "levels": tuple(Level(**level) for level in data["levels"])})


@dataclass(frozen=True, slots=True)
class Pace:
    """The measured speed of training.

    costs, seconds: for each measured network, its cost and the seconds of one epoch on one worker, by rising cost.
    overhead: seconds of a trial beside its epochs.
    """

    costs: tuple[float, ...]
    seconds: tuple[float, ...]
    overhead: float = 1.0

    def of(self, cost: float) -> float:
        """Return the seconds of an epoch of a network, interpolated on logarithmic axes."""
        log = np.interp(math.log(cost), np.log(self.costs), np.log(self.seconds))
        if cost > self.costs[-1]:  # beyond the measured range, time is proportional to the cost
            log += math.log(cost / self.costs[-1])
        return float(math.exp(log))

    def scaled(self, factor: float) -> Pace:
        """Return the pace of a machine that is slower by a factor."""
        return replace(self, seconds=tuple(factor * s for s in self.seconds))


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan is for.

    low, high: the range of costs of the volume.
    images: training images of one epoch.
    known: cost and accuracy above chance (0 to 1) of networks that are on the front already.
    """

    low: float
    high: float
    images: int
    known: tuple[tuple[float, float], ...] = ()

    def octaves(self, cost: float) -> float:
        """Return the doublings of cost above the least cost."""
        return math.log2(cost / self.low)

    def passes(self, epochs: float) -> float:
        """Return a training's length in passes over `REFERENCE` images."""
        return epochs * self.images / REFERENCE


def expected(terms: Terms, cost: float, epochs: float) -> float:
    """Return the expected accuracy above chance, from 0 to 1, of a network trained for some epochs."""
    octaves = terms.octaves(cost)
    error = FLOOR + ROOM * 2 ** (-DECAY * octaves)
    return max(0.0, 1 - error - _lack(octaves) * terms.passes(epochs) ** -POWER)


def _lack(octaves: float) -> float:
    return LACK * (1 + GROWTH * max(0.0, octaves))


def plan(candidates: Sequence[Candidate], seconds: float, workers: int, terms: Terms, overhead: float = 1.0) -> Plan:
    """Return the best plan for the time. candidates: by rising cost.

    It has no levels if not even the cheapest network can be trained for one epoch.
    """
    best = _best(candidates, seconds, [0.0] * workers, terms, overhead)
    preview = _preview(best, candidates[0], overhead)
    if preview is not None:
        rest = _best(candidates, seconds, [preview.seconds] + [0.0] * (workers - 1), terms, overhead)
        best = replace(rest, levels=(preview, *rest.levels))
    return _with_exploration(best, overhead)


def _best(
    candidates: Sequence[Candidate], seconds: float, free: Sequence[float], terms: Terms, overhead: float
) -> Plan:
    """Return the plan of the largest volume. free: for each worker, the seconds until it is free."""
    best = Plan(seconds, len(free), (), 0, _volume(terms, terms.known), 1.0)
    for count in range(1, min(MOST_LEVELS, len(candidates)) + 1):
        for top in range(count - 1, len(candidates)):
            chosen = _spread(candidates, count, top)
            found = _timed(chosen, seconds, free, terms, overhead)
            if found is not None and (not best.levels or found.volume > best.volume + 1e-9):
                best = found
    return best


def _spread(candidates: Sequence[Candidate], count: int, top: int) -> list[Candidate]:
    """Return `count` candidates from the cheapest to number `top`, at even distances on the logarithmic axis."""
    logs = [math.log(c.cost) for c in candidates]
    wanted = np.linspace(logs[0], logs[top], count)
    near = {min(range(len(logs)), key=lambda i: abs(logs[i] - w)) for w in wanted}
    return [candidates[i] for i in sorted(near)]


def _timed(
    chosen: Sequence[Candidate], seconds: float, free: Sequence[float], terms: Terms, overhead: float
) -> Plan | None:
    """Return the plan that trains these networks, with the epochs that fill the time; None if it does not suffice."""
    weights = _weights(chosen, terms)
    low, high = -30.0, 30.0  # the logarithm of the price of a second
    found = None
    for _ in range(STEPS):
        price = math.exp((low + high) / 2)
        epochs = [_worth(c, w, price, terms) for c, w in zip(chosen, weights, strict=True)]
        levels, end = _scheduled(chosen, epochs, free, overhead)
        if end <= seconds:
            found, high = levels, (low + high) / 2
        else:
            low = (low + high) / 2
    if found is None:
        return None
    points = [(level.cost, expected(terms, level.cost, level.epochs)) for level in found]
    busy = sum(level.seconds for level in found) + sum(min(f, seconds) for f in free)
    return Plan(seconds, len(free), found, 0, _volume(terms, (*terms.known, *points)), 1 - busy / (seconds * len(free)))


def _weights(chosen: Sequence[Candidate], terms: Terms) -> list[float]:
    """Return the octaves that each network covers: up to the next dearer one, or the end of the range."""
    edges = [terms.octaves(c.cost) for c in chosen] + [terms.octaves(terms.high)]
    return [max(1e-3, b - a) for a, b in itertools.pairwise(edges)]


def _worth(candidate: Candidate, weight: float, price: float, terms: Terms) -> float:
    """Return the epochs after which another second gains less than its price."""
    scale = terms.images / REFERENCE
    lack = _lack(terms.octaves(candidate.cost)) * scale**-POWER
    epochs = (weight * lack * POWER / (price * candidate.seconds)) ** (1 / (1 + POWER))
    return min(max(epochs, LEAST_EPOCHS), MOST_PASSES / scale)


def _scheduled(
    chosen: Sequence[Candidate], epochs: Sequence[float], free: Sequence[float], overhead: float
) -> tuple[tuple[Level, ...], float]:
    """Give each network, in order, to the worker that is free first. Return the levels, and when the last one ends."""
    workers, levels = sorted(free), []
    for c, e in zip(chosen, epochs, strict=True):
        start, length = workers.pop(0), e * c.seconds + overhead
        levels.append(Level(dict(c.params), c.cost, e, start, length))
        bisect.insort(workers, start + length)
    return tuple(levels), max((level.start + level.seconds for level in levels), default=0.0)


def _volume(terms: Terms, points: Sequence[tuple[float, float]]) -> float:
    """Return the volume in % of points (cost, accuracy above chance)."""
    costs, qualities = [cost for cost, _ in points], [100 * quality for _, quality in points]
    return hypervolume(qualities, costs, terms.low, terms.high)


def _preview(found: Plan, cheapest: Candidate, overhead: float) -> Level | None:
    """Return a short first training of the cheapest network, if the plan's first score comes late; else None."""
    if not found.levels or found.first <= SOON:
        return None
    epochs = max(LEAST_EPOCHS, (0.6 * SOON - overhead) / cheapest.seconds)
    length = epochs * cheapest.seconds + overhead
    if length > 0.1 * found.seconds:  # an epoch takes minutes: a preview would cost too much
        return None
    return Level(dict(cheapest.params), cheapest.cost, epochs, 0.0, length)


def _with_exploration(found: Plan, overhead: float) -> Plan:
    """Return the plan with the number of further networks that suit the time which its levels leave."""
    if not found.levels:
        return found
    left = found.idle * found.seconds * found.workers
    usual = float(np.mean([level.seconds for level in found.levels])) * (1 / ETA + 1 / ETA**2) + overhead
    explore = int(left / usual)
    return replace(found, explore=explore)


def retimed(levels: Sequence[Level], seconds: float, free: Sequence[float], terms: Terms, pace: Pace) -> Level | None:
    """Return the first level with the epochs that suit the time that is left, or None if no level fits.

    levels: those not started, in their order. free: for each worker, the seconds until it is free.
    The dearest levels are dropped while the time does not suffice for all. A preview keeps its planned epochs.
    """
    if levels and any(level.cost == levels[0].cost for level in levels[1:]):  # the same network follows: a preview
        length = levels[0].epochs * pace.of(levels[0].cost) + pace.overhead
        if min(free) + length <= seconds:
            return replace(levels[0], start=min(free), seconds=length)
    left = [Candidate(level.params, level.cost, pace.of(level.cost)) for level in levels]
    while left:
        found = _timed(sorted(left, key=lambda c: c.cost), seconds, free, terms, pace.overhead)
        if found is not None:
            first = next(level for level in found.levels if level.cost == left[0].cost)
            return _stretched(first, found, seconds, pace)
        left.remove(max(left, key=lambda c: c.cost))
    return None


def _stretched(level: Level, found: Plan, seconds: float, pace: Pace) -> Level:
    """Return the level with more epochs, if no other level follows on its worker: an idle worker earns nothing."""
    end = level.start + level.seconds
    if any(abs(other.start - end) < 1e-6 for other in found.levels):
        return level
    most = min(STRETCH * level.epochs, (seconds - level.start - pace.overhead) / pace.of(level.cost))
    epochs = max(level.epochs, most)
    return replace(level, epochs=epochs, seconds=epochs * pace.of(level.cost) + pace.overhead)
