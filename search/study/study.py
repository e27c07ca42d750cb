"""The study of a search: ask for proposals, record results, read trials. Its callers make all decisions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from res2net.arch import Arch
from search.front import front
from search.interrupts import held
from search.study.optuna_private import BoundedStudy
from search.study.sampler import Bounded, Factory, make_sampler, remembered
from search.study.storage import DRIVER, Direction, create_study, fold_log, is_shared, open_storage
from search.study.trials import INFEASIBLE, ORPHAN, STOPPED, Proposal, Record, TakenOver, record_of
from search.study.turns import Turns, new_driver

# Attributes that a retry shares with the trial before it.
OF_RETRIES = (
    *("confirms", "plan", "budget", "trunk", "given", "included"),
    *("parent", "origin", "inherited", "again", "sample"),
)


@contextlib.contextmanager
def own() -> Iterator[None]:
    """Inside the block, turn Optuna's error about an ended trial into `TakenOver`: only another driver can end it."""
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise TakenOver from None


class Study:
    """A study, either in SQLite, where one driver locks its folder, or in PostgreSQL, where several drivers share it.

    directions: `maximize` or `minimize` for each objective, quality first.
    sampler: a factory `seed -> sampler`.
    choices: the values of each parameter.
    here: this driver's host and folder.
    driver: this driver's number, which is recorded with its trials.
    """

    def __init__(
        self,
        url: str,
        name: str,
        directions: Mapping[str, Direction],
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
        self._live: dict[int, tuple[optuna.Trial, int]] = {}  # this driver's trials: Optuna's object and id
        self._stale = True  # whether something may have been written since the trials were last read
        self._trials: list[FrozenTrial] = []  # all trials at the last read, by number
        self._open: set[int] = set()  # the trials that had not ended at the last read
        self._ended: list[Record] = []  # the trials that `ended` has not returned yet
        self._orphans = 0  # how many trials ended as orphans
        self._front: list[FrozenTrial] = []  # the front of all trials with a score, for TPE

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock out other drivers' decisions, and hold interrupts, so that this driver decides with current trials."""
        if self._turns is None:
            with held():
                yield
            return
        with self._turns, held():
            self._stale = True
            try:
                yield
            finally:
                self._stale = True  # other drivers may write from now on

    def ask(self) -> Proposal:
        """Return the next proposal. The sampler's seed depends only on the study, so a resume proposes the same."""
        self._read()
        waiting = sum(self._trials[n].state == TrialState.WAITING for n in self._open)
        # The seed does not count orphans, because their networks run again. So orphans do not change later proposals.
        sampler = make_sampler(self._sampler, self._seed, len(self._trials) - waiting - self._orphans)
        if isinstance(sampler, Bounded):
            known = remembered(self._trials, self._front, sampler.remembers)
            sampler.view = BoundedStudy(self.optuna_study, known, self._distributions)
        self.optuna_study.sampler = sampler
        unended = (self._trials[n] for n in sorted(self._open))
        first = next((t for t in unended if t.state == TrialState.WAITING), None)  # Optuna returns it
        self._stale = True
        if first is not None and "given" in first.user_attrs:  # its network has no parameters to propose
            trial = self.optuna_study.ask()
        else:
            trial = self.optuna_study.ask(self._distributions)
            _ = trial.relative_params  # makes NSGA-II record the generation, for enqueued trials too
        self._take(trial)
        attrs = trial.user_attrs
        return Proposal(
            trial.number,
            dict(trial.params),
            attrs.get("retry_of"),
            attrs.get("confirms"),
            attrs.get("alone", False),
            tuple(attrs["plan"]) if "plan" in attrs else None,
            attrs.get("budget"),
            attrs.get("trunk"),
            attrs.get("given"),
            attrs.get("again"),
            attrs.get("sample", 0),
        )

    def _take(self, trial: optuna.Trial) -> None:
        number = trial.number
        self._live[number] = trial, self.storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def enqueue(self, params: Mapping[str, int], **attrs: Any) -> None:
        """Enqueue a proposal; `ask` returns it before new ones. attrs: fields of `Proposal`; a None is left out."""
        if attrs.get("retry_of") is not None:
            before = self.record(attrs["retry_of"]).attrs
            attrs |= {name: before.get(name) for name in OF_RETRIES}
        self._stale = True
        self.optuna_study.enqueue_trial(dict(params), user_attrs={k: v for k, v in attrs.items() if v is not None})

    def describe(self, proposal: Proposal, arch: Arch, costs: Mapping[str, float], violations: list[float]) -> None:
        """Record a trial's network, its costs, and by how much the network breaks each limit.

        The first two costs are separate attributes, for people who compare trials on the dashboard. The other costs
        are stored with the network.
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

    def report(self, number: int, epoch: int, quality: float) -> None:
        """Record the quality after an epoch; the dashboard draws it as the trial's curve.

        Optuna's `Trial.report` raises an error if a study has several objectives, so the storage is written directly.
        """
        self._stale = True
        with own():
            self.storage.set_trial_intermediate_value(self._live[number][1], epoch, quality)

    def complete(self, number: int, values: Sequence[float], outcome: str, **attrs: Any) -> None:
        """End a trial with its score: the values of the objectives, quality first."""
        self._end(number, TrialState.COMPLETE, outcome, attrs, [float(v) for v in values])

    def infeasible(self, number: int, reason: str) -> None:
        """End a trial whose network breaks a limit. Only TPE learns from such trials."""
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
        """Remove a trial that another driver has taken over from this driver's trials."""
        self._live.pop(number, None)

    def adopt(self, number: int) -> None:
        """Take over a trial that another driver left running, so that it can be ended."""
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
        self._live[number] = optuna.Trial(self.optuna_study, trial_id), trial_id

    def live(self, number: int) -> optuna.Trial:
        """Return Optuna's object of a trial that this driver runs."""
        return self._live[number][0]

    def ended(self) -> list[Record]:
        """Return the trials of all drivers that ended since the last call; on the first call, all ended trials."""
        self._read()
        ended, self._ended = self._ended, []
        return ended

    def unended(self) -> list[Record]:
        """Return the waiting and running trials of all drivers."""
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
        """Read new and changed trials, if any driver may have written some. Optuna fetches ended trials only once."""
        if not self._stale:
            return
        known, self._trials = len(self._trials), self.optuna_study.get_trials(deepcopy=False)
        self._stale = self._turns is not None and not self._turns.held
        trials = self._trials
        self._open.update(range(known, len(trials)))
        done = sorted(n for n in self._open if trials[n].state.is_finished())
        self._open.difference_update(done)
        scored = [*self._front, *(trials[n] for n in done if trials[n].state == TrialState.COMPLETE)]
        scored.sort(key=lambda t: t.number)  # of equal trials, the first proposed is kept, even if it ended later
        self._front = [scored[i] for i in front(*zip(*(t.values for t in scored), strict=True))] if scored else []
        records = [record_of(trials[n]) for n in done]
        self._orphans += sum(r.outcome == ORPHAN for r in records)
        self._ended += records

    def close(self) -> None:
        """Close the database; SQLite's write-ahead log is merged into its one file."""
        if self._turns:
            self._turns.close()
        fold_log(self.storage)
