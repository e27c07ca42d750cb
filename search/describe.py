"""Describe a space before anything is trained: `python -m search.describe --space scale_card_depth`.

Costs are counted for one image of the data set, as in a search; without `--data`, for one image of the base's size.
Only a data set of a user's own is loaded, unless `--time` asks for a plan.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

import trainers.datasets.data
from res2net.arch import Arch
from res2net.commands import Parser, run_main
from res2net.errors import UserError
from res2net.named import named, names
from res2net.options import add_options, fields_of, parsed
from search.baseline import resolved
from search.evaluators import EVALUATORS
from search.groups import Budget, Scope, Scoring
from search.objectives import COSTS, MACS, Limits, Objective
from search.resources import Resources
from search.settings import Settings
from space import Space
from trainers.tasks import TASKS

ENUMERATED = 20_000  # spaces of at most this many combinations are enumerated; of larger ones, `DRAWN` are drawn
DRAWN = 10_000
MOVED = 500  # random members in which one dimension is moved from end to end
BINS, BAR = 10, 40  # rows of a histogram, and the length of its longest bar
OPTIONS = ("time", "evaluator", "recipe", "executor", "workers", "cpus_per_trial", "gpus_per_trial")  # for the plan


@dataclass(frozen=True, slots=True)
class Description:
    """The description of a space before a search.

    costs: the value of each objective, for each member or for each drawn member.
    exact: whether `costs` holds every combination of the space.
    distinct: the number of different networks among them.
    ranges: the least and the greatest value of each objective, over the whole space.
    within: for each limit that is set, and for all limits together, the share of combinations within it.
    moves: for each parameter, the median ratio of the cost at its greatest choice to the cost at its least choice; NaN
        if some of these costs are not above 0.
    members: named networks that are members, with their costs.
    others: the number of named networks that are not members.
    """

    space: Space
    objectives: tuple[Objective, ...]
    limits: Limits
    costs: Mapping[str, np.ndarray]
    exact: bool
    distinct: int
    ranges: Mapping[str, tuple[float, float]]
    within: Mapping[str, float]
    moves: Mapping[str, Mapping[str, float]]
    members: Mapping[str, Mapping[str, float]]
    others: int


def describe(space: Space, limits: Limits, objectives: Sequence[Objective], seed: int = 0) -> Description:
    """Return the description of a space. A large space is sampled; the ranges are exact for costs in `COSTS`."""
    exact = space.size <= ENUMERATED
    archs = list(_archs(space, exact, seed))
    costs = {o.name: np.array([o.of(a, space.image_size) for a in archs], dtype=float) for o in objectives}
    met = {name: _met(costs, name, bound, objective) for name, bound, objective in limits.bounds}
    within = {name: float(share.mean()) for name, share in met.items()}
    if len(met) > 1:
        within["all limits"] = float(np.logical_and.reduce(list(met.values())).mean())
    members, others = _named(space, objectives)
    return Description(
        space,
        tuple(objectives),
        limits,
        costs,
        exact,
        len({a.key() for a in archs}),
        {o.name: o.range(space) for o in objectives},
        within,
        _moves(space, objectives, seed),
        members,
        others,
    )


def _archs(space: Space, exact: bool, seed: int) -> Iterator[Arch]:
    rng = random.Random(seed)
    every = space.all_params() if exact else (space.sample(rng) for _ in range(DRAWN))
    return map(space.arch, every)


def _met(costs: Mapping[str, np.ndarray], name: str, bound: float, objective: Objective) -> np.ndarray:
    """Return which members meet one bound. name: the setting of the bound (`max_macs`)."""
    values = costs[objective.name]
    return values <= bound if name.startswith("max_") else values >= bound


def _moves(space: Space, objectives: Sequence[Objective], seed: int) -> dict[str, dict[str, float]]:
    """Return, for each parameter, the median ratio of each objective at its greatest and at its least choice."""
    rng, rows = random.Random(seed), {}
    drawn = [space.sample(rng) for _ in range(MOVED // len(space.parameters) + 1)]
    for name, values in space.parameters.items():
        if len(values) < 2:
            continue
        ends = [[space.arch({**params, name: value}) for value in (values[0], values[-1])] for params in drawn]
        size = space.image_size
        rows[name] = {o.name: _median_ratio([(o.of(a, size), o.of(b, size)) for a, b in ends]) for o in objectives}
    return rows


def _median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the median ratio of the second value to the first; NaN unless all values are above 0."""
    return float(np.median([b / a for a, b in pairs])) if min(map(min, pairs)) > 0 else math.nan


