"""The objectives of a search: the quality and the costs of a network, and the limits on costs.

The study, driver, ledger, scheduler, front, reports and limits read these values. Nothing else names an objective.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from res2net.arch import Arch, BaseArch
from res2net.cost import cost
from res2net.errors import UserError
from res2net.latency import LatencyTable
from res2net.plugins import load_object
from search.units import format_count, format_ms, parse_count, parse_ms
from space import Space
from space.space import MAX_WIDTH, WORST_MATCH
from trainers.tasks.metrics import METRICS, Score

SHAPES = 300  # random shapes to try before `match_macs` is refused
SAMPLED = 2_000  # random members that give the range of a user's own cost objective


@dataclass(frozen=True, slots=True)
class Objective:
    """A number to maximize or minimize.

    name: the key of the objective in the study, the tables and `trials.csv`.
    label: the label of the objective's axis in plots.
    unit: the unit that follows a value in text.
    log: whether the objective's axis is logarithmic.
    measure: a function `(arch, image_size) -> value`, for costs that need no training. It must return the same value in
        each call.
    additive: whether the measure is a sum over the stages of a network. Then its range over a space is exact.
    format: a function that writes a value as text.
    parse: a function `(text, field name) -> value` that reads a value as people write it.
    """

    name: str
    label: str
    unit: str
    direction: Literal["maximize", "minimize"] = "minimize"
    log: bool = True
    measure: Callable[[Any, int], float] | None = None
    additive: bool = False
    format: Callable[[float], str] = format_count
    parse: Callable[[str, str], float] = parse_count

    def of(self, arch: BaseArch, image_size: int) -> float:
        """Return the cost of a network for one image of `image_size` pixels along a side."""
        assert self.measure is not None, f"{self.name} is earned by training"
        value = self.measure(arch, image_size)
        return value if isinstance(value, int) else float(value)  # JSON holds no numbers of NumPy

    def check(self, space: Space) -> None:
        """Raise `UserError` if the measure returns an invalid value, or different values in two calls.

        A valid value is a finite number, above 0 if the axis is logarithmic. The two ends of a space are tried.
        """
        for params in (space.cheapest()[0], space.dearest()[0]):
            arch = space.arch(params)
            try:
                first, second = (self.of(arch, space.image_size) for _ in range(2))
                good = math.isfinite(first) and (first > 0 or not self.log)
            except Exception as error:  # the user's function may raise anything
                raise UserError(
                    f"`objective`: {self.name} of {arch} fails ({type(error).__name__}: {error}); accepted: a number"
                ) from error
            if not good:
                least = " above 0, as its axis is logarithmic" if self.log else ""
                raise UserError(f"`objective`: {self.name} of {arch} is {first!r}; accepted: a finite number{least}")
            if first != second:
                raise UserError(
                    f"`objective`: {self.name} of {arch} is {first!r}, then {second!r}; accepted: one value a network"
                )

    def axis(self, value: float) -> float:
        """Return a value's position on the objective's axis: its logarithm if `log`, else the value."""
        return math.log(value) if self.log else value

    def range(self, space: Space) -> tuple[float, float]:
        """Return the least and the greatest value in a space: exact if the measure is additive, else over a sample."""
        if self.additive:
            return space.range_of(lambda arch: self.of(arch, space.image_size))
        rng = random.Random(0)
        params = [space.cheapest()[0], space.dearest()[0], *(space.sample(rng) for _ in range(SAMPLED))]
        values = [self.of(space.arch(p), space.image_size) for p in params]
        return min(values), max(values)


def places(objectives: Sequence[Objective], columns: Sequence[Sequence[float]]) -> list[list[float]]:
    """Convert columns of values to positions on the objectives' axes."""
    return [[o.axis(value) for value in column] for o, column in zip(objectives, columns, strict=True)]


def quality(metric: Score) -> Objective:
    """Return the objective of a metric on the validation split."""
    label = f"{metric.label} on the validation split (%)"
    return Objective(metric.key, label, "%", "maximize", log=False, format=lambda value: f"{value:.2f}")


ACCURACY = quality(METRICS["top1"])


def _counted(name: str, label: str, unit: str) -> Objective:
    """Return the objective of a field of `Cost`."""
    return Objective(name, label, unit, measure=lambda arch, size: getattr(cost(arch, size), name), additive=True)


