"""Samplers propose the next network. Each proposal gets a new sampler, made from a seed.

So the study stores no random state, and a resumed search makes the same proposals as an uninterrupted one. To add a
sampler, add an entry to `SAMPLERS`. Users pass a factory `seed -> sampler`, or a factory's path `my_package:NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from res2net.errors import UserError
from res2net.plugins import load_object
from search.study.optuna_private import BoundedStudy
from search.study.storage import stable

Factory = Callable[[int], BaseSampler]  # seed -> sampler


class Bounded(BaseSampler):
    """A sampler that sees a bounded part of the study, so that the time of a proposal does not grow with the study.

    remembers: number of the last trials that the sampler learns from, besides the front.
    """

    def __init__(self, sampler: BaseSampler, remembers: int) -> None:
        self.sampler, self.remembers = sampler, remembers
        self.view: BoundedStudy | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return all parameters. Every trial has the same parameters, so no trial needs to be read."""
        return self.view.space if self.view else self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """Return the proposal that the sampler makes from the view."""
        seen: Any = self.view or study
        return self.sampler.sample_relative(seen, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return one parameter, for the first trials."""
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell the sampler that a trial begins."""
        self.sampler.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell the sampler that a trial has ended."""
        self.sampler.after_trial(study, trial, state, values)


def tpe(seed: int) -> Bounded:
    """Return TPE. A proposal takes 6 ms."""
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=8)
    return Bounded(sampler, remembers=500)


def gp(seed: int) -> Bounded:
    """Return Gaussian processes. A proposal takes a second or two."""
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=8, warn_independent_sampling=False)
    return Bounded(sampler, remembers=300)


SAMPLERS: dict[str, Factory] = {
    "tpe": tpe,
    "gp": gp,
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=16),
    "random": lambda seed: RandomSampler(seed=seed),
}


def factory(name: str) -> Factory:
    """Return the sampler factory of a name or an import path; raise `UserError` if there is none."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    found = load_object(name, "sampler", known=SAMPLERS)
    if callable(found):
        return cast(Factory, found)
    raise UserError(f"`sampler`: {name} is a {type(found).__name__}; accepted: a function seed -> sampler")


def make_sampler(make: Factory, seed: int, number: int) -> BaseSampler:
    """Return the sampler for one proposal, the `number`-th of a study."""
    with stable():
        return make((seed * 1_000_003 + number) % 2**32)


def remembered(trials: Sequence[FrozenTrial], front: Sequence[FrozenTrial], count: int) -> list[FrozenTrial]:
    """Return the trials that a sampler learns from: the front and the last trials, in the order of their numbers.

    Leave out networks that are not members of the space: they have no parameters to learn from.
    """
    first = max(0, len(trials) - count)
    old = sorted((t for t in front if t.number < first), key=lambda t: t.number)
    return [t for t in (*old, *trials[first:]) if "given" not in t.user_attrs]
