"""The storage of a study: SQLite in a run's folder, or a PostgreSQL database.

Only one driver writes a study in SQLite, because it locks the run's folder. Several drivers may write a study in
PostgreSQL (see `turns`).
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import optuna
import sqlalchemy
import sqlalchemy.event
import sqlalchemy.exc
from optuna.storages import RDBStorage

from res2net.errors import UserError
from search.study.trials import Record, record_of

Direction = Literal["minimize", "maximize"]

STUDY_FILE = "study.db"
DRIVER = "driver:"  # prefix of the attribute that names a driver's host and the folder of its weights
CONNECT_SECONDS = 10  # time limit for a connection to a server


def check_url(text: str) -> None:
    """Raise `UserError` unless the URL is PostgreSQL's. Refuse a password in the URL, which `run.json` would show."""
    try:
        url = urlsplit(text)
        known = url.scheme in ("postgresql", "postgresql+psycopg") and url.path.strip("/")
        secret = url.password is not None or "password" in parse_qs(url.query)
    except ValueError:
        known = secret = False
    if secret:
        raise UserError(
            "`storage`: holds a password, which would be written down with the settings; accepted: the URL without it, "
            "and the password in PGPASSWORD or ~/.pgpass"
        )
    if not known:
        raise UserError("`storage`: no URL of a PostgreSQL database; accepted: postgresql://user@host:5432/database")


def sqlite_url(folder: Path) -> str:
    """Return the URL of the study in a run's folder. Raise `UserError` for a path that a URL cannot hold."""
    path = str((folder / STUDY_FILE).absolute())
    # Optuna formats the URL. SQLAlchemy reads a query after `?`, and whether it decodes %20 depends on its version.
    if re.search(r"[?{}]|%[0-9A-Fa-f]{2}", path):
        raise UserError(f"`out`: {str(folder.absolute())!r} cannot hold a study; accepted: a path without ? {{ }} %20")
    return f"sqlite:///{path}"


def is_shared(url: str) -> bool:
    """Return whether several drivers may write this storage."""
    return url.startswith("postgresql")


def server_url(url: str) -> str:
    """Return a server's URL for Optuna and its dashboard: SQLAlchemy's form, which names the package psycopg."""
    return "postgresql+psycopg://" + url.partition("://")[2]


def open_storage(url: str) -> RDBStorage:
    """Open a storage; raise `UserError` if it cannot be opened.

    SQLite runs in write-ahead mode, so that a dashboard can read while the driver writes.
    """
    if is_shared(url):
        return _open_server(url)
    try:
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    except sqlalchemy.exc.DatabaseError as error:
        raise UserError(f"study {url!r} cannot be opened: {reason_of(error)}") from None
    sqlalchemy.event.listen(storage.engine, "connect", _set_pragmas)
    storage.engine.dispose()  # closes connections that were opened before the listener
    return storage


def _open_server(url: str) -> RDBStorage:
    """Open a PostgreSQL database. The first driver makes the tables; drivers that start at the same time wait."""
    connect = {"connect_timeout": CONNECT_SECONDS, "keepalives_idle": 30, "application_name": "res2net-search"}
    try:
        engine = sqlalchemy.create_engine(server_url(url), connect_args=connect, poolclass=sqlalchemy.NullPool)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(0, 0)"))
            return RDBStorage(server_url(url), engine_kwargs={"connect_args": connect, "pool_pre_ping": True})
    except ImportError:
        raise UserError(
            f"`storage`: {url} needs the package psycopg; accepted: after pip install 'res2net-search[postgres]'"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(
            f"`storage`: {url} cannot be opened: {reason_of(error)}; accepted: a database that you may write, with the "
            "password in PGPASSWORD or ~/.pgpass"
        ) from None


def _set_pragmas(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")  # after a power cut the last writes may be missing, but no others


def reason_of(error: BaseException) -> str:
    """Return the database's own error message on one line."""
    return " ".join(str(error.__cause__ or error).split())


def fold_log(storage: RDBStorage) -> None:
    """Close a storage; merge SQLite's write-ahead log into the database, so that one file holds the study."""
    storage.remove_session()
    if storage.engine.dialect.name == "sqlite":
        with storage.engine.connect() as connection:
            connection.execute(sqlalchemy.text("PRAGMA wal_checkpoint(TRUNCATE)"))
    storage.engine.dispose()


@contextlib.contextmanager
def stable() -> Iterator[None]:
    """Inside the block, hide Optuna's warnings of experimental features: Optuna is pinned, and tests cover its use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def create_study(storage: RDBStorage, name: str, directions: Mapping[str, Direction]) -> optuna.Study:
    """Return the study of a name; create a missing one. directions: the direction of each objective, by name."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=list(directions.values()), load_if_exists=True
    )
    if study.metric_names is None:
        with stable():
            study.set_metric_names(list(directions))
    return study


@contextlib.contextmanager
def connection_watched(url: str | None) -> Iterator[None]:
    """Inside the block, turn a lost database connection into a one-line `UserError`, even if Ray wraps the error.

    url: the server's URL; None for SQLite, whose errors are raised unchanged.
    """
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
            f"`storage`: {url} cannot be reached any more: {reason_of(cause)}; nothing is lost; "
            "accepted: the same `out` once the server is back"
        ) from None


def read(folder: Path, url: str | None = None, name: str | None = None, may_lack: bool = False) -> Iterator[Record]:
    """Yield the records of a run's folder, or of the study `name` on the server `url`.

    No trial is changed, but SQLite may leave files of its own beside the study.
    may_lack: whether a missing study has no records. Otherwise, raise `UserError`.
    """
    path = folder / STUDY_FILE
    if url is None and not path.is_file():
        if may_lack:
            return
        raise UserError(f"run folder {str(folder)!r}: {STUDY_FILE} is missing; accepted: the folder of a search")
    with _reading(url or sqlite_url(folder)) as storage:
        names = [s.study_name for s in storage.get_all_studies() if url is None or s.study_name == name]
        if not names and may_lack:
            return
        if not names:
            raise UserError(f"{url or path}: holds no study{f' {name!r}' if url else ''}")
        for trial in storage.get_all_trials(storage.get_study_id_from_name(names[0]), deepcopy=False):
            yield record_of(trial)


def home_of(url: str, name: str, record: Record) -> Mapping[str, str]:
    """Return the host and the folder of the driver that ran a trial of a shared study."""
    with _reading(url) as storage:
        attrs = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    return attrs[f"{DRIVER}{record.attrs['driver']}"]


@contextlib.contextmanager
def _reading(url: str) -> Iterator[RDBStorage]:
    storage = open_storage(url)
    try:
        yield storage
    finally:
        storage.engine.dispose()
