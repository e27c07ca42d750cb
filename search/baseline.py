"""Limits that are shares of a baseline's cost: `--max-params 60% --baseline resnet50`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from res2net.arch import BaseArch
from res2net.errors import UserError
from res2net.folder import ARCH_FILE, load_arch
from res2net.named import named, names
from search import runs
from search.objectives import COSTS, cost_objective
from search.picks import choose
from search.settings import Settings
from trainers.start import adapted
from trainers.tasks import TASKS


def resolved(
    settings: Settings, num_classes: int, image_size: int | None, in_channels: int | None = None
) -> tuple[Settings, list[str]]:
    """Return the settings with their relative limits as numbers, and a line of text for each.

    Without a baseline, limits are shares of the cost of the space's dearest network. The space then has the base of the
    setting `base`, or the usual base of the data. A relative limit on the latency stays until there is a latency table.
    image_size: the side, in pixels, of the images for which costs are counted; None takes the base's size.
    """
    scope = settings.scope
    if not scope.shares:
        if scope.baseline is not None:
            raise UserError("`baseline`: has no effect without a relative limit; accepted: with `max_params` 60%, say")
        return settings, []
    space = scope.get_space(num_classes, image_size, in_channels)
    size, lines = space.image_size, []
    changes: dict[str, float] = {}
    arch = baseline_of(settings, num_classes, size, in_channels)
    for name, share in scope.shares.items():
        side, _, of = name.partition("_")
        objective = cost_objective(of, scope.latency)
        if objective.measure is None:
            continue
        whole = objective.range(space)[1] if arch is None else objective.of(arch, size)
        bound = share * whole
        if of in COSTS:  # round counts so that the limit does not become looser
            bound = (math.floor if side == "max" else math.ceil)(bound)
        changes[name] = bound
        whose = f"{scope.baseline}'s" if arch is not None else f"the dearest network's of base {space.base}"
        text = f"{objective.format(bound)} {objective.unit}, {100 * share:.4g}% of {whose} {objective.format(whole)}"
        lines.append(f"limit `{name}`: {text}")
    known: dict[str, Any] = {"base": space.base} if arch is None else {}
    if changes.keys() == scope.shares.keys():
        known["baseline"] = None
    return settings.replace(**changes, **known), lines


def baseline_of(
    settings: Settings, num_classes: int, image_size: int, in_channels: int | None = None
) -> BaseArch | None:
    """Return the network of the setting `baseline`, for the data and the task; None without a baseline.

    Raise `UserError` for an unknown name, and for a file without a network.
    """
    item = settings.scope.baseline
    if item is None:
        return None
    arch, task = _baseline(item), TASKS[settings.scope.task]
    return adapted(arch, num_classes, arch.in_channels if in_channels is None else in_channels, task, image_size)


def _baseline(item: str) -> BaseArch:
    """Return the network of a name, a file or a run."""
    path = Path(item)
    if item in names():
        return named(item)
    try:
        if (path / runs.RUN_FILE).is_file():
            return choose(path, "best").arch
        if path.exists():
            return load_arch(path)
    except UserError as error:
        raise UserError(f"`baseline`: {error}") from None
    raise UserError(
        f"`baseline`: {item!r} is neither a network nor a file; accepted: a name (python -m res2net), an {ARCH_FILE} "
        "file, a model folder, or the folder of a search"
    )