def _named(space: Space, objectives: Sequence[Objective]) -> tuple[dict[str, dict[str, float]], int]:
    """Return the named networks that are members, with the space's number of classes, and how many are not members."""
    rows: dict[str, dict[str, float]] = {}
    for name in names():
        arch = named(name)
        if isinstance(arch, Arch):
            fitted = space.fitted(arch)
            if space.contains(fitted):
                rows[name] = {o.name: o.of(fitted, space.image_size) for o in objectives}
    return rows, len(names()) - len(rows)


def lines(found: Description) -> Iterator[str]:
    """Yield the report, line by line."""
    space, objectives = found.space, found.objectives
    side = space.image_size
    yield f"space {space.name} over base {space.base}: {space.size:,} combinations, images of {side} x {side} pixels"
    width = max(len(name) for name in (*space.parameters, *(o.unit for o in objectives)))
    for name, values in space.parameters.items():
        yield f"  {name:<{width}}  {', '.join(map(str, values))}"
    if found.exact:
        yield f"{found.distinct:,} distinct networks; the table counts all combinations"
    else:
        drawn = len(found.costs[objectives[0].name])
        yield f"{drawn:,} combinations were drawn at random ({found.distinct:,} distinct networks)"
    yield ""
    yield f"  {'':<{width}}{'least':>10}{'median':>10}{'most':>10}{'most/least':>12}"
    for o in objectives:
        (low, high), middle = found.ranges[o.name], float(np.median(found.costs[o.name]))
        ratio = f"{high / low:.1f}" if low > 0 else "-"
        yield f"  {o.unit:<{width}}{o.format(low):>10}{o.format(middle):>10}{o.format(high):>10}{ratio:>12}"
    yield from _limits(found)
    yield ""
    yield f"combinations by {objectives[0].label}"
    yield from _histogram(found.costs[objectives[0].name], objectives[0])
    if found.moves:
        yield ""
        yield "median factor by which costs grow from a dimension's least to its greatest choice, with others fixed"
        names = max(map(len, found.moves))
        yield f"  {'':<{names}}" + "".join(f"{o.unit:>13}" for o in objectives)
        first = objectives[0].name
        strength = {n: 0.0 if math.isnan(row[first]) else abs(math.log(row[first])) for n, row in found.moves.items()}
        for name, row in sorted(found.moves.items(), key=lambda item: -strength[item[0]]):
            texts = ("-" if math.isnan(row[o.name]) else f"{row[o.name]:.2f}" for o in objectives)
            yield f"  {name:<{names}}" + "".join(f"{text:>13}" for text in texts)
    yield ""
    yield from _known(found)


def _limits(found: Description) -> Iterator[str]:
    """Yield a line for each limit: the share of combinations that meet it, or the nearest limit that any can meet."""
    values = {name: (bound, o) for name, bound, o in found.limits.bounds}
    for name, share in found.within.items():
        if name not in values:
            yield f"  {name}: {share:.1%} of the combinations"
            continue
        bound, o = values[name]
        low, high = found.ranges[o.name]
        text = f"  {name} {o.format(bound)}: {share:.1%} of the combinations"
        if name.startswith("max_") and bound < low:
            text += f"; no network meets it, at least {o.format(low)} would do"
        elif name.startswith("min_") and bound > high:
            text += f"; no network meets it, at most {o.format(high)} would do"
        elif not share:
            text += "; networks that meet it are rare"
        yield text


