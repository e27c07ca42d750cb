"""The vocabulary of a study: what becomes of a trial, and what is known of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from res2net.arch import Arch

# What became of a trial, in its attribute `outcome`. Only SCORED trials, which were trained for the full budget, are on
# the final front. ESTIMATED trials have a score by shared weights. STOPPED trials had less than the full budget.
SCORED, ESTIMATED, STOPPED, REPEATED, INFEASIBLE, FAILED, ORPHAN = (
    "scored",
    "estimated",
    "stopped",
    "repeated",
    "infeasible",
    "failed",
    "orphan",
)

# Attributes that are tables of lesser ones. Each attribute is a transaction of its own, so lesser ones travel together.
TABLES = ("network", "training")


class TakenOver(Exception):
    """The trial belongs to another driver now: the server had lost sight of this driver."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to run: its number and parameters.

    retry_of: the trial that ran the same network before. confirms: the estimate that this trial confirms.
    alone: whether it must run while its driver runs nothing else.
    """

    number: int
    params: dict[str, int]
    retry_of: int | None = None
    confirms: int | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What the study knows of one trial.

    state: Optuna's. outcome: ours once the trial has ended, else the state in lower case. params: as sampled or
    enqueued. attrs: the trial's attributes, tables unfolded. val_top1: validation accuracy in %, once scored.
    epochs: the validation accuracy after each epoch.
    """

    number: int
    state: str
    outcome: str
    params: dict[str, int]
    attrs: dict[str, Any]
    val_top1: float | None
    epochs: dict[int, float]

    @property
    def key(self) -> str:
        """The network's key; empty if the trial ended before it was described."""
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
    if outcome is None or not trial.state.is_finished():  # a driver killed between outcome and end has not ended it
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
    )
