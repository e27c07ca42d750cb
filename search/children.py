"""Children of the front: new networks that differ from a known network in one or two choices.

They are placed where the front has few networks or is steep.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from res2net.containment import contains
from search.objectives import Objective
from search.plan import Terms, expected
from search.timetable import Member
from space import Space
from space.dimensions import Params

BROOD = 3  # children in the same gap, one after the other; the scheduler stops the worse ones early
NEAR = 3  # number of parents to try, from the dearest below the gap's upper end
TRIED = 400  # number of changes of a parent to try


class Gap(NamedTuple):
    """A range of costs without a network on the front. worth: the volume that a network there may add, in octaves."""

    low: float
    high: float
    worth: float


def gaps(terms: Terms, front: Sequence[tuple[float, float]]) -> list[Gap]:
    """Return the gaps of a front, from the least cost to the greatest.

    A gap's worth is its octaves times the rise of the accuracy over it. Above the front, the rise is a prediction.
    front: the cost and the accuracy (0 to 1) of each network on the front. With several cost objectives, use the first
        cost. Networks that are on the front only because of another cost are left out.
    """
    rising: list[tuple[float, float]] = []
    for cost, quality in sorted(front):
        if not rising or quality > rising[-1][1]:
            rising.append((cost, quality))
    points = rising or [(terms.low, 0.0)]
    dearest, best = points[-1]
    rise = expected(terms, terms.high, terms.most_epochs) - expected(terms, dearest, terms.most_epochs)
    edges = [(terms.low, 0.0), *points, (terms.high, best + max(0.0, rise))]
    return [
        Gap(a, b, max(0.0, terms.octaves(b) - terms.octaves(a)) * max(0.0, top - bottom))
        for (a, bottom), (b, top) in itertools.pairwise(edges)
    ]


def child(
    space: Space,
    objective: Objective,
    found: Sequence[Gap],
    parents: Sequence[Member],
    grows: bool,
    allowed: Callable[[Member], bool],
    turn: int,
    seed: int,
) -> Params | None:
    """Return a new network in a gap, or None if none is allowed.

    The gap is drawn with probabilities in proportion to the worth. The new network differs in one or two choices from a
    parent of about the gap's cost.
    grows: whether a child must contain its parent, so that it can grow from it.
    turn: the number of the child; the same numbers give the same children, and `BROOD` of them share a gap.
    """
    draw = random.Random(f"{seed} {turn // BROOD}")
    left = [gap for gap in found if gap.worth > 0]
    while left:
        gap = draw.choices(left, [g.worth for g in left])[0]
        left.remove(gap)
        below = sorted((p for p in parents if p.cost < gap.high), key=lambda p: -p.cost)
        for parent in below[:NEAR]:
            for member in changed(space, objective, parent, random.Random(f"{seed} {turn}")):
                inside = gap.low < member.cost < gap.high
                if inside and (not grows or contains(member.arch, parent.arch)) and allowed(member):
                    return member.params
    return None


def changed(space: Space, objective: Objective, parent: Member, rng: random.Random) -> Iterator[Member]:
    """Yield up to `TRIED` members: first those with one choice changed, then with two. Both are in random order."""
    single = [(k, v) for k, values in space.parameters.items() for v in values if v != parent.params[k]]
    double = [pair for pair in itertools.combinations(single, 2) if pair[0][0] != pair[1][0]]
    rng.shuffle(single)
    rng.shuffle(double)
    for changes in itertools.islice(itertools.chain(([one] for one in single), double), TRIED):
        params = {**parent.params, **dict(changes)}
        arch = space.arch(params)
        yield Member(params, arch, objective.of(arch, space.image_size))
