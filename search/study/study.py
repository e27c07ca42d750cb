"""The Optuna study, which is the only truth of a search: opened, asked, told, read. Nothing else here knows Optuna.

In SQLite one driver writes it, in PostgreSQL several may: see `_Turns`. Optuna's private calls are kept to this file:
`_storage` for intermediate values and constraints, which its public interface refuses in studies of several objectives
or hides from the dashboard, and for what is new since it was last read, as going through all trials takes too long.
"""

from __future__ import annotations

import contextlib
import secrets
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
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
from search.front import front

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

SEARCH = "search"  # the attribute of a shared study that says what is searched, and how
DRIVER = "driver:"  # and that of each of its drivers: on which host it runs, in which folder it keeps the weights
CONNECT_SECONDS, TURN_SECONDS = 10, 120  # until a server that does not answer is given up, or a driver that is stuck

REMEMBERED = 500  # so many of the last trials TPE learns from, beside the front

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
    def reached(self) -> tuple[str, int]:
        """The network, and the last epoch that its accuracy is known of in this trial."""
        return self.key, max(self.epochs, default=0)

    @property
    def macs(self) -> int:
        return self.attrs["macs"]


class TakenOver(Exception):
    """The trial is another driver's now: the server had lost sight of this one."""


class Study:
    """A study in SQLite, in a folder that its one driver has locked; or in PostgreSQL, shared by several drivers.

    `where` is this driver's host and folder; `driver`, which trials carry, its number.
    """

    def __init__(
        self,
        url: str,
        name: str,
        sampler: str,
        seed: int,
        choices: Mapping[str, tuple[int, ...]],
        where: Mapping[str, str] | None = None,
    ) -> None:
        self._sampler, self._seed = sampler, seed
        self._distributions = {k: CategoricalDistribution(v) for k, v in choices.items()}
        self.storage = _open(url)
        there = [] if is_shared(url) else self.storage.get_all_studies()
        name = there[0].study_name if there else name  # of a folder that was renamed, the name it had
        self._study = _create(self.storage, name)
        self.driver = secrets.randbelow(2**31 - 1) + 1
        self._turns = _Turns(self.storage.engine, self._study._study_id, self.driver) if is_shared(url) else None
        if self._turns:
            self._study.set_user_attr(f"{DRIVER}{self.driver}", dict(where or {}))
        self._live: dict[int, optuna.Trial] = {}
        self._stale = True  # something may have been written since the trials were last read
        self._known = 0  # so many trials were read
        self._open: set[int] = set()  # of which these had not ended
        self._ended: list[Record] = []  # and these had: see `ended`
        self._orphans = 0
        self._front: list[FrozenTrial] = []
        self.retried: set[int] = set()  # the trials that were asked again

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other driver decides anything meanwhile: what was read still holds when it is acted on."""
        if self._turns is None:
            yield
            return
        with self._turns:
            self._stale = True
            try:
                yield
            finally:
                self._stale = True  # others may write again

    def ask(self) -> Proposal:
        """The next proposal; its seed follows from the study alone, so a resumed search proposes what it would have."""
        self._read()
        waiting = sum(self._trials[n].state == TrialState.WAITING for n in self._open)
        # An orphan is asked again, and what comes after it shall be as if it had not died.
        sampler = make_sampler(self._sampler, self._seed, self._known - waiting - self._orphans)
        if isinstance(sampler, _BoundedTPE):
            sampler.view = _View(self._study, self._remembered, self._distributions)
        self._study.sampler = sampler
        self._stale = True
        trial = self._study.ask(self._distributions)
        _ = trial.relative_params  # of an enqueued trial too: there NSGA-II notes the generation that it belongs to
        self._live[trial.number] = trial
        attrs = trial.user_attrs
        return Proposal(trial.number, dict(trial.params), attrs.get("retry_of"), attrs.get("confirms"))

    def enqueue(self, params: Mapping[str, int], retry_of: int | None = None, confirms: int | None = None) -> None:
        """Have these parameters asked before any others."""
        if retry_of is not None:
            confirms = self.record(retry_of).attrs.get("confirms")
        attrs = {"retry_of": retry_of, "confirms": confirms}
        self._stale = True
        self._study.enqueue_trial(dict(params), user_attrs={k: v for k, v in attrs.items() if v is not None})

    def describe(self, number: int, arch: Arch, cost: Cost, violations: list[float]) -> None:
        """Write down the trial's network, its cost, and by how much it breaks each limit."""
        network = {"key": arch.key(), "activations": cost.activations, "arch_json": arch.to_dict()}
        network["driver"] = self.driver
        self.annotate(number, {"arch": str(arch), "macs": cost.macs, "params": cost.params, "network": network})
        if violations:
            self._constrain(number, violations)

    def _constrain(self, number: int, violations: list[float]) -> None:
        self._study._storage.set_trial_system_attr(self._live[number]._trial_id, "constraints", violations)

    def annotate(self, number: int, attrs: Mapping[str, Any]) -> None:
        """Set attributes of a trial that has not ended."""
        self._stale = True
        with held():
            for key, value in attrs.items():
                self._live[number].set_user_attr(key, value)

    def report(self, number: int, epoch: int, val_top1: float) -> None:
        """Record the accuracy after an epoch, which the dashboard draws as the trial's curve."""
        self._stale = True
        with held():
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
        self._end(number, TrialState.FAIL, outcome, {"reason": reason})

    def _end(
        self, number: int, state: TrialState, outcome: str, attrs: Mapping[str, Any], values: list[float] | None = None
    ) -> None:
        with self.exclusive():  # so that none takes it over between the outcome and the end
            self.annotate(number, {"outcome": outcome, **attrs})
            self._study.tell(self._live[number], values, state)
            del self._live[number]

    def forget(self, number: int) -> None:
        """Let go of a trial that another driver has taken over."""
        self._live.pop(number, None)

    def ended(self) -> list[Record]:
        """The trials that ended since this was last called, whoever ended them; at first all that have."""
        self._read()
        ended, self._ended = self._ended, []
        return ended

    def running(self) -> list[Record]:
        """The trials that have not ended, of all drivers."""
        self._read()
        open_ = [self._trials[n] for n in sorted(self._open)]
        return [_record(t) for t in open_ if t.state == TrialState.RUNNING]

    def held(self) -> list[Record]:
        """Those of them that this driver runs."""
        return [r for r in self.running() if r.number in self._live]

    def orphans(self) -> list[Record]:
        """Those of them that none does. One without a driver had one that ended between asking it and saying so."""
        others = [r for r in self.running() if r.number not in self._live]
        there = self._turns.drivers() if self._turns and others else set()
        return [r for r in others if r.attrs.get("driver") not in there]

    def waiting(self) -> bool:
        """Whether something is enqueued."""
        self._read()
        return any(self._trials[n].state == TrialState.WAITING for n in self._open)

    def adopt(self, number: int) -> None:
        """Take over a trial that another driver left running, so that it can be ended."""
        self._live[number] = optuna.Trial(self._study, self._trial_id(number))

    def record(self, number: int) -> Record:
        return _record(self._study._storage.get_trial(self._trial_id(number)))

    def records(self) -> list[Record]:
        """All trials, in the order they were asked."""
        self._read()
        return [_record(self._trials[n]) for n in range(self._known)]

    def _remembered(self) -> list[FrozenTrial]:
        """What TPE learns from: the front and the last trials, in the order they were asked."""
        trials = self._trials
        first = max(0, len(trials) - REMEMBERED)
        old = sorted((t for t in self._front if t.number < first), key=lambda t: t.number)
        return [*old, *(trials[n] for n in range(first, len(trials)))]

    def _trial_id(self, number: int) -> int:
        return self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)

    @property
    def _trials(self) -> dict[int, FrozenTrial]:
        """Optuna's own copy of what was read, by number."""
        return self._study._storage._studies[self._study._study_id].trials

    def _read(self) -> None:
        """Read what is new, unless nobody can have written; Optuna asks the database for no trial that had ended."""
        if not self._stale:
            return
        self._study._storage._read_trials_from_remote_storage(self._study._study_id)
        self._stale = self._turns is not None and not self._turns.held
        trials = self._trials
        new = range(self._known, len(trials))
        self._known = len(trials)
        self._open.update(new)
        self.retried |= {trials[n].user_attrs["retry_of"] for n in new if "retry_of" in trials[n].user_attrs}
        done = sorted(n for n in self._open if trials[n].state.is_finished())
        self._open.difference_update(done)
        scored = [*self._front, *(trials[n] for n in done if trials[n].state == TrialState.COMPLETE)]
        self._front = [scored[i] for i in front([t.values[0] for t in scored], [t.values[1] for t in scored])]
        records = [_record(trials[n]) for n in done]
        self._orphans += sum(r.outcome == ORPHAN for r in records)
        self._ended += records

    def live(self, number: int) -> optuna.Trial:
        """Optuna's own object of a trial that has not ended."""
        return self._live[number]

    @property
    def optuna_study(self) -> optuna.Study:
        return self._study

    def close(self) -> None:
        """Release the database, folding its write-ahead log into the one file."""
        if self._turns:
            self._turns.close()
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
        return _BoundedTPE(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=8)


