"""The Optuna study, which is the only truth of a search: opened, asked, told, read. Nothing else here knows Optuna.

One driver writes it. Optuna's private calls are kept to this file: `_storage` for intermediate values and constraints,
which its public interface refuses in studies of several objectives or hides from the dashboard.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from res2net.arch import Arch
from res2net.cost import Cost
from res2net.errors import UserError

STUDY_FILE = "study.db"
OBJECTIVES = {"val_top1": "maximize", "macs": "minimize"}

# What became of a trial, in its attribute `outcome`. Only `scored` ones, which were trained, are on the final front;
# `estimated` ones have a score by shared weights, `stopped` ones were given less than the full budget.
SCORED, ESTIMATED, STOPPED, REPEATED, INFEASIBLE, FAILED, ORPHAN = (
    "scored",
    "estimated",
    "stopped",
    "repeated",
    "infeasible",
    "failed",
    "orphan",
)

# Attributes of a trial that are tables of lesser ones: each attribute is a transaction of its own.
TABLES = ("network", "training")


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is to be tried: the trial's number and parameters.

    retry_of: the trial that it was asked as before. confirms: the estimate that it shall confirm.
    """

    number: int
    params: dict[str, int]
    retry_of: int | None = None
    confirms: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What the study knows of one trial. `val_top1` in % and `epochs` (the budget it was earned with) once scored."""

    number: int
    state: str
    outcome: str
    params: dict[str, int]
    attrs: dict[str, Any]
    val_top1: float | None
    epochs: dict[int, float]

    @property
    def key(self) -> str:
        return self.attrs.get("key", "")

    @property
    def macs(self) -> int:
        return self.attrs["macs"]


class Study:
    """A study over SQLite, or over the storage of a URL."""

    def __init__(self, url: str, name: str, sampler: str, seed: int, choices: Mapping[str, tuple[int, ...]]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sampler, self._seed = sampler, seed
        self._distributions = {k: CategoricalDistribution(v) for k, v in choices.items()}
        self.storage = _open(url)
        there = self.storage.get_all_studies()
        name = there[0].study_name if there else name  # of a folder that was renamed, the name it had
        self._study = optuna.create_study(
            storage=self.storage, study_name=name, directions=list(OBJECTIVES.values()), load_if_exists=True
        )
        with _stable():
            self._study.set_metric_names(list(OBJECTIVES))
        self._live: dict[int, optuna.Trial] = {}
        self._asked = sum(r.state != "WAITING" and r.outcome != ORPHAN for r in self.records())

    def ask(self) -> Proposal:
        """The next proposal; its seed follows from the study alone, so a resumed search proposes what it would have."""
        self._study.sampler = make_sampler(self._sampler, self._seed, self._asked)
        trial = self._study.ask(self._distributions)
        _ = trial.relative_params  # of an enqueued trial too: there NSGA-II notes the generation that it belongs to
        self._live[trial.number] = trial
        self._asked += 1
        attrs = trial.user_attrs
        return Proposal(trial.number, dict(trial.params), attrs.get("retry_of"), attrs.get("confirms"))

    def enqueue(self, params: Mapping[str, int], retry_of: int | None = None, confirms: int | None = None) -> None:
        """Have these parameters asked before any others."""
        if retry_of is not None:
            confirms = self.record(retry_of).attrs.get("confirms")
        attrs = {"retry_of": retry_of, "confirms": confirms}
        self._study.enqueue_trial(dict(params), user_attrs={k: v for k, v in attrs.items() if v is not None})

    def describe(self, number: int, arch: Arch, cost: Cost, violations: list[float]) -> None:
        """Write down the trial's network, its cost, and by how much it breaks each limit."""
        network = {"key": arch.key(), "activations": cost.activations, "arch_json": arch.to_dict()}
        self.annotate(number, {"arch": str(arch), "macs": cost.macs, "params": cost.params, "network": network})
        if violations:
            self._constrain(number, violations)

    def _constrain(self, number: int, violations: list[float]) -> None:
        self._study._storage.set_trial_system_attr(self._live[number]._trial_id, "constraints", violations)

    def annotate(self, number: int, attrs: Mapping[str, Any]) -> None:
        """Set attributes of a trial that has not ended."""
        for key, value in attrs.items():
            self._live[number].set_user_attr(key, value)

    def report(self, number: int, epoch: int, val_top1: float) -> None:
        """Record the accuracy after an epoch, which the dashboard draws as the trial's curve."""
        self._study._storage.set_trial_intermediate_value(self._live[number]._trial_id, epoch, val_top1)

    def complete(self, number: int, val_top1: float, macs: int, outcome: str, **attrs: Any) -> None:
        """End a trial with its score."""
        self._end(number, TrialState.COMPLETE, outcome, attrs, [val_top1, float(macs)])

    def infeasible(self, number: int, reason: str) -> None:
        """End a trial whose network cannot be had: TPE learns from it, the others do not; it is never on the front."""
        self._end(number, TrialState.PRUNED, INFEASIBLE, {"reason": reason})

    def stop(self, number: int, violations: list[float], reason: str, **attrs: Any) -> None:
        """End a trial before its full budget; one of the violations must be above 0."""
        self._constrain(number, violations)
        self._end(number, TrialState.PRUNED, STOPPED, {"reason": reason, **attrs})

    def fail(self, number: int, outcome: str, reason: str) -> None:
        """End a trial without a score."""
        # An orphan is asked again, and what comes after it shall be as if it had not died.
        self._asked -= outcome == ORPHAN
        self._end(number, TrialState.FAIL, outcome, {"reason": reason})

    def _end(
        self, number: int, state: TrialState, outcome: str, attrs: Mapping[str, Any], values: list[float] | None = None
    ) -> None:
        self.annotate(number, {"outcome": outcome, **attrs})
        self._study.tell(self._live.pop(number), values, state)

    def running(self) -> list[Record]:
        """The trials that have not ended."""
        return [r for r in self.records() if r.state == "RUNNING"]

    def waiting(self) -> bool:
        """Whether something is enqueued."""
        return bool(self._study.get_trials(deepcopy=False, states=[TrialState.WAITING]))

    def adopt(self, number: int) -> None:
        """Take over a trial that another driver left running, so that it can be ended."""
        self._live[number] = optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)

    def record(self, number: int) -> Record:
        return _record(self._study.get_trials(deepcopy=False)[number])

    def records(self) -> list[Record]:
        """All trials, in the order they were asked."""
        return [_record(t) for t in self._study.get_trials(deepcopy=False)]

    def live(self, number: int) -> optuna.Trial:
        """Optuna's own object of a trial that has not ended."""
        return self._live[number]

    @property
    def optuna_study(self) -> optuna.Study:
        return self._study

    def close(self) -> None:
        """Release the database, folding its write-ahead log into the one file."""
        self.storage.remove_session()
        if self.storage.engine.dialect.name == "sqlite":
            with self.storage.engine.connect() as connection:
                connection.execute(sqlalchemy.text("PRAGMA wal_checkpoint(TRUNCATE)"))
        self.storage.engine.dispose()


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{(folder / STUDY_FILE).absolute()}"


