"""Where trials run: in the driver's own process (`local`), or on Ray (`tune`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from search.driver import Driver
from search.execute import local
from search.groups import Resources
from search.worker import Work
from trainers.datasets.data import Data


@dataclass(frozen=True, slots=True)
class Executor:
    """The two functions of an executor.

    check: raises `UserError` if the machine or cluster lacks the resources.
    execute: runs all jobs of a driver.
    places: returns how many trials run at a time.
    """

    check: Callable[[], None]
    execute: Callable[[Driver, Data, Work], None]
    places: Callable[[], int]


def executor_of(resources: Resources) -> Executor:
    """Return the executor that the settings name."""
    if resources.executor == "local":
        return Executor(lambda: None, local.execute, lambda: 1)
    from search.execute import tune  # Ray takes seconds to import, and may be missing where trials run locally

    return Executor(
        lambda: tune.check(resources),
        lambda driver, data, work: tune.execute(driver, data, work, resources),
        lambda: tune.room(resources),
    )
