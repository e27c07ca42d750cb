"""Run trials one after the other in the driver's own process, with all of its cores. Needs no Ray."""

from __future__ import annotations

from search.driver import Driver
from search.worker import Work, guarded
from trainers.datasets.data import Data


def execute(driver: Driver, data: Data, work: Work) -> None:
    """Run jobs until the driver has no more jobs."""
    while (job := driver.next_job()) is not None:
        for report in guarded(work, job, data):
            if not driver.on_report(job.number, report):
                break