def make_sampler(name: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for one ask: made anew, as its random state is not stored with the study."""
    seed = (seed * 1_000_003 + number) % 2**32
    with _stable():
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=16)
        if name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=8)


@contextlib.contextmanager
def _stable() -> Iterator[None]:
    """Without the warnings of what Optuna calls experimental: versions are pinned, and tests cover what is used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _open(url: str) -> RDBStorage:
    """The storage; SQLite in write-ahead mode, so that a dashboard reads while the driver writes."""
    sqlite = url.startswith("sqlite")
    try:
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else None)
        if sqlite:
            sqlalchemy.event.listen(storage.engine, "connect", _set_pragmas)
            storage.engine.dispose()  # connections opened before the listener
        return storage
    except (sqlalchemy.exc.DatabaseError, ImportError) as error:
        raise UserError(f"study {url!r} cannot be opened: {error.__cause__ or error}") from None


def _set_pragmas(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _record(trial: FrozenTrial) -> Record:
    attrs = dict(trial.user_attrs)
    for name in TABLES:
        attrs |= attrs.pop(name, {})
    outcome = attrs.pop("outcome", None)
    if outcome is None or not trial.state.is_finished():  # killed between its outcome and its end, it has not ended
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


def read(folder: Path) -> Iterator[Record]:
    """The records of a run's folder; no trial is changed, though SQLite may leave files of its own beside the study."""
    path = folder / STUDY_FILE
    if not path.is_file():
        raise UserError(f"run folder {str(folder)!r}: {STUDY_FILE} is missing; accepted: the --out of a search")
    storage = _open(sqlite_url(folder))
    try:
        studies = storage.get_all_studies()
        if not studies:
            raise UserError(f"{path}: holds no study")
        for trial in storage.get_all_trials(studies[0]._study_id, deepcopy=False):
            yield _record(trial)
    finally:
        storage.engine.dispose()


def arch_of(record: Record) -> Arch:
    """The network of a record."""
    return Arch.from_dict(record.attrs["arch_json"])
