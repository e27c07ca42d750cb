"""Stress tests are slow; their fixtures are those of the search, and a database server."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from searches import copied_databases, data, loaded, make_settings, refused, tiny_space  # noqa: F401

from res2net.errors import UserError

from .postgres import Server, server

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder as slow."""
    for item in items:  # of all folders
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)


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
