"""The values of a study: the outcomes, proposals and records of trials."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from res2net.arch import Arch

# The outcome of an ended trial, in its attribute `outcome`. SCORED trials were trained for the full budget; the final
# front holds no others. ESTIMATED trials have a score by shared weights. The scheduler ended STOPPED trials before
# their full budget. A REPEATED trial's network was known, an INFEASIBLE trial's network broke a limit. FAILED trials
# ended with an error. ORPHAN trials lost their driver or were released; their networks run again.
# AGAIN trials trained a network of the front once more, with another seed.
SCORED, ESTIMATED, STOPPED, REPEATED, INFEASIBLE, FAILED, ORPHAN, AGAIN = (
    "scored",
    "estimated",
    "stopped",
    "repeated",
    "infeasible",
    "failed",
    "orphan",
    "again",
)

# Attributes that hold several minor ones. Each attribute costs a transaction, so minor ones are written together.
TABLES = ("network", "training")


class TakenOver(Exception):
    """Another driver has taken over the trial, because the server had lost the connection to this driver."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to run: its number and parameters.

    retry_of: the trial that ran the same network before. confirms: the estimate that this trial confirms.
    alone: whether its driver may run nothing else meanwhile, because its network is a suspect (`Ledger.suspects`).
    plan: the name of the plan (`Timetable.session`), and the index of the plan's level that this trial trains.
    budget: the trial's epochs, if the plan sets them. trunk: see `search.worker.Job`, if the plan sets it.
    again: the first trial of the network, if this trial trains it with another seed.
    sample: the number of that seed, from 1.
    given: the network as `Arch.to_dict` writes it, if `--include` gives it and it is not a member of the space.
    """

    number: int
    params: dict[str, int]
    retry_of: int | None = None
    confirms: int | None = None
    alone: bool = False
    plan: tuple[int | str, int] | None = None
    budget: float | None = None
    trunk: int | None = None
    given: dict[str, Any] | None = None
    again: int | None = None
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """The record of one trial in the study.

    state: Optuna's state of the trial.
    outcome: our outcome of an ended trial, else the state in lower case.
    params: the sampled or enqueued parameters.
    attrs: the trial's attributes, with the entries of `TABLES` as separate attributes.
    quality: the value of the metric on the validation split in %, once scored. In a ledger, the mean over the seeds.
    epochs: the quality after each epoch.
    seeds: the quality with each seed; the first is the trial's own.
    """

    number: int
    state: str
    outcome: str
    params: dict[str, int]
    attrs: dict[str, Any]
    quality: float | None
    epochs: dict[int, float]
    seeds: tuple[float, ...] = ()

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds; NaN for fewer than two."""
        return statistics.stdev(self.seeds) if len(self.seeds) > 1 else math.nan

    def with_seed(self, quality: float) -> Record:
        """Return the record with the score of one more seed."""
        seeds = (*(self.seeds or (self.quality or 0.0,)), quality)
        return replace(self, quality=statistics.fmean(seeds), seeds=seeds)

    @property
    def key(self) -> str:
        """The network's key; empty if the trial ended before `Study.describe`."""
        return self.attrs.get("key", "")

    @property
    def reached(self) -> tuple[str, int]:
        """The network's key and the last epoch after which this trial reported an accuracy."""
        return self.key, max(self.epochs, default=0)

    @property
    def arch(self) -> Arch:
        """The network."""
        return Arch.from_dict(self.attrs["arch_json"])


def record_of(trial: FrozenTrial) -> Record:
    """Return the record of an Optuna trial."""
    attrs = dict(trial.user_attrs)
    for name in TABLES:
        attrs |= attrs.pop(name, {})
    outcome = attrs.pop("outcome", None)
    if outcome is None or not trial.state.is_finished():  # a kill can come between the outcome and the end
        outcome = trial.state.name.lower()
    values = trial.values if trial.state == TrialState.COMPLETE else None
    return Record(
        trial.number,
        trial.state.name,
        outcome,
        {**trial.system_attrs.get("fixed_params", {}), **trial.params},
        attrs,
        values[0] if values else None,
        dict(trial.intermediate_values),
        tuple(values[:1]) if values else (),
    )
