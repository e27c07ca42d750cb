"""Divide a time among networks: choose the epochs, the order and the workers of a set of networks. Pure functions.

`independent` trains each network from scratch. `grown` lets each network but the first grow from the network before it.
Epochs of an ancestor's trunk count too, each weighted by the ratio of the ancestor's cost to the grown network's cost.
Measurements agree with this weight (`studies/LOG.md`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from search.plan import LEAST_EPOCHS, Candidate, Level, Plan, Terms, expected, volume_of

STEPS = 40  # bisection steps, which find the price of a second
# Share of a grown network's epochs at the peak rate. After them, the next network grows from it, and it is annealed.
TRUNK = 0.5
MOST_LONGER = 3.0  # maximum factor by which a training is lengthened so that its worker does not idle
LEAST_GROWN = 2.0  # minimum epochs of a grown network: one at the peak rate, one of annealing


def independent(
    chosen: Sequence[Candidate], seconds: float, free: Sequence[float], terms: Terms, overhead: float
) -> Plan | None:
    """Return the plan that trains these networks for the whole time; None if the time does not suffice.

    First, assign the networks to workers: the longest training first, each to the worker with the least work. Then each
    worker divides its time so that the last second of each of its networks gains the same. A worker trains its cheapest
    network first.
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
    volume = volume_of(terms, (*terms.known, *points))
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
    """Return the octaves that each network covers: up to the next dearer network, or to the end of the range."""
    edges = [terms.octaves(c.cost) for c in chosen] + [terms.octaves(terms.high)]
    return [max(1e-3, b - a) for a, b in itertools.pairwise(edges)]


def _worth(candidate: Candidate, weight: float, price: float, terms: Terms) -> float:
    """Return the number of epochs after which another second gains less than `price`."""
    power = terms.curve.power
    short = terms.curve.lack(terms.size(candidate.cost)) * terms.pass_share**-power
    epochs = (weight * short * power / (price * candidate.seconds)) ** (1 / (1 + power))
    return min(max(epochs, LEAST_EPOCHS), terms.most_epochs, candidate.most)


def grown(
    chosen: Sequence[Candidate],
    seconds: float,
    free: Sequence[float],
    terms: Terms,
    overhead: float,
    inherited: float = 0.0,
) -> Plan | None:
    """Return the plan that grows each network from the network before it; None if the time does not suffice.

    A network starts when the trunk of the previous network is trained, while that network is still being annealed.
    inherited: the sum of the epochs of the trunk from which the first network grows, each times its cost.
    """

    def epochs_at(price: float) -> list[float]:
        out, before = [], inherited
        for candidate, weight in zip(chosen, worth, strict=True):
            most = min(candidate.most, terms.most_epochs)
            own = _worth(candidate, weight, price, terms) - before / candidate.cost
            out.append(min(max(own, LEAST_GROWN), max(most, LEAST_GROWN)))
            before += TRUNK * out[-1] * candidate.cost
        return out

    worth = _weights(chosen, terms)
    low, high, found = -40.0, 40.0, None
    for _ in range(STEPS):
        middle = (low + high) / 2
        levels = _chained(chosen, epochs_at(math.exp(middle)), free, overhead)
        if max(level.start + level.seconds for level, _ in levels) <= seconds:
            found, high = levels, middle
        else:
            low = middle
    if found is None:
        return None
    levels = _lengthened(found, chosen, seconds, overhead)
    before, points = inherited, []
    for level in levels:
        points.append((level.cost, expected(terms, level.cost, level.epochs + before / level.cost)))
        before += level.trunk * level.cost
    busy = sum(level.seconds for level in levels) + sum(min(f, seconds) for f in free)
    volume = volume_of(terms, (*terms.known, *points))
    return Plan(seconds, len(free), levels, 0, volume, 1 - busy / (seconds * len(free)), grown=True)


def _chained(
    chosen: Sequence[Candidate], epochs: Sequence[float], free: Sequence[float], overhead: float
) -> list[tuple[Level, int]]:
    """Give each network, in order, to the worker that is free first, once the previous network's trunk is trained.

    Return the levels with their workers.
    """
    loads, ready, levels = list(free), 0.0, []
    for c, e in zip(chosen, epochs, strict=True):
        worker = min(range(len(loads)), key=lambda w: loads[w])
        start, length = max(loads[worker], ready), e * c.seconds + overhead
        levels.append((Level(dict(c.params), c.cost, e, start, length, TRUNK * e), worker))
        ready = start + overhead + TRUNK * e * c.seconds
        loads[worker] = start + length
    return levels


def _lengthened(
    levels: Sequence[tuple[Level, int]], chosen: Sequence[Candidate], seconds: float, overhead: float
) -> tuple[Level, ...]:
    """Lengthen each level's annealing until its worker's next level starts or the time ends. So no worker idles."""
    out = []
    for (level, worker), candidate in zip(levels, chosen, strict=True):
        until = min((x.start for x, w in levels if w == worker and x.start > level.start), default=seconds)
        most = min(candidate.most, MOST_LONGER * level.epochs)
        epochs = max(level.epochs, min(most, (until - level.start - overhead) / candidate.seconds))
        out.append(replace(level, epochs=epochs, seconds=epochs * candidate.seconds + overhead))
    return tuple(out)