def _histogram(values: np.ndarray, objective: Objective) -> Iterator[str]:
    """Yield a row for each bin, evenly spread on the objective's axis."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        yield f"  {objective.format(low):>9}  all"
        return
    edges = np.geomspace(low, high, BINS + 1) if objective.log and low > 0 else np.linspace(low, high, BINS + 1)
    edges[0], edges[-1] = low, high
    counts, _ = np.histogram(values, edges)
    for (a, b), count in zip(itertools.pairwise(edges), counts, strict=True):
        bar = "#" * round(BAR * count / counts.max())
        yield f"  {objective.format(a):>7} to {objective.format(b):>7}  {bar:<{BAR}} {count / len(values):6.1%}"


def _known(found: Description) -> Iterator[str]:
    """Yield the lines about the named networks."""
    if not found.members:
        yield f"named networks (python -m res2net): none of the {found.others} is a member"
        return
    yield f"named networks (python -m res2net): {len(found.members)} are members, {found.others} are not"
    width, first = max(map(len, found.members)), found.objectives[0].name
    for name, row in sorted(found.members.items(), key=lambda item: item[1][first]):
        costs = ", ".join(f"{o.format(row[o.name])} {o.unit}" for o in found.objectives)
        yield f"  {name:<{width}}  {costs}"


def build_parser() -> Parser:
    """Return the command's parser, with the options that choose a space and the options of a plan."""
    parser = Parser(
        prog="python -m search.describe",
        description="Describe a space before anything is trained: its size, its costs, its limits, and a plan.",
        formatter_class=argparse.HelpFormatter,
    )
    add_options(parser.add_argument_group("what is searched"), fields_of(Scope))
    wanted = {f.name: (f, kind) for cls in (Scoring, Budget, Resources) for f, kind in fields_of(cls)}
    plan = parser.add_argument_group("the plan (with --time)")
    add_options(plan, [wanted[name] for name in OPTIONS], choices={"evaluator": tuple(EVALUATORS)})
    return parser


def _main(args: argparse.Namespace) -> int:
    values = parsed(vars(args), (Scope, Scoring, Budget, Resources))
    plans, settings = "time" in values, Settings(**values)
    scope = settings.scope
    classes = trainers.datasets.data.classes_of(scope.data, scope.data_dir, TASKS[scope.task].target)
    console = Console()

    def show(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if scope.matching.active:
        raise UserError(f"`match_{MACS.name}`: widths are solved during a search; accepted: a space without it")
    if scope.timed and scope.latency is None:
        raise UserError("`latency`: nothing is measured here; accepted: a file of python -m search.latency")
    form = _form(scope, show) if "data" in values else (None, None)
    settings, bounds = resolved(settings, len(classes), *form)
    scope = settings.scope
    space = scope.get_space(len(classes), *form)
    objectives = dict.fromkeys((*scope.costs, *COSTS.values()))
    for objective in objectives:
        objective.check(space)
    for line in bounds:
        show(line)
    for line in lines(describe(space, scope.limits, tuple(objectives), scope.seed)):
        show(line)
    if plans:
        from search.api import plan_of  # imports Optuna, Ray and torch
        from search.report.progress import default, plan_lines

        show("")
        for line in plan_lines(plan_of(settings, progress=default(console)), settings):
            show(line)
    return 0


def _form(scope: Scope, show: Callable[[str], None]) -> tuple[int | None, int | None]:
    """Return the size and the channels of the data set's images; None for what is unknown without its files."""
    try:
        return trainers.datasets.data.form_of(scope.data, scope.data_dir, TASKS[scope.task].target, scope.image_size)
    except (OSError, UserError) as error:
        show(f"costs are not those of {scope.data}, whose images cannot be read: {error}")
        return scope.image_size, None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
