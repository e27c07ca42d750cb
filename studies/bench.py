"""Helpers of the benchmarks: the help's first line, positive counts, a fixed number of threads."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

import torch

from res2net.errors import UserError


def first_line(doc: str | None) -> str:
    """Return the first line of a module's docstring: the description in the command's help."""
    return (doc or "").partition("\n")[0]


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raise `UserError` for the first of these options that is below 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise UserError(f"`{name}`: {getattr(args, name)}; accepted: at least 1")


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with `count` threads of PyTorch inside the block. Restore the former number after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
