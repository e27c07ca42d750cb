"""Every use of a private part of Optuna. `tests/search/study/test_optuna_private.py` says what breaks without each.

1. `Study._get_trials`: returns the trials that a sampler learns from. `BoundedStudy` replaces this method, so that a
   sampler sees a bounded number of trials.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState


class BoundedStudy:
    """A study as a sampler sees it: the same study with fewer trials."""

    def __init__(
        self,
        study: optuna.Study,
        trials: Sequence[FrozenTrial],
        space: Mapping[str, BaseDistribution],
    ) -> None:
        self._of, self._trials = study, trials
        self.space = {k: v for k, v in sorted(space.items()) if not v.single()}

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [t for t in self._trials if states is None or t.state in states]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)
