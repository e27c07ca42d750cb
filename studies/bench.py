"""What the benchmarks share: counts that must be positive, and the threads that they are measured with."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

import torch

from res2net.errors import UserError


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """`UserError` for the first of these options that is below 1."""
    for name in names:
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(args, name)}; accepted: at least 1")


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for PyTorch's arithmetic, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
