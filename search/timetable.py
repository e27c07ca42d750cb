"""The timetable of a planned search: the next network and its epochs, from the plan and the time that is left."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from res2net.arch import Arch
from res2net.containment import contains
from search.objectives import ACTIVATIONS, MACS, Limits, Objective
from search.plan import Level, Pace, Plan, Terms
from search.planner import retimed
from search.study.trials import Record
from space import Space
from space.dimensions import Params
from trainers.recipes import Config, shortened

CHOICES = 8  # members of about equal cost from which a chain is made
LEVELS = 24  # number of costs that a plan may choose from, evenly spread on the cost axis
LEAST_FIRST = 0.25  # minimum number of epochs of the first network
SAMPLED = 20_000  # spaces of at most this many combinations are enumerated; of larger spaces, draw SAMPLED / 8 members


class Awaited(Exception):
    """The next network waits for a trunk to grow from."""


class Step(NamedTuple):
    """A network to train now. place: the name of the plan, and the index of the level in the plan.

    trunk: the epochs at the peak rate after which larger networks grow from this one; 0 without growth.
    """

    params: Mapping[str, int]
    place: tuple[int | str, int]
    epochs: float
    trunk: int = 0


@dataclass(slots=True)
class Timetable:
    """The plan of a search in progress.

    plan, pace, terms: see `search.planner`.
    steps_per_epoch: steps of one epoch of a trial.
    session: the name of the plan: the session of the run that made it. In a shared study, other drivers have plans of
        the same session, so a random text follows.
    started: indices of the plan's levels that trials have begun.
    ratios: for each trial so far, the ratio of measured to expected seconds. The ratios correct the pace.
    inherits: if networks grow, the sum of the epochs of the trunk so far, each times its cost. An included trained
        network gives the first summand.
    """

    plan: Plan
    pace: Pace
    terms: Terms
    steps_per_epoch: int
    session: int | str = 0
    started: set[int] = field(default_factory=set)
    ratios: list[float] = field(default_factory=list)
    inherits: float = 0.0

    def resume(self, records: Iterable[Record]) -> None:
        """Mark the levels that trials of earlier sessions have begun."""
        places = {r.attrs["plan"][1]: r.attrs for r in records if r.attrs.get("plan", [None])[0] == self.session}
        self.started |= places.keys()
        self.inherits += sum(a.get("trunk", 0) * self.plan.levels[i].cost for i, a in places.items())

    @property
    def now(self) -> Pace:
        """The pace, corrected by the trials so far."""
        return self.pace.scaled(statistics.median(self.ratios[-9:])) if self.ratios else self.pace

    def note(self, cost: float, epochs: float, seconds: float) -> None:
        """Correct the pace by a trial that took `seconds` for its epochs."""
        training = max(0.1 * seconds, seconds - self.pace.overhead)  # some trials are shorter than the overhead
        self.ratios.append(training / (epochs * self.pace.of(cost)))

    def next(self, left: float, busy: Sequence[float], trunks: Sequence[float] = ()) -> Step | None:
        """Return the next step, to start now, and mark its level as started. Return None if no level is left or fits.

        left: seconds until the end. busy: the expected seconds until each running trial ends.
        trunks: the costs of the running networks whose trunk is not trained yet. A larger network waits for it.
        """
        free = [0.0] * max(1, self.plan.workers - len(busy)) + [min(max(0.0, b), left) for b in busy]
        waiting = [i for i in range(len(self.plan.levels)) if i not in self.started]
        if not waiting:
            return None
        inherits = self.inherits if self.plan.grown else None
        level = retimed([self.plan.levels[i] for i in waiting], left, free, self.terms, self.now, inherits)
        if level is None and not self.started:  # workers started late; a short training is better than no front
            level = self._shortest(left)
        if level is None:
            return None
        if self.plan.grown and any(cost < level.cost for cost in trunks):
            raise Awaited
        place = next(i for i in waiting if self.plan.levels[i].cost == level.cost)
        self.started.add(place)
        epochs, trunk = round(level.epochs, 2), 0
        if self.plan.grown and all(self.plan.levels[i].cost != level.cost for i in waiting if i != place):
            trunk = min(max(1, round(level.trunk)), math.ceil(epochs) - 1)  # weights are passed on after whole epochs
            self.inherits += trunk * level.cost
        return Step(level.params, (self.session, place), epochs, trunk)

    def _shortest(self, left: float) -> Level | None:
        """Return the cheapest level, shortened to the time left. Return None for less than a quarter of an epoch."""
        cheapest = min(self.plan.levels, key=lambda level: level.cost)
        fits = (left - self.pace.overhead) / self.now.of(cheapest.cost)
        return replace(cheapest, epochs=fits) if fits >= LEAST_FIRST else None

    def epochs(self, cost: float, left: float) -> float | None:
        """Return the epochs of a network that the sampler proposes; None if the time left does not suffice.

        The network gets the epochs of the plan's level of the nearest cost.
        """
        usual = min(self.plan.levels, key=lambda level: (abs(math.log(level.cost / cost)), -level.epochs)).epochs
        fits = (left - self.pace.overhead) / self.now.of(cost)
        return round(min(usual, fits), 2) if fits > usual / 2 else None

    def explores(self, left: float) -> bool:
        """Return whether the time left suffices for a network that the sampler proposes."""
        return any(self.epochs(level.cost, left) is not None for level in self.plan.levels)

    def config(self, config: Config, epochs: float) -> Config:
        """Return a training configuration for a number of epochs that may be a fraction."""
        steps = max(1, round(epochs * self.steps_per_epoch))
        return replace(shortened(config, -(-steps // self.steps_per_epoch)), steps=steps)


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a space, with its cost."""

    params: Params
    arch: Arch
    cost: float


