"""Where trials run: in this machine's processes (`local`), or on Ray (`tune`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from search.driver import Driver
from search.execute import local, pool
from search.resources import Resources
from search.worker import Work
from trainers.datasets.data import Data


@dataclass(frozen=True, slots=True)
class Executor:
    """The functions of an executor.

    check: raises `UserError` if the machine or cluster lacks the resources.
    execute: runs all jobs of a driver.
    places: returns how many trials run at a time.
    """

    check: Callable[[], object]
    execute: Callable[[Driver, Data, Work], None]
    places: Callable[[], int]


def executor_of(resources: Resources) -> Executor:
    """Return the executor that the settings name."""
    if resources.executor == "local":
        return Executor(
            lambda: pool.count(resources),
            lambda driver, data, work: _run_here(driver, data, work, resources),
            lambda: pool.count(resources),
        )
    from search.execute import tune  # Ray takes seconds to import, and may be missing where trials run locally

    return Executor(
        lambda: tune.check(resources),
        lambda driver, data, work: tune.execute(driver, data, work, resources),
        lambda: tune.room(resources),
    )


def _run_here(driver: Driver, data: Data, work: Work, resources: Resources) -> None:
    """Run all jobs on this machine: a single worker is this process, and any work runs here, also a closure."""
    if pool.count(resources) == 1:
        local.execute(driver, data, work)
    else:
        pool.execute(driver, data, work, resources)
