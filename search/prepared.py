"""Prepare a search: load its data, complete its settings, and check both before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from res2net.errors import UserError
from search import from_run, included, runs
from search.baseline import baseline_of, resolved
from search.execute import Executor, executor_of
from search.included import Included
from search.latency_cache import check_table, table_for
from search.objectives import Objective
from search.settings import Settings
from space import Space
from trainers.datasets.data import Data
from trainers.tasks import TASKS

LATENCY_SHARE = 0.2  # maximum share of the setting `time` for measuring a latency table
FORM = "optimized"  # the form of the networks in a latency table that a search makes


@dataclass(frozen=True, slots=True)
class Prepared:
    """A search that may start.

    settings: the given settings, with numbers in place of relative limits, and with the latency table if it is needed.
    networks: the networks that the search starts from.
    """

    settings: Settings
    data: Data
    space: Space
    networks: tuple[Included, ...]
    executor: Executor


def prepared(settings: Settings, folder: Path, console: Console | None) -> Prepared:
    """Return a search that may start. Write nothing. Raise `UserError` for settings that contradict each other."""
    TASKS[settings.scope.task].check()
    if settings.scoring.recipe.frozen_norms:
        raise UserError("`recipe`: it freezes batch norms, which random weights need; accepted: frozen_norms: false")
    data = settings.scope.load_data(console)
    classes, size, channels = data.num_classes, data.image_size, data.in_channels
    baseline = baseline_of(settings, classes, size, channels)
    settings = _with_bounds(settings, data, console)
    space = runs.space_for(folder, settings, data)
    settings.evaluator.check_weights(space, data)
    networks = included.included(settings, folder, space, data)
    networks += tuple(from_run.front(settings, folder, len(networks), data))
    if settings.scope.timed:
        others = [network.arch for network in networks] + ([] if baseline is None else [baseline])
        settings = _with_bounds(_with_latency(settings, folder, space, others, console), data, console)
    executor = executor_of(settings.resources)
    executor.check()
    scope = settings.scope
    for objective in scope.costs:
        objective.check(space)
        for network in networks:
            included.check_cost(network, objective, size)
    if settings.planned:
        _check_ratios(scope.cost, space, networks)
    if scope.matching.active:
        scope.matching.check(space, scope.limits, scope.seed)
    else:
        scope.limits.check(space)
    return Prepared(settings, data, space, networks, executor)


def _check_ratios(cost: Objective, space: Space, networks: Sequence[Included]) -> None:
    """Raise `UserError` for a cost that is not always above 0. A plan spreads networks by the ratios of their costs."""
    if cost.log:
        return
    least = min(cost.range(space)[0], *(cost.of(n.arch, space.image_size) for n in networks), math.inf)
    if least <= 0:
        raise UserError(
            f"`objective`: {cost.name} of some networks is {least:g}, and a search by `time` needs ratios of costs; "
            "accepted: values above 0, or a search by `trials`"
        )


def _with_bounds(settings: Settings, data: Data, console: Console | None) -> Settings:
    """Return the settings with numbers in place of relative limits, if their objectives can be measured. Print them."""
    settings, lines = resolved(settings, data.num_classes, data.image_size, data.in_channels)
    for line in lines:
        if console is not None:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return settings


def _with_latency(
    settings: Settings, folder: Path, space: Space, others: list[Any], console: Console | None
) -> Settings:
    """Return the settings with a latency table: the run's table, this device's last table, or a new table.

    others: more networks whose latency the search needs. They need not be members of the space.
    """
    table = settings.scope.latency
    if table is None and (folder / runs.RUN_FILE).exists():
        table = runs.settings_of(folder).scope.latency
    if table is None and settings.resources.storage:
        raise UserError("`latency`: several drivers need one table; accepted: a file of python -m search.latency")
    if table is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        table = table_for(space, FORM, device, settings.budget.time, others, console, LATENCY_SHARE)
    check_table(table, space, others)
    return settings.replace(latency=table)
