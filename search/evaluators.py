"""How a network gets its score. An evaluator is one class: an entry of `EVALUATORS`, or a user's `my_package:NAME`."""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from res2net.arch import Arch
from res2net.containment import contains
from res2net.elastic import ElasticRes2Net
from res2net.errors import UserError
from res2net.plugins import load_object
from search import shared_weights
from search.groups import Budget, Scope, Scoring
from search.resources import Resources
from search.study.trials import Proposal, Record
from search.worker import Job, SharedWork, Work, train_trial
from space import Space
from trainers.datasets.data import Data
from trainers.recipes import RECIPES

SHARED = "weights that all networks of the space share"
CALMER = 2  # ratio of the recipe's peak learning rate to a trunk's
TRIED = 1_000  # number of random members to check for one that contains a network
TUNED = 5  # ratio of the shared weights' peak learning rate to the rate for tuning a slice


def trial_seed(seed: int, arch: Arch, sample: int = 0) -> int:
    """Return the seed of a network's training. It depends on the search's seed and the network, not on trial order.

    sample: above 0 for further trainings of the same network.
    """
    text = f"{seed} {arch.key()}" + (f" {sample}" if sample else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


def larger(space: Space, small: Arch, seed: int) -> Iterator[Arch]:
    """Yield members that contain a network, from the largest member and random ones. One may be the network itself."""
    rng = random.Random(seed)
    drawn = (space.arch(space.sample(rng)) for _ in range(TRIED))
    return (arch for arch in itertools.chain([space.largest()], drawn) if contains(arch, small))


class Evaluator:
    """Train each network from scratch; the base class of all evaluators.

    defaults: the evaluator's own defaults for some settings.
    estimates: whether scores are estimates. If they are, networks on the estimates' front are confirmed by training.
    plans: whether the planner can choose networks and epochs from the time alone.
    grows: whether networks start from the weights of smaller ones that they contain.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    plans: ClassVar[bool] = True
    estimates: ClassVar[bool] = False
    grows: ClassVar[bool] = False

    def __init__(self, scope: Scope, scoring: Scoring, budget: Budget) -> None:
        self.scope, self.scoring, self.budget = scope, scoring, budget

    @property
    def origin(self) -> str:
        """The initial weights of the final front's networks, in words for the model card; empty for random weights."""
        return ""

    @property
    def lr(self) -> float:
        """The peak learning rate in the training of the final front's networks."""
        return self.scoring.peak_lr

    def lr_of(self, record: Record) -> float:
        """Return the peak learning rate of a trial that was trained."""
        return self.lr

    def check(self, resources: Resources) -> None:
        """Raise `UserError` for settings that contradict the evaluator."""
        if self.scoring.supernet is not None:
            raise UserError("`supernet`: has no effect with `evaluator` scratch; accepted: with supernet or inherit")

    def check_weights(self, space: Space, data: Data) -> None:
        """Raise `UserError` if the shared weights that the user names do not fit the search."""

    def prepare(
        self, space: Space, data: Data, folder: Path, console: Console | None, ends: float | None = None
    ) -> Work:
        """Return the `Work` for the workers. This may take long, so files that must survive a kill go to `folder`.

        ends: the time (`time.monotonic`) of the search's end; None sets no limit. Raise `TimeUp` at this time.
        """
        return train_trial

    def of(self, proposal: Proposal, arch: Arch) -> Job:
        """Return the job of a proposal: a first score, a confirmation, or a training with another seed."""
        if proposal.again is not None:
            return self.again(proposal.number, arch, proposal.sample)
        return (self.job if proposal.confirms is None else self.confirmation)(proposal.number, arch)

    def job(self, number: int, arch: Arch) -> Job:
        """Return the job that scores a network."""
        return self._training(number, arch, "scratch")

    def confirmation(self, number: int, arch: Arch) -> Job:
        """Return the job that confirms an estimate by training."""
        return self._training(number, arch, "scratch")

    def again(self, number: int, arch: Arch, sample: int) -> Job:
        """Return the job that trains a network of the front with another seed. sample: the seed's number, from 1."""
        job = self.confirmation(number, arch) if self.estimates else self.job(number, arch)
        return replace(job, config=replace(job.config, seed=trial_seed(self.scope.seed, arch, sample)))

    def _training(self, number: int, arch: Arch, start: str) -> Job:
        config = replace(self.scoring.train_config(trial_seed(self.scope.seed, arch)), lr=self.lr)
        # Checkpoints are written at the rungs even if no scheduler compares trials there.
        return Job(number, arch, config, start, self.scoring.metric, self.budget.rungs(config.epochs))


class Grow(Evaluator):
    """Start each network from the trunk of a smaller one that it contains, if there is one (`res2net.grow`).

    A training keeps its peak rate first. The weights at the end of this trunk are passed on to larger networks. Then
    the training anneals them for the network's own score.
    """

    grows: ClassVar[bool] = True

    def lr_of(self, record: Record) -> float:
        """Return the peak learning rate of a trial. A trunk has a lower rate, because it keeps the rate for longer."""
        return self.lr / CALMER if "trunk" in record.attrs else self.lr

    def check(self, resources: Resources) -> None:
        """Raise `UserError` for trainings too short to have a trunk, or networks at equal MACs."""
        super().check(resources)
        if self.scoring.epochs == 1:
            raise UserError("`epochs`: 1 is too few to train a trunk and to anneal it; accepted: at least 2")
        if self.scope.matching.active:
            raise UserError("`match_macs`: no network contains another of equal MACs; accepted: `evaluator` scratch")

    def check_weights(self, space: Space, data: Data) -> None:
        """Raise `UserError` if no network of the space contains another one, and the user asks for growth."""
        if self.scoring.evaluator is None or self.scoring.include is not None:
            return
        small = space.arch(space.cheapest()[0])
        if all(arch == small for arch in larger(space, small, self.scope.seed)):
            raise UserError(
                f"`evaluator`: no network of space {space.name!r} contains its cheapest one, so none can grow; "
                "accepted: scratch"
            )

    def job(self, number: int, arch: Arch) -> Job:
        """Return the job that trains a network for the whole budget, without an origin."""
        return self._training(number, arch, "grow")

    def grown(self, job: Job, trunk: int | None, origin: tuple[Arch, bytes] | None) -> Job:
        """Return a job with a trunk, and with its origin: the network and the weights that it grows from.

        trunk: the epochs at the peak rate; None takes half of the training.
        """
        trunk = job.config.epochs // 2 if trunk is None else trunk
        warmup = job.config.warmup if origin is None else 0.0  # grown weights need no warm-up
        config = replace(job.config, lr=self.lr / CALMER, hold=trunk, warmup=warmup)
        return replace(job, config=config, trunk=trunk, origin=origin)


class Inherit(Evaluator):
    """Start each network from its slice of the shared weights, and tune it for the full budget."""

    defaults: ClassVar[Mapping[str, Any]] = {"lr": 0.02, "recipe": RECIPES["fast"]}
    plans: ClassVar[bool] = False

    @property
    def origin(self) -> str:
        """The shared weights."""
        return SHARED

    def check(self, resources: Resources) -> None:
        """Raise `UserError` if some networks or drivers could not use the same shared weights."""
        name = self.scoring.evaluator
        for option in ("include", "from_run"):
            if getattr(self.scoring, option) is None:
                continue
            raise UserError(
                f"`{option}`: its networks have no part in the shared weights of `evaluator` {name}; "
                "accepted: with `evaluator` scratch or grow"
            )
        if self.scope.matching.active:
            raise UserError(
                f"`match_macs`: its widths are not in the supernet of `evaluator` {name}; "
                "accepted: with `evaluator` scratch"
            )
        if resources.storage is not None and self.scoring.supernet is None:
            raise UserError(
                f"`storage`: with `evaluator` {name} all drivers need the same shared weights; "
                "accepted: with `supernet`"
            )

    def check_weights(self, space: Space, data: Data) -> None:
        """Raise `UserError` if the shared weights of the setting `supernet` do not fit the search."""
        if self.scoring.supernet is not None:
            self._load(space, data)

    def _load(self, space: Space, data: Data) -> ElasticRes2Net:
        return shared_weights.load(Path(self.scoring.supernet or ""), space, data, self.scope, self.scoring)

    def prepare(
        self, space: Space, data: Data, folder: Path, console: Console | None, ends: float | None = None
    ) -> Work:
        """Load the shared weights, or train them in the run's folder. Their training takes at most half of the time."""
        if self.scoring.supernet is not None:
            return SharedWork(self._load(space, data))
        how = replace(self.scoring, epochs=self.scoring.supernet_epochs, lr=self.supernet_lr)
        there = folder / shared_weights.FOLDER
        now = time.monotonic()
        half = None if ends is None else now + (ends - now) / 2
        return SharedWork(shared_weights.train(self.scope, how, space, data, there, console, ends=half))

    @property
    def supernet_lr(self) -> float:
        """The peak learning rate of the shared weights; the setting `lr` is for the trials."""
        return self.scoring.recipe.lr

    def job(self, number: int, arch: Arch) -> Job:
        """Return the job that tunes a network from its slice."""
        return self._training(number, arch, "inherit")


class Supernet(Inherit):
    """Score each network by its slice of the shared weights, in a second or two; confirm the front by training."""

    defaults: ClassVar[Mapping[str, Any]] = {"trials": 200, "recipe": RECIPES["fast"]}
    estimates: ClassVar[bool] = True

    @property
    def _tunes(self) -> bool:
        return self.scoring.confirm_by == "tune"

    @property
    def origin(self) -> str:
        """The shared weights, if confirmations start from slices of them; else empty."""
        return SHARED if self._tunes else ""

    @property
    def lr(self) -> float:
        """The peak learning rate of confirmations."""
        return self.scoring.peak_lr / TUNED if self._tunes else self.scoring.peak_lr

    @property
    def supernet_lr(self) -> float:
        """The peak learning rate of the shared weights."""
        return self.scoring.peak_lr

    def job(self, number: int, arch: Arch) -> Job:
        """Return the job that estimates a network. All estimates share a seed, which draws the calibration images."""
        config = replace(self.scoring.train_config(self.scope.seed), epochs=1)
        return Job(number, arch, config, "supernet", self.scoring.metric)

    def confirmation(self, number: int, arch: Arch) -> Job:
        """Return the job that trains a network of the estimates' front, from its slice or from scratch."""
        return self._training(number, arch, "inherit" if self._tunes else "scratch")


EVALUATORS: dict[str, type[Evaluator]] = {"scratch": Evaluator, "grow": Grow, "supernet": Supernet, "inherit": Inherit}


def evaluator_class(name: str) -> type[Evaluator]:
    """Return the evaluator class of a name or an import path. Raise `UserError` if there is no such class."""
    if name in EVALUATORS:
        return EVALUATORS[name]
    found = load_object(name, "evaluator", known=EVALUATORS)
    if not (isinstance(found, type) and issubclass(found, Evaluator)):
        raise UserError(f"`evaluator`: {name} is no evaluator; accepted: a subclass of search.evaluators.Evaluator")
    return found