MACS = _counted("macs", "multiply-accumulates of one image", "MACs")
PARAMS = _counted("params", "parameters", "params")
ACTIVATIONS = _counted("activations", "activations of one image", "activations")
COSTS: dict[str, Objective] = {o.name: o for o in (MACS, PARAMS, ACTIVATIONS)}
LATENCY = Objective("latency", "latency (ms)", "ms", additive=True, format=format_ms, parse=parse_ms)
NAMES = (*COSTS, LATENCY.name)


def latency_by(table: LatencyTable) -> Objective:
    """Return the latency objective whose measure is a table."""
    return replace(LATENCY, label=f"latency, {table.text} (ms)", measure=table.of)


def cost_objectives(names: str, table: LatencyTable | None = None) -> tuple[Objective, ...]:
    """Return the cost objectives of names that are separated by commas. See `cost_objective`."""
    found = tuple(cost_objective(name.strip(), table) for name in names.split(","))
    twice = next((o.name for i, o in enumerate(found) if o.name in [other.name for other in found[:i]]), None)
    if twice is not None:
        raise UserError(f"`objective`: {twice} is given twice; accepted: each objective once")
    return found


def cost_objective(name: str, table: LatencyTable | None = None) -> Objective:
    """Return the cost objective of a name, or of an import path `my_package:NAME`.

    table: the measure of `latency`, or None while there is no table yet.
    """
    if name in COSTS:
        return COSTS[name]
    if name == LATENCY.name:
        return LATENCY if table is None else latency_by(table)
    found = load_object(name, "objective", known=NAMES)
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
        """Return the excess of the value over each set bound, relative to the bound. Above 0 is a violation."""
        out = []
        if self.most is not None:
            out.append(value / self.most - 1)
        if self.least is not None:
            out.append(1 - value / self.least)
        return out

    @property
    def bounds(self) -> list[tuple[str, float]]:
        """The bounds that are set: for each, the name of its setting and its value."""
        named = ((f"max_{self.objective.name}", self.most), (f"min_{self.objective.name}", self.least))
        return [(name, value) for name, value in named if value is not None]


@dataclass(frozen=True, slots=True)
class Limits:
    """All hard bounds of a search."""

    limits: tuple[Limit, ...] = ()

    def violations(self, arch: Arch, image_size: int) -> list[float]:
        """Return the excess of a network's costs over each set bound, relative to the bound. Above 0 is a violation."""
        return [v for limit in self.limits for v in limit.violations(limit.objective.of(arch, image_size))]

    def allow(self, arch: Arch, image_size: int) -> bool:
        """Return whether a network meets every bound."""
        return all(v <= 0 for v in self.violations(arch, image_size))

    def of(self, objective: Objective) -> Limit:
        """Return the bounds on one objective."""
        return next((limit for limit in self.limits if limit.objective == objective), Limit(objective))

    @property
    def bounds(self) -> list[tuple[str, float, Objective]]:
        """The bounds that are set: for each, the name of its setting, its value and its objective."""
        return [(name, value, limit.objective) for limit in self.limits for name, value in limit.bounds]

    def check_order(self) -> None:
        """Raise `UserError` for a lower bound that is above the upper one."""
        for limit in self.limits:
            if limit.least and limit.most and limit.least > limit.most:
                name, o = limit.objective.name, limit.objective
                least, most = o.format(limit.least), o.format(limit.most)
                raise UserError(f"`min_{name}`: {least} is more than `max_{name}` {most}; accepted: at most that")

    def check(self, space: Space) -> None:
        """Raise `UserError` for a bound that no member of the space meets; the error names the nearest possible one."""
        for limit in self.limits:
            name = limit.objective.name
            least, most = limit.objective.range(space)
            where = f"nothing in space {space.name!r} ({space.base})"
            if limit.most is not None and limit.most < least:
                raise UserError(
                    f"`max_{name}`: {where} is within {limit.objective.format(limit.most)}; "
                    f"accepted: at least {least:.15g}, its cheapest"
                )
            if limit.least is not None and limit.least > most:
                raise UserError(
                    f"`min_{name}`: {where} reaches {limit.objective.format(limit.least)}; "
                    f"accepted: at most {most:.15g}, its dearest"
                )


def limits(bounds: Mapping[str, float | None], table: LatencyTable | None = None) -> Limits:
    """Return the limits of settings such as `{"max_macs": 20e6, "min_macs": None}`. table: the measure of `latency`."""
    objectives = [cost_objective(name, table) for name in NAMES]
    found = (Limit(o, bounds.get(f"min_{o.name}"), bounds.get(f"max_{o.name}")) for o in objectives)
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
        """Raise `UserError` if no shape can have the MACs, or if every shape with these MACs breaks a limit."""
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