class _View:
    """A study as TPE shall see it: so many trials that an ask takes no longer as the study grows."""

    def __init__(self, study: optuna.Study, trials: Callable[[], list[FrozenTrial]], space: dict) -> None:
        self._of, self._remembered = study, trials
        self.space = {k: v for k, v in sorted(space.items()) if not v.single()}

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [t for t in self._remembered() if states is None or t.state in states]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


class _BoundedTPE(optuna.samplers.TPESampler):
    """TPE over a view of the study. Every trial has the same parameters: none is looked through for them."""

    view: _View | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict:
        return self.view.space if self.view else super().infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict[str, Any]:
        return super().sample_relative(self.view or study, trial, search_space)


class _Turns:
    """Whose turn it is among the drivers of a study in PostgreSQL, and which of them are there: its advisory locks.

    They go with the connection that holds them, however a driver ends, so no clock says who is alive. Of a machine
    that fell silent the server finds out within half a minute. Such locks need a server without a pooler of statements
    or transactions in between.
    """

    def __init__(self, engine: sqlalchemy.Engine, study: int, driver: int) -> None:
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._connection.detach()  # from the pool: closing it ends it
        self._study, self._depth = study, 0
        for name, value in (("idle", 10), ("interval", 5), ("count", 4)):
            self._run(f"SET tcp_keepalives_{name} = {value}")
        self._run(f"SET lock_timeout = '{TURN_SECONDS}s'")
        self._run("SELECT pg_advisory_lock(:study, :key)", study=study, key=driver)

    @property
    def held(self) -> bool:
        return self._depth > 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._run("SELECT pg_advisory_lock(:study, 0)", study=self._study)
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._run("SELECT pg_advisory_unlock(:study, 0)", study=self._study)

    def drivers(self) -> set[int]:
        """The numbers of the drivers that are there."""
        rows = self._run(
            "SELECT objid FROM pg_locks JOIN pg_database ON pg_database.oid = database WHERE locktype = 'advisory'"
            " AND datname = current_database() AND classid = :study AND objsubid = 2 AND granted",
            study=self._study,
        )
        return {int(row[0]) for row in rows}

    def close(self) -> None:
        self._connection.close()

    def _run(self, statement: str, **values: int) -> sqlalchemy.CursorResult:
        return self._connection.execute(sqlalchemy.text(statement), values)


