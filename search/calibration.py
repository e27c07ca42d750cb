"""Measure how fast this machine trains, and make the timetable of a planned search."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from res2net.arch import Arch
from res2net.containment import contains
from res2net.errors import UserError
from res2net.factory import create
from search.included import Included
from search.ledger import Ledger
from search.objectives import ACTIVATIONS, MACS
from search.plan import CURVES, LEAST_EPOCHS, PIXELS, Candidate, Pace, Plan, Terms
from search.planner import Way, plan
from search.report.tables import cost_range
from search.settings import Settings
from search.timetable import Member, Timetable, members, nested
from search.timing import LEAST_GROWN, grown, independent
from search.units import format_seconds
from space import Space
from trainers.datasets.data import Data
from trainers.device import out_of_memory
from trainers.recipes import Config
from trainers.tasks.metrics import metric_of
from trainers.tasks.task import Task
from trainers.train import Trainer, TrainingFailed

MEASURED = 5  # networks whose speed is measured, evenly spread over the levels
SHARE = 0.1  # share of the time after which no further network is measured
STEPS = 3  # timed steps of each network
WARM = 2  # untimed steps before them, which allocate memory and choose kernels
BUSY = 1.2  # ratio of an epoch's time, with validation and beside other workers, to the time of its steps alone
OVERHEAD = 1.0  # seconds of a trial outside its epochs


def measure(chosen: Sequence[Member], data: Data, settings: Settings, left: float, workers: int) -> Pace:
    """Return the pace of this machine, measured on a few of the networks for a few steps each.

    The time of a step is fitted as a weighted sum of the network's activations and its cost, because on a CPU, networks
    of equal cost differ by a factor of two. The measurement takes only seconds of the search's time. If the cheap
    networks take long, the pace of the dear ones follows from the fit alone.
    chosen: the networks of the plan, by rising cost. left: seconds until the training must end.
    """
    config, resources = settings.scoring.train_config(settings.scope.seed), settings.resources
    if resources.gpus_per_trial == 0:
        config = replace(config, device="cpu")
    picked = sorted({round(i * (len(chosen) - 1) / (MEASURED - 1)) for i in range(MEASURED)})
    small = _few(data, (WARM + STEPS) * config.batch_size)
    task, threads = metric_of(settings.scoring.metric).task, torch.get_num_threads()
    if workers > 1 or resources.executor != "local":  # else trials run in this process, with all its threads
        torch.set_num_threads(resources.cpus_per_trial)
    late, found = time.monotonic() + SHARE * left, dict[int, float]()
    try:
        for i in picked:
            if not found or time.monotonic() < late:
                found[i] = _seconds_per_image(chosen[i], small, config, task)
    except Exception as error:
        if not out_of_memory(error):
            raise
        if not found:
            raise UserError(
                f"`batch_size`: {config.batch_size}; memory does not suffice for a step of the cheapest network; "
                "accepted: a smaller batch, or smaller images"
            ) from None
    finally:
        torch.set_num_threads(threads)
        torch.cuda.empty_cache()  # the workers need the memory; without CUDA, this does nothing
    parts = np.array([(ACTIVATIONS.of(m.arch, data.image_size), m.cost) for m in chosen], dtype=float)
    seconds = np.array(list(found.values()))
    shares, _ = nnls(parts[list(found)] / seconds[:, None], np.ones(len(found)))  # least squares of relative errors
    epochs = parts @ shares * (BUSY * len(data.train))
    return Pace(tuple(m.cost for m in chosen), tuple(map(float, epochs)), OVERHEAD)


def _few(data: Data, count: int) -> Data:
    """Return the data with the first training images only, and no validation images."""
    train = data.train.take(np.arange(min(count, len(data.train))))
    return replace(data, train=train, val=data.val.take(np.arange(0)))


def _seconds_per_image(member: Member, data: Data, config: Config, task: Task) -> float:
    trainer = Trainer(create(member.arch), data, config, task=task)
    stamps: list[float] = []
    trainer.on_step = lambda: stamps.append(time.perf_counter())
    # A rate that is too high shows in the trials, each of which fails with the reason.
    with contextlib.suppress(TrainingFailed):
        trainer.epoch()  # ends with a wait for the device
    stamps.append(time.perf_counter())
    timed = stamps[min(WARM, len(stamps) - 2) :]
    return (timed[-1] - timed[0]) / (len(timed) - 1) / min(config.batch_size, len(data.train))


def terms_of(
    settings: Settings,
    space: Space,
    data: Data,
    books: Ledger,
    networks: Sequence[Included] = (),
    chosen: Sequence[Member] = (),
) -> Terms:
    """Return the terms of a plan: the range of costs, the images, and the front so far, with the scores to reuse.

    chosen: the networks that the plan may train.
    """
    low, high = cost_range(settings.scope.cost, space, settings)
    chance = metric_of(settings.scoring.metric).chance(data.num_classes) / 100
    known = [(books.cost(r), r.quality or 0.0) for r in books.front]
    cost, size = settings.scope.cost, space.image_size
    reused = [n for n in networks if n.reused and settings.scope.limits.allow(n.arch, size)]
    known += [(cost.of(n.arch, size), n.score) for n in reused]
    points = tuple((c, max(0.0, a / 100 - chance) / (1 - chance)) for c, a in known)
    sizes: tuple[tuple[float, float], ...] = ()
    if cost != MACS:
        least = MACS.range(space)[0]
        sizes = tuple((m.cost, math.log2(MACS.of(m.arch, size) / least)) for m in chosen)
    return Terms(low, high, len(data.train), points, sizes, CURVES.get(settings.scope.task, PIXELS))


def timetable(
    settings: Settings,
    space: Space,
    data: Data,
    books: Ledger,
    left: float,
    workers: int,
    session: int | str,
    networks: Sequence[Included] = (),
) -> Timetable:
    """Return the timetable of a new plan.

    left: seconds until the training must end. session: the name of the plan.
    networks: the networks that the search starts from. If some are trained, each network of the plan contains one.
    Raise `UserError` if the time does not suffice for the cheapest network, and if networks cannot grow but should.
    """
    begun = time.monotonic()
    chosen, origins, nests = _chosen(settings, space, networks)
    pace = measure(chosen, data, settings, left, workers)
    left -= time.monotonic() - begun
    terms = terms_of(settings, space, data, books, networks, chosen)
    candidates = [Candidate(m.params, m.cost, pace.of(m.cost)) for m in chosen]
    inherits = _inherited(origins, chosen[0].arch, settings, space)
    ways: list[Way] = [] if nests else [independent]
    if settings.evaluator.grows and nested(chosen):
        ways.append(partial(grown, inherited=inherits))
    made = plan(candidates, left, workers, terms, pace.overhead, ways)
    if not made.levels:
        epochs = LEAST_EPOCHS if independent in ways else LEAST_GROWN
        least = epochs * candidates[0].seconds + pace.overhead - left + (settings.budget.time or 0.0)
        raise UserError(
            f"`time`: {format_seconds(settings.budget.time or 0.0)} is too short to train the cheapest network for "
            f"{epochs:g} epochs; accepted: at least {format_seconds(least + 1)}"
        )
    return Timetable(made, pace, terms, _steps(settings, data), session, inherits=inherits)


def _chosen(
    settings: Settings, space: Space, networks: Sequence[Included]
) -> tuple[list[Member], list[Included], bool]:
    """Return the members that a plan may train, the trained networks they grow from, and whether they must be nested.

    If no member contains a network of an earlier front, the plan starts without this front.
    """
    scope, origins = settings.scope, _origins(networks, settings)
    asked = settings.evaluator.grows and settings.scoring.evaluator is not None

    def found() -> list[Member]:
        archs = [o.arch for o in origins]
        return members(space, scope.limits, scope.cost, scope.seed, asked or bool(archs), archs)

    chosen = found()
    if not chosen and origins and settings.scoring.include is None:
        origins = []
        chosen = found()
    if not chosen and origins:
        raise UserError(
            f"`include`: no network that meets the limits contains {' or '.join(o.name for o in origins)}; accepted: "
            "wider limits, or a smaller network"
        )
    if not chosen:
        name = scope.limits.bounds[0][0]
        raise UserError(
            f"`{name}`: no network was found in space {space.name!r} that meets all limits; accepted: wider limits"
        )
    if asked and not origins and len(chosen) == 1:
        raise UserError(
            f"`evaluator`: no network of space {space.name!r} that meets the limits contains another one to grow from; "
            "accepted: scratch, or wider limits"
        )
    return chosen, origins, asked or bool(origins)


def _origins(networks: Sequence[Included], settings: Settings) -> list[Included]:
    """Return the trained networks from which other networks may grow."""
    return [n for n in networks if n.weights is not None and settings.evaluator.grows]


def _inherited(origins: Sequence[Included], first: Arch, settings: Settings, space: Space) -> float:
    """Return the epochs times the cost of the trained network from which a plan's first network grows, or 0."""
    fits = [o for o in origins if contains(first, o.arch)]
    return max((o.epochs * settings.scope.cost.of(o.arch, space.image_size) for o in fits), default=0.0)


def _steps(settings: Settings, data: Data) -> int:
    """Return the steps of an epoch of a trial."""
    return settings.scoring.train_config(settings.scope.seed).steps_per_epoch(len(data.train))


def recorded(table: Timetable) -> dict[str, Any]:
    """Return a timetable as plain values for `run.json`."""
    return {"session": table.session, "plan": table.plan.to_dict(), "pace": asdict(table.pace)}


def restored(
    values: dict[str, Any],
    settings: Settings,
    space: Space,
    data: Data,
    books: Ledger,
    networks: Sequence[Included] = (),
) -> Timetable:
    """Return the timetable that `recorded` wrote."""
    pace = values["pace"]
    pace = Pace(tuple(pace["costs"]), tuple(pace["seconds"]), pace["overhead"])
    scope = settings.scope
    chosen = members(space, scope.limits, scope.cost, scope.seed) if scope.cost != MACS else []
    terms = terms_of(settings, space, data, books, networks, chosen)
    made = Plan.from_dict(values["plan"])
    first = min(made.levels, key=lambda level: level.cost)
    inherits = _inherited(_origins(networks, settings), space.arch(first.params), settings, space)
    return Timetable(made, pace, terms, _steps(settings, data), values["session"], inherits=inherits)
