"""Choose the trial that starts next: a new network, the confirmation of an estimate, or a suspect."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from search.children import child, gaps
from search.ledger import REUSED, Ledger
from search.lineage import Lineage, first_of
from search.proposals import Accepted, Proposals
from search.running import Running
from search.settings import Settings
from search.study.study import Study
from search.study.trials import AGAIN, INFEASIBLE, ORPHAN, SCORED, Record
from search.timetable import Awaited, Member, Timetable
from space.dimensions import Params

CONFIRMING = 0.3  # share of the time that is reserved for confirming estimates by training


class Choice:
    """The choice of the next trial, from the ledger, the plan and the sampler's proposals.

    lineage: the networks from which others may grow. included: the networks that the search starts from.
    timetable: the plan of a planned search. left: seconds until the end of the search's time; None without a limit.
    reserve: seconds of a planned search that are reserved for training its front with more seeds.
    why_stopped: the reason why no further trial starts, in words; empty while trials may start.
    """

    def __init__(
        self,
        settings: Settings,
        study: Study,
        ledger: Ledger,
        proposals: Proposals,
        lineage: Lineage,
        timetable: Timetable | None,
        left: float | None = None,
    ) -> None:
        self.settings, self.study, self.ledger, self.proposals = settings, study, ledger, proposals
        self.lineage = lineage
        self.timetable, self.estimates = timetable, settings.evaluator.estimates
        self.included, self.why_stopped = list(lineage.included), ""
        self.reserve = (1 - 1 / settings.budget.repeat) * (left or 0.0) if timetable is not None else 0.0

    def next(self, running: Mapping[int, Running], left: float | None) -> Accepted | None:
        """Return the next trial, or None if none can start now.

        running: this driver's running trials. left: seconds until the end of the search's time; None without a limit.
        """
        if self._runs_alone(running):
            return None
        if self.included:
            self._enqueue_included(started=bool(self.ledger.history or running or self.timetable is None))
        if self.timetable is not None:
            new = self._planned(self.timetable, running, (left or 0.0) - self.reserve)
        else:
            new = self._new(left)
        return new or self._confirmation(left) or self._again(left) or self._suspect(running, left)

    def _enqueue_included(self, started: bool) -> None:
        """Enqueue the networks that the search starts from. Enqueue each once, over all sessions.

        started: whether the first network of a plan, which gives the first front, has begun. Before that, enqueue only
        networks whose scores are reused. For a plan, do not enqueue other trained members: its levels grow from them.
        """
        before = {r.attrs.get("included") for r in self.study.records() if r.outcome != INFEASIBLE}
        now = [network for network in self.included if started or network.reused]
        self.included = [network for network in self.included if network not in now]
        for network in now:
            params = self.proposals.space.params_of(network.arch)
            level = params is not None and self.timetable is not None and network.weights is not None
            if network.name not in before and (network.reused or not level):
                given = network.arch.to_dict() if params is None else None
                self.study.enqueue(params or {}, included=network.name, given=given)

    def _runs_alone(self, running: Mapping[int, Running]) -> bool:
        """Return whether no trial may start, because a suspect runs or waits until this driver's trials end.

        A suspect waits only if a driver was killed between enqueuing the suspect and starting it.
        """
        waits = any(r.state == "WAITING" and "alone" in r.attrs for r in self.study.unended())
        return bool(running) and (waits or any(t.accepted.proposal.alone for t in running.values()))

    def _new(self, left: float | None) -> Accepted | None:
        """Return the next new network. Return None if there is none, or if no budget or time is left for it."""
        under_way = [*self.study.running(), *self.ledger.suspects.values()]
        searching = sum("confirms" not in r.attrs and "again" not in r.attrs for r in under_way)
        nothing = self.why_stopped and not self.study.waiting()  # another driver may have enqueued a retry
        trials = self.settings.budget.trials or 0
        if self.estimates and left is not None and left < CONFIRMING * (self.settings.budget.time or 0.0):
            self.why_stopped = "the time is up"
            return None
        if nothing or self.ledger.spent + searching >= trials or self._no_time(left):
            return None
        return self._accepted(self.proposals.new())

    def _planned(self, timetable: Timetable, running: Mapping[int, Running], left: float) -> Accepted | None:
        """Return the plan's next network. After its last one, return a child of the front or a sampler's proposal.

        Children and proposals alternate. If a proposal is too long for the time left, return a shorter child instead.
        """
        ends, too_long = time.monotonic() + left, False
        while (left := ends - time.monotonic()) > 0:
            if not self.study.waiting():  # else a retry waits
                trunks = [trial.cost for trial in running.values() if trial.trains_trunk]
                try:
                    level = timetable.next(left, busy(timetable, running), trunks)
                except Awaited:
                    return None
                if level is not None:
                    self.study.enqueue(level.params, plan=level.place, budget=level.epochs, trunk=level.trunk or None)
                elif not timetable.explores(left) or self.settings.budget.repeat > 1:
                    break
                else:
                    turn = len(self.ledger.history) + len(running)
                    params = self._child(timetable, left, turn // 2) if too_long or turn % 2 == 0 else None
                    if params is not None:
                        self.study.enqueue(params)
                    elif too_long:
                        break
            accepted = self.proposals.ask() if self.study.waiting() else self._accepted(self.proposals.new())
            if accepted is None and self.why_stopped:
                return None
            if accepted is not None:
                timed = self._timed(timetable, accepted, left)
                if timed is not None:
                    return timed
                too_long = True
        self.why_stopped = "the time is up"
        return None

    def _child(self, timetable: Timetable, left: float, turn: int) -> Params | None:
        """Return a child of the front that can be trained in the time left (`search.children`), or None."""
        scope, space, known = self.settings.scope, self.proposals.space, self.proposals.known()

        def allowed(member: Member) -> bool:
            fits = timetable.epochs(member.cost, left) is not None and member.arch.key() not in known
            return fits and scope.limits.allow(member.arch, space.image_size)

        grows, front = timetable.plan.grown, self.ledger.front
        archs = [origin.arch for origin in self.lineage.origins] if grows else [record.arch for record in front]
        members = [(space.params_of(arch), arch) for arch in archs]
        parents = [Member(p, arch, scope.cost.of(arch, space.image_size)) for p, arch in members if p is not None]
        found = gaps(timetable.terms, [(self.ledger.cost(r), (r.quality or 0.0) / 100) for r in front])
        return child(space, scope.cost, found, parents, grows, allowed, turn, scope.seed)

    def _timed(self, timetable: Timetable, accepted: Accepted, left: float) -> Accepted | None:
        """Return a proposal with its epochs. If the time left is too short, end its trial and return None."""
        proposal = accepted.proposal
        if proposal.budget is not None or self.lineage.reused(proposal.number) is not None:
            return accepted
        epochs = timetable.epochs(accepted.cost, left)
        if epochs is None:
            self.study.infeasible(proposal.number, "the time left is too short for it")
            self.proposals.refresh()
            return None
        self.study.annotate(proposal.number, {"budget": epochs})
        return replace(accepted, proposal=replace(proposal, budget=epochs))

    def _accepted(self, found: Accepted | str) -> Accepted | None:
        """Return a found network. For a text, which is the reason why there is none, record it and return None."""
        if isinstance(found, str):
            self.why_stopped = found
            return None
        return found

    def _confirmation(self, left: float | None) -> Accepted | None:
        """Return the confirmation of the next network of the estimates' front; None while estimates still run."""
        if not self.estimates or any("confirms" not in r.attrs for r in self.study.running()):
            return None
        while True:
            books, running = self.ledger, {r.key for r in self.study.running()}
            tried = books.scored.keys() | books.given_up.keys() | books.suspects.keys() | running
            picks = books.picks(self.settings.scoring.confirm)
            pick = next((r for r in picks if r.key not in tried), None)
            if pick is None or self._no_time(left):
                return None
            if not self.study.waiting():
                self.study.enqueue(pick.params, confirms=pick.number)
            if (accepted := self.proposals.ask()) is not None:
                return accepted

    def _again(self, left: float | None) -> Accepted | None:
        """Return a network of the front to train with another seed; None while the front may still change."""
        if self.settings.budget.repeat == 1 or any("again" not in r.attrs for r in self.study.running()):
            return None
        if self.study.waiting():  # a retry
            return None if self._no_time(left) else self.proposals.ask()
        for record, sample in self._seeds():
            if left is not None and left < record.attrs["seconds"]:
                self.why_stopped = "the time is up"
                continue
            same = {name: record.attrs.get(name) for name in ("given", "trunk", "confirms")}
            same["budget"] = record.attrs["epochs"]
            self.study.enqueue(record.params, again=record.number, sample=sample, **same)
            return self.proposals.ask()
        return None

    def _seeds(self) -> Iterator[tuple[Record, int]]:
        """Yield the next trainings with another seed: the network's first trial and the number of the seed.

        The ancestors of a network come first. Skip a network whose parent is still being trained with this seed.
        """
        scored, records = {r.number: r for r in self.ledger.history if r.outcome == SCORED}, self.study.records()
        tried = [r for r in records if "again" in r.attrs and r.outcome not in (ORPHAN, "waiting")]
        done = {(r.attrs["again"], r.attrs["sample"]): r.outcome for r in tried}
        for sample in range(1, self.settings.budget.repeat):
            for record in self.ledger.front:
                if REUSED in record.attrs and record.attrs["inherited"]:
                    continue  # its lineage is in another run
                line: list[Record | None] = [record]
                while line[-1] is not None and (parent := line[-1].attrs.get("parent")) is not None:
                    # None for an ancestor that passed its trunk on, and then failed.
                    line.append(scored.get(first_of(parent, records)))
                first = next((r for r in reversed(line) if r is None or done.get((r.number, sample)) != AGAIN), None)
                if first is not None and (first.number, sample) not in done:
                    yield first, sample

    def _suspect(self, running: Mapping[int, Running], left: float | None) -> Accepted | None:
        """Return a suspect (`Ledger.suspects`). A suspect runs last, while this driver runs nothing else."""
        while True:
            trials = self.settings.budget.trials
            done = trials is not None and self.ledger.spent >= trials
            suspects = [r for r in self.ledger.suspects.values() if not done or "confirms" in r.attrs]
            if running or not suspects or self._no_time(left):
                return None
            if not self.study.waiting():
                self.study.enqueue(suspects[0].params, retry_of=suspects[0].number, alone=True)
                self.proposals.refresh()  # drops the network from the suspects: `ask` would end its trial
            if (accepted := self.proposals.ask()) is not None:
                return accepted

    def _no_time(self, left: float | None) -> bool:
        """Return whether the time left is too short for a trial of median length; if so, set `why_stopped`."""
        if left is None:
            return False
        known = [r.attrs["seconds"] for r in (self.ledger.scored or self.ledger.estimated).values()]
        usual = statistics.median(known) if known else 0.0
        if left > 0 and left >= usual:
            return False
        self.why_stopped = "the time is up"
        return True


def busy(timetable: Timetable, running: Mapping[int, Running]) -> list[float]:
    """Return the expected seconds until each running trial of a planned search ends."""
    pace, now = timetable.now, time.monotonic()
    out = []
    for trial in running.values():
        epochs = trial.budget - (trial.reports[-1].epoch if trial.reports else 0)
        out.append(max(0.0, epochs * pace.of(trial.cost) - (now - trial.at)))
    return out