def join(url: str, name: str, search: Mapping[str, Any], new: bool) -> dict[str, Any]:
    """What is searched in the shared study of this name, which is made if it is `new`: then `search`, as JSON.

    `UserError` for a server that cannot be reached, or that does not hold the study.
    """
    storage = _open(url)
    try:
        if not new and name not in [s.study_name for s in storage.get_all_studies()]:
            raise UserError(f"--storage: there is no study {name!r} in {url}; accepted: where the search was begun")
        study = _create(storage, name)
        turns = _Turns(storage.engine, study._study_id, secrets.randbelow(2**31 - 1) + 1)
        with contextlib.closing(turns), turns:  # of two that make it at once, one is first
            if SEARCH not in study.user_attrs:
                study.set_user_attr(SEARCH, dict(search))
            return study.user_attrs[SEARCH]
    finally:
        storage.engine.dispose()


def _create(storage: RDBStorage, name: str) -> optuna.Study:
    """The study of that name, made if there is none."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=list(OBJECTIVES.values()), load_if_exists=True
    )
    if study.metric_names is None:
        with _stable():
            study.set_metric_names(list(OBJECTIVES))
    return study


@contextlib.contextmanager
def held() -> Iterator[None]:
    """`TakenOver` instead of Optuna's own word for a trial that has ended."""
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        raise TakenOver from None


