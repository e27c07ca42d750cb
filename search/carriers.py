"""The networks that are timed for a latency table. Together they contain every piece of a space. No torch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from res2net.arch import Arch
from res2net.cost import cost
from res2net.latency import LatencyTable
from res2net.pieces import Piece, sequence
from space import Space
from space.dimensions import Params, combinations, dimension_of

FITTED = 12  # random members on which the overhead and the factor are fitted
SEED = 20_260_101  # the seed that draws these members; studies use other seeds


@dataclass(frozen=True, slots=True)
class Plan:
    """The networks to time, and the pieces that a table must cover.

    needed: all pieces of the space, and of the networks that the user adds.
    first: the networks that the user adds, which must be timed.
    others: shortened members of the space. They are in an order in which any number of the first ones spreads over the
        space.
    whole: members that are timed as a whole, for the fit.
    """

    image_size: int
    needed: frozenset[Piece]
    first: tuple[Arch, ...]
    others: tuple[Arch, ...]
    whole: tuple[Arch, ...]

    @property
    def archs(self) -> tuple[Arch, ...]:
        """All networks that are timed piece by piece."""
        return self.first + self.others

    def covered(self, archs: Iterable[Arch]) -> bool:
        """Return whether all needed pieces are in these networks or can be interpolated."""
        known = {p for arch in archs for p in sequence(arch, self.image_size)}
        return not missing(_table_of(known, self.image_size), self.needed)

    def least(self) -> int:
        """Return the smallest n for which the first n `archs` cover the space."""
        low, high = max(1, len(self.first)), len(self.archs)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.covered(self.archs[:middle]) else (middle + 1, high)
        return low


def plan(space: Space, networks: Sequence[Arch] = ()) -> Plan:
    """Return the networks to time for a space, and for more networks of the user."""
    size = space.image_size
    first = tuple(short(space.fitted(arch)) for arch in networks)
    members = [short(_deepest(space, combination)) for combination in _combinations(space)]
    needed = frozenset(p for arch in (*members, *first) for p in sequence(arch, size))
    others: list[Arch] = []
    seen = {p for arch in first for p in sequence(arch, size)}
    for arch in (members[i] for i in spread([_place(arch) for arch in members])):
        if not seen.issuperset(found := sequence(arch, size)):
            others.append(arch)
            seen.update(found)
    return Plan(size, needed, first, tuple(others), _random_members(space, FITTED))


def missing(table: LatencyTable, needed: Iterable[Piece]) -> list[Piece]:
    """Return the pieces that a table neither has nor interpolates."""
    return sorted((p for p in needed if not table.covers(p)), key=lambda p: p.key)


def short(arch: Arch) -> Arch:
    """Return the network with at most two blocks in each stage. It has the same pieces.

    A block takes about the same time in a shortened network: between two and four blocks in a stage, the times differed
    by 0 to 3.3 % (one network of each base micro, cifar and imagenet; optimized, one thread).
    """
    return replace(arch, stages=tuple(replace(s, depth=min(s.depth, 2)) for s in arch.stages))


def spread(points: Sequence[Sequence[float]]) -> list[int]:
    """Return an order of points in which each point is the farthest from all points before it.

    The first point is the farthest from the centre.
    """
    at = np.array(points, dtype=float)
    distance = np.linalg.norm(at - (at.min(0) + at.max(0)) / 2, axis=1)
    order: list[int] = []
    left = np.ones(len(at), dtype=bool)
    for i in range(len(at)):
        nearest = int(np.argmax(np.where(left, distance, -1.0)))
        order.append(nearest)
        left[nearest] = False
        own = np.linalg.norm(at - at[nearest], axis=1)
        distance = own if i == 0 else np.minimum(distance, own)
    return order


def work(arch: Arch, image_size: int) -> int:
    """Return the multiply-accumulates of a network, an estimate of the time of a run."""
    count, _, _ = cost(arch, image_size)
    return count


def _combinations(space: Space) -> list[Params]:
    """Return every combination of the dimensions other than depth, with the same values in all stages."""
    return list(combinations({name: values for name, values in space.choices.items() if name != "depth"}))


def _deepest(space: Space, combination: Params) -> Arch:
    """Return the deepest member with these values in all stages."""
    values = {}
    for name, choices in space.parameters.items():
        dimension = dimension_of(name)
        values[name] = choices[-1] if dimension == "depth" else combination[dimension]
    return space.arch(values)


def _place(arch: Arch) -> list[float]:
    """Return the coordinates of a network among the combinations, for `spread`.

    There is no interpolation between blocks of one split and blocks of several splits, and none between networks with
    and without squeeze-and-excitation. So these have distant coordinates.
    """
    s = arch.stages[-1]  # the widest stage, where repair changes the width least
    return [math.log(s.width), math.log(s.scale), math.log(s.cardinality), 2.0 * (s.scale == 1), 4.0 * arch.se]


def _random_members(space: Space, count: int) -> tuple[Arch, ...]:
    """Return up to `count` different members, from the least to the most work."""
    rng = random.Random(SEED)
    found = {arch.key(): arch for arch in (space.arch(space.sample(rng)) for _ in range(4 * count))}
    members = sorted(found.values(), key=lambda arch: work(arch, space.image_size))
    step = max(1.0, (len(members) - 1) / (count - 1))
    return tuple(members[round(i * step)] for i in range(min(count, len(members))))


def _table_of(known: Iterable[Piece], image_size: int) -> LatencyTable:
    """Return a table of these pieces with arbitrary times, to ask which pieces a table would cover."""
    entries = tuple((p.key, 1.0, 0.0) for p in known)
    return LatencyTable("", "", "", 1, 1, image_size, (), entries)
