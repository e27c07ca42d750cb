"""Samplers propose the next network. Each proposal gets a new sampler, made from a seed.

So the study stores no random state, and a resumed search makes the same proposals as an uninterrupted one. To add a
sampler, add an entry to `SAMPLERS`. Users pass a factory `seed -> sampler`, or a factory's path `my_package:NAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import FrozenTrial

from res2net.errors import UserError, unknown
from res2net.plugins import PATH, load_object
from search.study.optuna_private import BoundedStudy
from search.study.storage import stable

REMEMBERED = 500  # TPE learns from the front and from this many of the last trials

Factory = Callable[[int], BaseSampler]  # seed -> sampler


class BoundedTPE(optuna.samplers.TPESampler):
    """TPE over a bounded view of the study, so that a proposal takes no longer as the study grows."""

    view: BoundedStudy | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return all parameters. Every trial has the same parameters, so no trial needs to be read."""
        return self.view.space if self.view else super().infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """Return the proposal that TPE makes from the view."""
        seen: Any = self.view or study
        return super().sample_relative(seen, trial, search_space)


SAMPLERS: dict[str, Factory] = {
    "tpe": lambda seed: BoundedTPE(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=8),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=16),
    "random": lambda seed: RandomSampler(seed=seed),
}


def factory(name: str) -> Factory:
    """Return the sampler factory of a name or an import path; raise `UserError` if there is none."""
    if name in SAMPLERS:
        return SAMPLERS[name]
    if ":" not in name:
        raise unknown("`sampler`", name, (*SAMPLERS, PATH))
    found = load_object(name, "sampler")
    if callable(found):
        return cast(Factory, found)
    raise UserError(f"`sampler`: {name} is a {type(found).__name__}; accepted: a function seed -> sampler")


def make_sampler(make: Factory, seed: int, number: int) -> BaseSampler:
    """Return the sampler for one proposal, the `number`-th of a study."""
    with stable():
        return make((seed * 1_000_003 + number) % 2**32)


def remembered(trials: Sequence[FrozenTrial], front: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that TPE learns from: the front and the last trials, in the order of their numbers."""
    first = max(0, len(trials) - REMEMBERED)
    old = sorted((t for t in front if t.number < first), key=lambda t: t.number)
    return [*old, *trials[first:]]
