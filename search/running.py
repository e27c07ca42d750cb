"""The state of a running trial."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from search.proposals import Accepted
from search.worker import Job, Report


@dataclass(slots=True)
class Running:
    """A running trial, for the driver and the display.

    estimate: whether the trial's score is an estimate.
    budget: the trial's full budget in epochs.
    earlier: earlier trials of the same network, newest first.
    begun, at: the times (`time.monotonic`) of the start and of the last report.
    """

    job: Job
    accepted: Accepted
    estimate: bool
    budget: float
    reports: list[Report] = field(default_factory=list)
    earlier: list[int] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    at: float = field(default_factory=time.monotonic)

    def note(self, report: Report) -> None:
        """Add a report, without its weights and its checkpoint."""
        self.at = time.monotonic()
        self.reports.append(replace(report, weights=None, checkpoint=None))

    @property
    def trains_trunk(self) -> bool:
        """Whether the trial trains a trunk for larger networks and has not reported it yet."""
        return len(self.reports) < self.job.trunk

    @property
    def cost(self) -> float:
        """The network's cost."""
        return self.accepted.cost
