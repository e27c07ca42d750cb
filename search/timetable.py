"""The timetable of a planned search: what to train next, and for how long, by the plan and the time that is left."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from res2net.arch import Arch
from search.objectives import ACTIVATIONS, Limits, Objective
from search.planner import Pace, Plan, Terms, retimed
from search.study.trials import Record
from space import Space
from space.dimensions import Params
from trainers.recipes import Config, shortened

LEVELS = 24  # the costs that a plan may choose from, evenly spread on the cost axis
SAMPLED = 20_000  # spaces of at most this many combinations are enumerated; of larger ones, an eighth as many are drawn


class Step(NamedTuple):
    """A network to train now. place: the session that made the plan, and the level's index in it."""

    params: Mapping[str, int]
    place: tuple[int, int]
    epochs: float


@dataclass(slots=True)
class Timetable:
    """The plan of a search in progress.

    plan, pace, terms: see `search.planner`.
    steps_per_epoch: steps of one epoch of a trial.
    session: the session of the run that made the plan.
    started: indices of the plan's levels that trials have begun.
    ratios: measured over expected seconds of the trials so far. They correct the pace.
    """

    plan: Plan
    pace: Pace
    terms: Terms
    steps_per_epoch: int
    session: int = 0
    started: set[int] = field(default_factory=set)
    ratios: list[float] = field(default_factory=list)

    def resume(self, records: Iterable[Record]) -> None:
        """Mark the levels that trials of earlier sessions have begun."""
        places = [r.attrs["plan"] for r in records if "plan" in r.attrs]
        self.started |= {level for session, level in places if session == self.session}

    @property
    def now(self) -> Pace:
        """The pace, corrected by the trials so far."""
        return self.pace.scaled(statistics.median(self.ratios[-9:])) if self.ratios else self.pace

    def note(self, cost: float, epochs: float, seconds: float) -> None:
        """Correct the pace by a trial that took `seconds` for its epochs."""
        training = max(0.1 * seconds, seconds - self.pace.overhead)  # some trials are shorter than the overhead
        self.ratios.append(training / (epochs * self.pace.of(cost)))

    def next(self, left: float, busy: Sequence[float]) -> Step | None:
        """Return the next step, to start now; None if no level is left or fits. Mark its level as started.

        left: seconds until the end. busy: the expected seconds until each running trial ends.
        """
        free = [0.0] * max(1, self.plan.workers - len(busy)) + [min(max(0.0, b), left) for b in busy]
        waiting = [i for i in range(len(self.plan.levels)) if i not in self.started]
        if not waiting:
            return None
        level = retimed([self.plan.levels[i] for i in waiting], left, free, self.terms, self.now)
        if level is None:
            return None
        place = next(i for i in waiting if self.plan.levels[i].cost == level.cost)
        self.started.add(place)
        return Step(level.params, (self.session, place), round(level.epochs, 2))

    def epochs(self, cost: float, left: float) -> float | None:
        """Return the epochs of a network that the sampler proposes; None if the time left does not suffice.

        They are those of the plan's level of the nearest cost.
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


def members(space: Space, limits: Limits, objective: Objective, seed: int) -> list[Member]:
    """Return one member within the limits for each of `LEVELS` costs, by rising cost."""
    found: dict[int, Member] = {}
    every = {m.arch.key(): m for m in _all(space, objective, seed) if limits.allow(m.arch, space.image_size)}
    if not every:
        return []
    low = objective.axis(min(m.cost for m in every.values()))
    step = (objective.axis(max(m.cost for m in every.values())) - low) / (LEVELS - 1) or 1.0
    for member in every.values():
        place = round((objective.axis(member.cost) - low) / step)
        if place not in found or _preferred(member, space) > _preferred(found[place], space):
            found[place] = member
    return sorted(found.values(), key=lambda m: m.cost)


def _all(space: Space, objective: Objective, seed: int) -> Iterable[Member]:
    """Yield the members of a space, or, if it is large, a sample of them that spreads over the costs."""
    rng = random.Random(seed)
    drawn = (space.sample_by_macs(rng) for _ in range(SAMPLED // 8))
    for params in space.all_params() if space.size <= SAMPLED else (space.cheapest()[0], *drawn):
        arch = space.arch(params)
        yield Member(params, arch, objective.of(arch, space.image_size))


def _preferred(member: Member, space: Space) -> float:
    """Return the rank of a member among those of about equal cost: more is better.

    Short trainings favour scale, and few activations, which set the time of a step, over depth: the factors are a fit
    in points of accuracy for each doubling, to networks of 1 MMACs (`studies/LOG.md`).
    """
    stages, count = member.arch.stages, len(member.arch.stages)
    scale = sum(math.log2(s.scale) for s in stages) / count
    depth = sum(math.log2(s.depth) for s in stages) / count
    activations = math.log2(ACTIVATIONS.of(member.arch, space.image_size))
    return 0.7 * scale - 0.5 * depth - 1.5 * activations