@contextlib.contextmanager
def reached(url: str | None) -> Iterator[None]:
    """A database server that goes away is one line, also where Ray has wrapped it; None is SQLite's file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, sqlalchemy.exc.SQLAlchemyError):
            cause = cause.__cause__ or cause.__context__
        if url is None or cause is None:
            raise
        raise UserError(
            f"--storage: {url} cannot be reached any more: {_reason(cause)}; nothing is lost; "
            "accepted: the same --out when it can"
        ) from None


def is_shared(url: str) -> bool:
    """Whether several drivers may write this storage."""
    return url.startswith("postgresql")


def server_url(url: str) -> str:
    """The URL of a server with the package that speaks to it, as Optuna and its dashboard read it."""
    return "postgresql+psycopg://" + url.partition("://")[2]


@contextlib.contextmanager
def _stable() -> Iterator[None]:
    """Without the warnings of what Optuna calls experimental: versions are pinned, and tests cover what is used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _open(url: str) -> RDBStorage:
    """The storage; SQLite in write-ahead mode, so that a dashboard reads while the driver writes."""
    if is_shared(url):
        return _open_server(url)
    try:
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    except sqlalchemy.exc.DatabaseError as error:
        raise UserError(f"study {url!r} cannot be opened: {_reason(error)}") from None
    sqlalchemy.event.listen(storage.engine, "connect", _set_pragmas)
    storage.engine.dispose()  # connections opened before the listener
    return storage


def _open_server(url: str) -> RDBStorage:
    """The storage in a PostgreSQL database; its tables are made by the first driver that comes."""
    connect = {"connect_timeout": CONNECT_SECONDS, "keepalives_idle": 30, "application_name": "res2net-search"}
    try:
        engine = sqlalchemy.create_engine(server_url(url), connect_args=connect, poolclass=sqlalchemy.NullPool)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(0, 0)"))
            return RDBStorage(server_url(url), engine_kwargs={"connect_args": connect, "pool_pre_ping": True})
    except ImportError:
        raise UserError(
            f"--storage: {url} needs the package psycopg; accepted: after pip install 'res2net-search[postgres]'"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(
            f"--storage: {url} cannot be opened: {_reason(error)}; accepted: a database that you may write, with the "
            "password in PGPASSWORD or ~/.pgpass"
        ) from None


def _reason(error: BaseException) -> str:
    """A database's own words, on one line."""
    return " ".join(str(error.__cause__ or error).split())


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


def read(folder: Path, url: str | None = None, name: str | None = None) -> Iterator[Record]:
    """The records of a run's folder, or of the study of that name on a server.

    No trial is changed, though SQLite may leave files of its own beside the study.
    """
    path = folder / STUDY_FILE
    if url is None and not path.is_file():
        raise UserError(f"run folder {str(folder)!r}: {STUDY_FILE} is missing; accepted: the --out of a search")
    with _reading(url or sqlite_url(folder)) as storage:
        studies = [s for s in storage.get_all_studies() if url is None or s.study_name == name]
        if not studies:
            raise UserError(f"{url or path}: holds no study{f' {name!r}' if url else ''}")
        for trial in storage.get_all_trials(studies[0]._study_id, deepcopy=False):
            yield _record(trial)


def where(url: str, name: str, record: Record) -> Mapping[str, str]:
    """The host and the folder of the driver that a trial of a shared study ran in."""
    with _reading(url) as storage:
        attrs = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    return attrs[f"{DRIVER}{record.attrs['driver']}"]


@contextlib.contextmanager
def _reading(url: str) -> Iterator[RDBStorage]:
    storage = _open(url)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def arch_of(record: Record) -> Arch:
    """The network of a record."""
    return Arch.from_dict(record.attrs["arch_json"])