def members(
    space: Space,
    limits: Limits,
    objective: Objective,
    seed: int,
    nests: bool = False,
    origins: Sequence[Arch] = (),
) -> list[Member]:
    """Return members within the limits, by rising cost, at most one for each of `LEVELS` costs.

    Dearer members have more multiply-accumulates than cheaper members; otherwise they would gain no accuracy.
    Each member contains the cheaper members, so that it can grow from them. If this rule would leave out most of the
    costs, it is dropped.
    nests: whether to keep this rule even then.
    origins: each member must contain at least one of these networks.
    """
    grow = (m for m in _all(space, objective, seed) if not origins or any(contains(m.arch, o) for o in origins))
    every = {m.arch.key(): m for m in grow if limits.allow(m.arch, space.image_size)}
    if not every:
        return []
    low = objective.axis(min(m.cost for m in every.values()))
    step = (objective.axis(max(m.cost for m in every.values())) - low) / (LEVELS - 1) or 1.0
    places: dict[int, list[tuple[float, Member]]] = {}
    for member in every.values():
        place = round((objective.axis(member.cost) - low) / step)
        places.setdefault(place, []).append((_rank(member, space, objective), member))
    for found in places.values():
        found.sort(key=lambda pair: -pair[0])
    chain = _chain([places[place][:CHOICES] for place in sorted(places)])
    return chain if nests or 2 * len(chain) > len(places) else _larger([places[p][0][1] for p in sorted(places)], space)


def _larger(found: Sequence[Member], space: Space) -> list[Member]:
    """Return the members that have more multiply-accumulates than all members before them."""
    kept, most = [], 0.0
    for member in found:
        size = MACS.of(member.arch, space.image_size)
        if size > most:
            kept.append(member)
            most = size
    return kept


def _chain(places: Sequence[Sequence[tuple[float, Member]]]) -> list[Member]:
    """Return the chain with the largest worth. In a chain, each member contains the member before it.

    A chain has at most one member of each place. A member is worth 1, minus half the difference between its own rank
    and the best rank at its place.
    places: for each place on the cost axis, its members with their ranks, best first.
    """
    chains: list[tuple[float, list[Member]]] = []
    for ranked in places:
        best = ranked[0][0]
        longer = []
        for rank, member in ranked:
            shorter = [c for c in chains if contains(member.arch, c[1][-1].arch)]
            worth, before = max(shorter, key=lambda c: c[0], default=(0.0, []))
            longer.append((worth + max(0.05, 1 - 0.5 * (best - rank)), [*before, member]))
        chains += longer
    return max(chains, key=lambda c: c[0])[1]


def nested(chosen: Sequence[Member]) -> bool:
    """Return whether each member contains the member before it."""
    return all(contains(b.arch, a.arch) for a, b in itertools.pairwise(chosen))


def _all(space: Space, objective: Objective, seed: int) -> Iterable[Member]:
    """Yield all members of a space. For a large space, yield a sample that is spread over the costs."""
    rng = random.Random(seed)
    drawn = (space.sample_by_macs(rng) for _ in range(SAMPLED // 8))
    for params in space.all_params() if space.size <= SAMPLED else (space.cheapest()[0], *drawn):
        arch = space.arch(params)
        yield Member(params, arch, objective.of(arch, space.image_size))


def _rank(member: Member, space: Space, objective: Objective) -> float:
    """Return the rank of a member among members of about equal cost: more is better.

    In short trainings, a large scale and few activations gain more accuracy than depth. (Activations determine the time
    of a step.) The factors are points of accuracy for each doubling, fitted to networks of 1 MMACs (`studies/LOG.md`).
    For another cost, such as the latency, the rank also counts multiply-accumulates, by the formula of the plan
    (`search.plan.expected`).
    """
    stages, count = member.arch.stages, len(member.arch.stages)
    scale = sum(math.log2(s.scale) for s in stages) / count
    depth = sum(math.log2(s.depth) for s in stages) / count
    activations = math.log2(ACTIVATIONS.of(member.arch, space.image_size))
    products = 0.0 if objective == MACS else math.log2(MACS.of(member.arch, space.image_size))
    return 0.7 * scale - 0.5 * depth - 1.5 * activations + 3.0 * products
