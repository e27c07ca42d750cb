"""The objectives of a search: the quality and the costs of a network, and the limits on costs.

The study, driver, ledger, scheduler, front, reports and limits read these values. Nothing else names an objective.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from res2net.arch import Arch
from res2net.cost import cost
from res2net.errors import UserError, unknown
from res2net.plugins import PATH, load_object
from search.units import format_count
from space import Space
from space.space import MAX_WIDTH, WORST_MATCH

SHAPES = 300  # random shapes to try before `match_macs` is refused
SAMPLED = 2_000  # random members that give the range of a user's own cost objective


@dataclass(frozen=True, slots=True)
class Objective:
    """A number to maximize or minimize.

    name: the key of the objective in the study, the tables and `trials.csv`.
    label: the label of the objective's axis in plots.
    unit: the unit that follows a value in text.
    log: whether the objective's axis is logarithmic.
    measure: a function `(arch, image_size) -> value`, for costs that need no training.
    format: a function that writes a value as text.
    """

    name: str
    label: str
    unit: str
    direction: Literal["maximize", "minimize"] = "minimize"
    log: bool = True
    measure: Callable[[Arch, int], float] | None = None
    format: Callable[[float], str] = format_count

    def of(self, arch: Arch, image_size: int) -> float:
        """Return the cost of a network for one image of `image_size` pixels along a side."""
        assert self.measure is not None, f"{self.name} is earned by training"
        return self.measure(arch, image_size)

    def axis(self, value: float) -> float:
        """Return a value's position on the objective's axis: its logarithm if `log`, else the value."""
        return math.log(value) if self.log else value

    def range(self, space: Space) -> tuple[float, float]:
        """Return the least and the greatest value in a space: exact for costs in `COSTS`, else over a sample."""
        if self.name in COSTS:
            cheapest, dearest = space.cheapest(self.name)[1], space.dearest(self.name)[1]
            return getattr(cheapest, self.name), getattr(dearest, self.name)
        rng = random.Random(0)
        params = [space.cheapest()[0], space.dearest()[0], *(space.sample(rng) for _ in range(SAMPLED))]
        values = [self.of(space.arch(p), space.image_size) for p in params]
        return min(values), max(values)


ACCURACY = Objective(
    "val_top1",
    "top-1 accuracy on the validation split (%)",
    "%",
    "maximize",
    log=False,
    format=lambda value: f"{value:.2f}",
)
MACS = Objective("macs", "multiply-accumulates of one image", "MACs", measure=lambda arch, size: cost(arch, size).macs)
PARAMS = Objective("params", "parameters", "params", measure=lambda arch, size: cost(arch, size).params)
ACTIVATIONS = Objective(
    "activations", "activations of one image", "activations", measure=lambda arch, size: cost(arch, size).activations
)
COSTS: dict[str, Objective] = {o.name: o for o in (MACS, PARAMS, ACTIVATIONS)}


def cost_objective(name: str) -> Objective:
    """Return the cost objective of a name, or of an import path `my_package:NAME`."""
    if name in COSTS:
        return COSTS[name]
    if ":" not in name:
        raise unknown("`objective`", name, (*COSTS, PATH))
    found = load_object(name, "objective")
    if not isinstance(found, Objective) or found.measure is None:
        raise UserError(f"`objective`: {name} is a {type(found).__name__}; accepted: an Objective with a measure")
    return found


@dataclass(frozen=True, slots=True)
class Limit:
    """A hard bound on one objective. Networks are checked against it before they are built."""

    objective: Objective
    least: float | None = None
    most: float | None = None

    def violations(self, value: float) -> list[float]:
        """Return by how much the value breaks each set bound, relative to the bound; above 0 is a violation."""
        out = []
        if self.most is not None:
            out.append(value / self.most - 1)
        if self.least is not None:
            out.append(1 - value / self.least)
        return out

    @property
    def bounds(self) -> list[tuple[str, float]]:
        """The name of the setting and the value of each bound that is set."""
        named = ((f"max_{self.objective.name}", self.most), (f"min_{self.objective.name}", self.least))
        return [(name, value) for name, value in named if value is not None]


@dataclass(frozen=True, slots=True)
class Limits:
    """All hard bounds of a search."""

    limits: tuple[Limit, ...] = ()

    def violations(self, arch: Arch, image_size: int) -> list[float]:
        """Return by how much a network breaks each set bound, relative to the bound; above 0 is a violation."""
        return [v for limit in self.limits for v in limit.violations(limit.objective.of(arch, image_size))]

    def allow(self, arch: Arch, image_size: int) -> bool:
        """Return whether a network meets every bound."""
        return all(v <= 0 for v in self.violations(arch, image_size))

    def of(self, objective: Objective) -> Limit:
        """Return the bounds on one objective."""
        return next((limit for limit in self.limits if limit.objective == objective), Limit(objective))

    @property
    def bounds(self) -> list[tuple[str, float, Objective]]:
        """The name of the setting, the value and the objective of each bound that is set."""
        return [(name, value, limit.objective) for limit in self.limits for name, value in limit.bounds]

    def check_order(self) -> None:
        """Raise `UserError` for a lower bound that is above the upper one."""
        for limit in self.limits:
            if limit.least and limit.most and limit.least > limit.most:
                name, least, most = limit.objective.name, format_count(limit.least), format_count(limit.most)
                raise UserError(f"`min_{name}`: {least} is more than `max_{name}` {most}; accepted: at most that")

    def check(self, space: Space) -> None:
        """Raise `UserError` for a bound that no member of the space meets; the error names the nearest possible one."""
        for limit in self.limits:
            name = limit.objective.name
            least, most = limit.objective.range(space)
            where = f"nothing in space {space.name!r} ({space.base})"
            if limit.most is not None and limit.most < least:
                raise UserError(
                    f"`max_{name}`: {where} is within {format_count(limit.most)}; "
                    f"accepted: at least {least:.15g}, its cheapest"
                )
            if limit.least is not None and limit.least > most:
                raise UserError(
                    f"`min_{name}`: {where} reaches {format_count(limit.least)}; "
                    f"accepted: at most {most:.15g}, its dearest"
                )


def limits(bounds: Mapping[str, float | None]) -> Limits:
    """Return the limits of settings such as `{"max_macs": 20e6, "min_macs": None}`."""
    found = (Limit(o, bounds.get(f"min_{o.name}"), bounds.get(f"max_{o.name}")) for o in COSTS.values())
    return Limits(tuple(limit for limit in found if limit.bounds))


@dataclass(frozen=True, slots=True)
class Matching:
    """A comparison of networks at equal MACs, as in the paper: the width is solved for each shape.

    macs: the MACs of every network; None turns matching off.
    """

    macs: int | None = None

    @property
    def active(self) -> bool:
        """Whether networks are compared at equal MACs."""
        return bool(self.macs)

    def member(self, space: Space, params: Mapping[str, int]) -> Arch:
        """Return the network of the parameters; raise `UserError` if no width gives the network these MACs."""
        return space.at_macs(params, self.macs) if self.macs else space.arch(params)

    def check(self, space: Space, limits: Limits, seed: int) -> None:
        """Raise `UserError` if no shape reaches the MACs, or if every shape that does breaks a limit."""
        if not self.macs:
            return
        (narrow, least), (wide, most) = space.match_range()
        rng, error = random.Random(seed), None
        for params in (narrow, wide, *(space.sample(rng) for _ in range(SHAPES))):
            try:
                if limits.allow(self.member(space, params), space.image_size):
                    return
                error = "no shape of that many MACs is within the other limits"
            except UserError as problem:
                error = error or str(problem)
        if not least.macs <= self.macs <= most.macs:
            low, high = f"{least.macs} (its cheapest shape, 1 channel wide)", f"{most.macs} (its dearest, {MAX_WIDTH})"
            error = f"accepted: {low} to {high}"
        raise UserError(
            f"`match_macs`: nothing in space {space.name!r} ({space.base}) matches {format_count(self.macs)}: {error}"
        )

    def range(self) -> tuple[float, float] | None:
        """Return the least and the most MACs of matched networks; None without matching."""
        return (round((1 - WORST_MATCH) * self.macs), round((1 + WORST_MATCH) * self.macs)) if self.macs else None
