"""Drivers that share a study in PostgreSQL take turns, and see which drivers are alive, by advisory locks.

A lock ends with its connection, however a driver ends. So drivers need not compare clocks to see who is alive.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import Any

import sqlalchemy

from res2net.errors import UserError
from search.study.storage import Direction, create_study, open_storage

SEARCH = "search"  # the attribute of a shared study that describes its search
TURN_SECONDS = 120  # the longest wait for another driver to end its turn


def new_driver() -> int:
    """Return a random number for a driver: drivers on different machines cannot agree on numbers in advance."""
    return secrets.randbelow(2**31 - 1) + 1


class Turns:
    """Turns among the drivers of one study; a `with` block is one turn.

    TCP keepalives tell the server within half a minute that a driver's machine is gone. The connection must not go
    through a pooler of statements or transactions, which would lose the locks.
    """

    def __init__(self, engine: sqlalchemy.Engine, study: int, driver: int) -> None:
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._connection.detach()  # outside the pool, so that `close` ends the connection
        self._study, self._depth = study, 0
        for name, value in (("idle", 10), ("interval", 5), ("count", 4)):
            self._run(f"SET tcp_keepalives_{name} = {value}")
        self._run(f"SET lock_timeout = '{TURN_SECONDS}s'")
        self._run("SELECT pg_advisory_lock(:study, :key)", study=study, key=driver)

    @property
    def held(self) -> bool:
        """Whether it is this driver's turn."""
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
        """Return the numbers of the drivers that are alive."""
        rows = self._run(
            "SELECT objid FROM pg_locks JOIN pg_database ON pg_database.oid = database WHERE locktype = 'advisory'"
            " AND datname = current_database() AND classid = :study AND objsubid = 2 AND granted",
            study=self._study,
        )
        return {int(row[0]) for row in rows}

    def close(self) -> None:
        """Close the connection, which releases this driver's locks."""
        self._connection.close()

    def _run(self, statement: str, **values: int) -> sqlalchemy.CursorResult:
        return self._connection.execute(sqlalchemy.text(statement), values)


def join(
    url: str, name: str, directions: Mapping[str, Direction], search: Mapping[str, Any], new: bool
) -> dict[str, Any]:
    """Return the description of the search in the shared study of this name.

    search: the description of this driver's search, for a study that has none yet. new: whether the study may be
    created. Raise `UserError` if the server cannot be reached, or if it lacks a study that may not be created.
    """
    storage = open_storage(url)
    try:
        if not new and name not in [s.study_name for s in storage.get_all_studies()]:
            raise UserError(f"`storage`: there is no study {name!r} in {url}; accepted: where the search was begun")
        study = create_study(storage, name, directions)
        turns = Turns(storage.engine, storage.get_study_id_from_name(name), new_driver())
        with contextlib.closing(turns), turns:  # if two drivers create the study at once, the first describes it
            if SEARCH not in study.user_attrs:
                study.set_user_attr(SEARCH, dict(search))
            return study.user_attrs[SEARCH]
    finally:
        storage.engine.dispose()
