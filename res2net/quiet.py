"""Silence a library's logger inside a block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(name: str | None = None, level: int = logging.ERROR) -> Iterator[None]:
    """Inside the block, a logger shows only messages of at least `level`. name: None for the root logger."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
