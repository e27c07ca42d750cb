"""Carry a test's function to another process, which cannot import the test's file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ray import cloudpickle

from search.worker import Job, Report, Work
from trainers.datasets.data import Data


class ByValue:
    """A work that `pickle` copies with its code and its closure, as Ray copies functions."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, job: Job, data: Data) -> Iterator[Report]:
        return self.work(job, data)

    def __reduce__(self) -> tuple[Callable, tuple[Any, ...]]:
        return cloudpickle.loads, (cloudpickle.dumps(self.work),)
