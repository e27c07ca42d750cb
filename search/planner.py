"""Plan a search from its time: which networks to train, how long each, and in which order. Pure functions.

The planner maximizes the front's expected volume: the mean, over budgets on the cost axis, of the best accuracy within
the budget. Few levels of cost are trained in a short time, more levels and more networks a level in a longer one.
The expected accuracies come from a formula (`expected`); the seconds come from a measurement on the machine (`Pace`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from search.front import hypervolume

# The formula of top-1 accuracy above chance, `expected`, is a fit to trainings of four networks of 0.3 to 4 MMACs for
# 3, 6 and 12 epochs on CIFAR-10 (`studies/LOG.md`). A plan needs only the relative worth of networks and epochs.
FLOOR, ROOM, DECAY = 0.12, 0.19, 0.45  # the error of an endless training: FLOOR + ROOM * 2 ** (-DECAY * octaves)
LACK, GROWTH, POWER = 0.21, 0.23, 0.9  # the error of a short one: + LACK * (1 + GROWTH * octaves) * passes ** -POWER
REFERENCE = 45_000  # training images of one pass in the formula
MOST_LEVELS = 14
MOST_PASSES = 40.0  # in longer trainings, networks only learn their training images by heart
LEAST_EPOCHS = 1.0
SOON = 40.0  # seconds after which the first front should be there
ETA = 3  # candidates of a level per survivor
LEAST_GAIN = 1e-3  # points of volume; a change of a plan must gain more
STEPS = 40  # bisection steps, which find the price of a second


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that a plan may train. cost: on the cost axis. seconds: of one epoch on one worker. most: epochs."""

    params: Mapping[str, int]
    cost: float
    seconds: float
    most: float = math.inf


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

    costs, seconds: for each network of a plan, its cost and the seconds of one epoch on one worker, by rising cost.
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

    If its first score would come late, either a preview comes first, or the cheapest network's training is shorter.
    The plan has no levels if not even the cheapest network can be trained for one epoch.
    """
    best = _best(candidates, seconds, [0.0] * workers, terms, overhead)
    if best.levels and best.first > SOON:
        cheapest = candidates[0]
        soon = max(LEAST_EPOCHS, (SOON - overhead) / cheapest.seconds)
        hurried = _best([replace(cheapest, most=soon), *candidates[1:]], seconds, [0.0] * workers, terms, overhead)
        preview = _preview(seconds, cheapest, overhead)
        if preview is not None:
            rest = _best(candidates, seconds, [preview.seconds] + [0.0] * (workers - 1), terms, overhead)
            best = replace(rest, levels=(preview, *rest.levels))
        if preview is None or hurried.volume > best.volume:
            best = hurried
    return _with_exploration(best, overhead)


def _best(
    candidates: Sequence[Candidate], seconds: float, free: Sequence[float], terms: Terms, overhead: float
) -> Plan:
    """Return the plan of the largest volume. free: for each worker, the seconds until it is free.

    Of all evenly spread sets of networks, take the best one. Then change one network at a time while the volume rises.
    """
    best, chosen = Plan(seconds, len(free), (), 0, _volume(terms, terms.known), 1.0), set[int]()

    def better(indices: set[int]) -> bool:
        nonlocal best, chosen
        found = _timed([candidates[i] for i in sorted(indices)], seconds, free, terms, overhead)
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


def _timed(
    chosen: Sequence[Candidate], seconds: float, free: Sequence[float], terms: Terms, overhead: float
) -> Plan | None:
    """Return the plan that trains these networks for the whole time; None if the time does not suffice.

    The longest training goes first to the worker with the least work. Then each worker divides its time among its
    networks, so that the last second of each is worth the same. A worker trains its cheapest network first.
    """
    worth = _weights(chosen, terms)
    lengths = _divided(list(zip(chosen, worth, strict=True)), sum(seconds - f for f in free), terms, overhead)
    if lengths is None:
        return None
    loads = list(free)
    shares: list[list[tuple[Candidate, float]]] = [[] for _ in free]
    for i in sorted(range(len(chosen)), key=lambda i: -lengths[i]):
        worker = min(range(len(free)), key=lambda w: loads[w])
        loads[worker] += lengths[i]
        shares[worker].append((chosen[i], worth[i]))
    levels: list[Level] = []
    for share, at in zip(shares, free, strict=True):
        share.sort(key=lambda pair: pair[0].cost)
        found = _divided(share, seconds - at, terms, overhead)
        if found is None:
            return None
        for (candidate, _), length in zip(share, found, strict=True):
            epochs = (length - overhead) / candidate.seconds
            levels.append(Level(dict(candidate.params), candidate.cost, epochs, at, length))
            at += length
    levels.sort(key=lambda level: (level.start, level.cost))
    points = [(level.cost, expected(terms, level.cost, level.epochs)) for level in levels]
    busy = sum(level.seconds for level in levels) + sum(min(f, seconds) for f in free)
    volume = _volume(terms, (*terms.known, *points))
    return Plan(seconds, len(free), tuple(levels), 0, volume, 1 - busy / (seconds * len(free)))


def _divided(
    share: Sequence[tuple[Candidate, float]], seconds: float, terms: Terms, overhead: float
) -> list[float] | None:
    """Divide a time among networks with weights. Return the seconds of each; None if the time does not suffice."""

    def lengths(log_price: float) -> list[float]:
        price = math.exp(log_price)
        return [_worth(c, w, price, terms) * c.seconds + overhead for c, w in share]

    low, high = -40.0, 40.0  # the logarithm of the price of a second
    if sum(lengths(high)) > seconds:
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        if sum(lengths(middle)) <= seconds:
            high = middle
        else:
            low = middle
    return lengths(high)


def _weights(chosen: Sequence[Candidate], terms: Terms) -> list[float]:
    """Return the octaves that each network covers: up to the next dearer one, or the end of the range."""
    edges = [terms.octaves(c.cost) for c in chosen] + [terms.octaves(terms.high)]
    return [max(1e-3, b - a) for a, b in itertools.pairwise(edges)]


def _worth(candidate: Candidate, weight: float, price: float, terms: Terms) -> float:
    """Return the epochs after which another second gains less than its price."""
    scale = terms.images / REFERENCE
    lack = _lack(terms.octaves(candidate.cost)) * scale**-POWER
    epochs = (weight * lack * POWER / (price * candidate.seconds)) ** (1 / (1 + POWER))
    return min(max(epochs, LEAST_EPOCHS), MOST_PASSES / scale, candidate.most)


def _volume(terms: Terms, points: Sequence[tuple[float, float]]) -> float:
    """Return the volume in % of points (cost, accuracy above chance)."""
    costs, qualities = [cost for cost, _ in points], [100 * quality for _, quality in points]
    return hypervolume(qualities, costs, terms.low, terms.high)


def _preview(seconds: float, cheapest: Candidate, overhead: float) -> Level | None:
    """Return a short first training of the cheapest network; None if it would cost too much of the time."""
    epochs = max(LEAST_EPOCHS, (0.6 * SOON - overhead) / cheapest.seconds)
    length = epochs * cheapest.seconds + overhead
    if length > 0.1 * seconds:
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
    """Return the level to start now, with the epochs that suit the time that is left, or None if no level fits.

    levels: those not started. free: for each worker, the seconds until it is free; a worker is free now.
    The dearest levels are dropped while the time does not suffice for all. A preview keeps its planned epochs, and no
    other level that gives the first front gets more than planned.
    """
    if levels and any(level.cost == levels[0].cost for level in levels[1:]):  # the same network follows: a preview
        length = levels[0].epochs * pace.of(levels[0].cost) + pace.overhead
        if min(free) + length <= seconds:
            return replace(levels[0], start=min(free), seconds=length)
    left = sorted({level.cost: level for level in levels}.values(), key=lambda level: level.cost)
    while left:
        candidates = [Candidate(x.params, x.cost, pace.of(x.cost), _most(x, left)) for x in left]
        found = _timed(candidates, seconds, free, terms, pace.overhead)
        if found is not None:
            return min(found.levels, key=lambda level: (level.start, level.cost))
        left.pop()
    return None


def _most(level: Level, levels: Sequence[Level]) -> float:
    """Return the most epochs of a level: those planned, if it gives the first front and other levels follow."""
    return level.epochs if level.start + level.seconds <= SOON and len(levels) > 1 else math.inf
