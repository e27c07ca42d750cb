"""The fixtures that stress tests share: those of the search, and a database server."""

import contextlib
from collections.abc import Iterator

import pytest
from searches import data, loaded, make_settings, tiny_space  # noqa: F401

from res2net.errors import UserError

from .postgres import Server, server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """One PostgreSQL server for a whole session."""
    pytest.importorskip("psycopg")
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(server())
        except UserError as error:
            pytest.skip(str(error))
        yield running
