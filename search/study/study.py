"""The study of a search: asked for proposals, told what becomes of them, read. Nothing here decides anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from res2net.arch import Arch
from search.front import front
from search.study.optuna_private import BoundedStudy
from search.study.sampler import BoundedTPE, Factory, make_sampler, remembered
from search.study.storage import DRIVER, create_study, fold_log, is_shared, open_storage
from search.study.trials import INFEASIBLE, ORPHAN, STOPPED, Proposal, Record, TakenOver, record_of
from search.study.turns import Turns, new_driver


@contextlib.contextmanager
def own() -> Iterator[None]:
    """Raise `TakenOver` where Optuna says that the trial has ended: another driver has ended it."""
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise TakenOver from None


class Study:
    """A study in SQLite, whose one driver has locked its folder, or in PostgreSQL, shared by several drivers.

    directions: `maximize` or `minimize` for each objective, quality first. sampler: a factory `seed -> sampler`.
    choices: the values of each parameter. here: this driver's host and folder. driver: its number, which its trials
    carry.
    """

    def __init__(
        self,
        url: str,
        name: str,
        directions: Mapping[str, str],
        sampler: Factory,
        seed: int,
        choices: Mapping[str, tuple[int, ...]],
        here: Mapping[str, str] | None = None,
    ) -> None:
        self._sampler, self._seed = sampler, seed
        self._distributions: dict[str, BaseDistribution] = {k: CategoricalDistribution(v) for k, v in choices.items()}
        self.storage = open_storage(url)
        there = [] if is_shared(url) else self.storage.get_all_studies()
        name = there[0].study_name if there else name  # a renamed folder's study keeps its name
        self.optuna_study = create_study(self.storage, name, directions)
        self._id = self.storage.get_study_id_from_name(name)
        self.driver = new_driver()
        self._turns = Turns(self.storage.engine, self._id, self.driver) if is_shared(url) else None
        if self._turns:
            self.optuna_study.set_user_attr(f"{DRIVER}{self.driver}", dict(here or {}))
        self._live: dict[int, tuple[optuna.Trial, int]] = {}  # of this driver's trials: Optuna's object and id
        self._stale = True  # whether something may have been written since the trials were last read
        self._trials: list[FrozenTrial] = []  # as last read, by number
        self._open: set[int] = set()  # the trials that had not ended then
        self._ended: list[Record] = []  # the trials that `ended` has not returned yet
        self._orphans = 0
        self._front: list[FrozenTrial] = []

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other drivers from deciding: what is read inside still holds when it is acted on."""
        if self._turns is None:
            yield
            return
        with self._turns:
            self._stale = True
            try:
                yield
            finally:
                self._stale = True  # others may write from now on

    def ask(self) -> Proposal:
        """Return the next proposal. Its seed follows from the study alone, so a resumed search proposes the same."""
        self._read()
        waiting = sum(self._trials[n].state == TrialState.WAITING for n in self._open)
        # An orphan is asked again, and proposals after it must be what they would be without it.
        sampler = make_sampler(self._sampler, self._seed, len(self._trials) - waiting - self._orphans)
        if isinstance(sampler, BoundedTPE):
            known = remembered(self._trials, self._front)
            sampler.view = BoundedStudy(self.optuna_study, known, self._distributions)
        self.optuna_study.sampler = sampler
        self._stale = True
        trial = self.optuna_study.ask(self._distributions)
        _ = trial.relative_params  # NSGA-II notes the generation here, also of an enqueued trial
        self._take(trial)
        attrs = trial.user_attrs
        return Proposal(
            trial.number,
            dict(trial.params),
            attrs.get("retry_of"),
            attrs.get("confirms"),
            attrs.get("alone", False),
        )

    def _take(self, trial: optuna.Trial) -> None:
        number = trial.number
        self._live[number] = trial, self.storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def enqueue(self, params: Mapping[str, int], **attrs: Any) -> None:
        """Have a proposal with these parameters asked before any others. attrs: fields of `Proposal`; None is none."""
        if attrs.get("retry_of") is not None:
            attrs["confirms"] = self.record(attrs["retry_of"]).attrs.get("confirms")
        self._stale = True
        self.optuna_study.enqueue_trial(dict(params), user_attrs={k: v for k, v in attrs.items() if v is not None})

    def describe(self, proposal: Proposal, arch: Arch, costs: Mapping[str, float], violations: list[float]) -> None:
        """Record a trial's network, its costs, and by how much it breaks each limit.

        The first two costs are attributes of their own, for people who compare; the others travel with the network.
        """
        shown = dict(list(costs.items())[:2])
        network: dict[str, Any] = {"key": arch.key(), **{k: v for k, v in costs.items() if k not in shown}}
        network |= {"arch_json": arch.to_dict(), "driver": self.driver}
        self.annotate(proposal.number, {"arch": str(arch), **shown, "network": network})
        if violations:
            self._constrain(proposal.number, violations)

    def _constrain(self, number: int, violations: list[float]) -> None:
        # This attribute serves both Optuna's samplers and the dashboard, which does not read `set_constraint`'s form.
        self.storage.set_trial_system_attr(self._live[number][1], "constraints", violations)

    def annotate(self, number: int, attrs: Mapping[str, Any]) -> None:
        """Set attributes of a trial that has not ended."""
        self._stale = True
        with own():
            for key, value in attrs.items():
                self._live[number][0].set_user_attr(key, value)

    def report(self, number: int, epoch: int, val_top1: float) -> None:
        """Record the accuracy after an epoch; the dashboard draws it as the trial's curve.

        Optuna's `Trial.report` refuses in a study of several objectives, so the value goes to the storage.
        """
        self._stale = True
        with own():
            self.storage.set_trial_intermediate_value(self._live[number][1], epoch, val_top1)

    def complete(self, number: int, values: tuple[float, float], outcome: str, **attrs: Any) -> None:
        """End a trial with its score: the values of the objectives."""
        self._end(number, TrialState.COMPLETE, outcome, attrs, [float(v) for v in values])

    def infeasible(self, number: int, reason: str) -> None:
        """End a trial whose network is not allowed. TPE learns from it, other samplers do not."""
        self._end(number, TrialState.PRUNED, INFEASIBLE, {"reason": reason})

    def stop(self, number: int, violations: list[float], reason: str, **attrs: Any) -> None:
        """End a trial before its full budget. One of the violations must be above 0: Optuna's TPE crashes otherwise."""
        self._constrain(number, violations)
        self._end(number, TrialState.PRUNED, STOPPED, {"reason": reason, **attrs})

    def fail(self, number: int, outcome: str, reason: str) -> None:
        """End a trial without a score."""
        self._end(number, TrialState.FAIL, outcome, {"reason": reason})

    def _end(
        self, number: int, state: TrialState, outcome: str, attrs: Mapping[str, Any], values: list[float] | None = None
    ) -> None:
        with self.exclusive():  # no other driver may take the trial over between its outcome and its end
            self.annotate(number, {"outcome": outcome, **attrs})
            self.optuna_study.tell(self._live[number][0], values, state)
            del self._live[number]

    def forget(self, number: int) -> None:
        """Let go of a trial that another driver has taken over."""
        self._live.pop(number, None)

    def adopt(self, number: int) -> None:
        """Take over a trial that another driver left running, so that it can be ended."""
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
        self._live[number] = optuna.Trial(self.optuna_study, trial_id), trial_id

    def live(self, number: int) -> optuna.Trial:
        """Return Optuna's object of a trial that this driver runs."""
        return self._live[number][0]

    def ended(self) -> list[Record]:
        """Return the trials that ended since the last call, of all drivers; on the first call all that have."""
        self._read()
        ended, self._ended = self._ended, []
        return ended

    def unended(self) -> list[Record]:
        """Return the trials that have not ended, of all drivers: waiting and running."""
        self._read()
        return [record_of(self._trials[n]) for n in sorted(self._open)]

    def running(self) -> list[Record]:
        """Return the running trials of all drivers."""
        return [r for r in self.unended() if r.state == "RUNNING"]

    def own_running(self) -> list[Record]:
        """Return the running trials of this driver."""
        return [r for r in self.running() if r.number in self._live]

    def orphans(self) -> list[Record]:
        """Return RUNNING trials whose driver is gone, including drivers that died before they recorded their number."""
        others = [r for r in self.running() if r.number not in self._live]
        alive = self._turns.drivers() if self._turns and others else set()
        return [r for r in others if r.attrs.get("driver") not in alive]

    def waiting(self) -> bool:
        """Return whether a proposal is enqueued."""
        self._read()
        return any(self._trials[n].state == TrialState.WAITING for n in self._open)

    def record(self, number: int) -> Record:
        """Return one trial."""
        self._read()
        return record_of(self._trials[number])

    def records(self) -> list[Record]:
        """Return all trials in the order they were asked."""
        self._read()
        return [record_of(t) for t in self._trials]

    def _read(self) -> None:
        """Read what is new, unless nobody can have written. Optuna asks the database for no trial that had ended."""
        if not self._stale:
            return
        known, self._trials = len(self._trials), self.optuna_study.get_trials(deepcopy=False)
        self._stale = self._turns is not None and not self._turns.held
        trials = self._trials
        self._open.update(range(known, len(trials)))
        done = sorted(n for n in self._open if trials[n].state.is_finished())
        self._open.difference_update(done)
        scored = [*self._front, *(trials[n] for n in done if trials[n].state == TrialState.COMPLETE)]
        scored.sort(key=lambda t: t.number)  # of equal trials the first asked stands, also if it ended later
        self._front = [scored[i] for i in front([t.values[0] for t in scored], [t.values[1] for t in scored])]
        records = [record_of(trials[n]) for n in done]
        self._orphans += sum(r.outcome == ORPHAN for r in records)
        self._ended += records

    def close(self) -> None:
        """Release the database; SQLite's write-ahead log is folded into the one file."""
        if self._turns:
            self._turns.close()
        fold_log(self.storage)
