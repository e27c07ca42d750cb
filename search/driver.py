"""The decisions of a search, with any executor: choose the next network, judge each report, record the trial's end.

An executor calls `next_job` when a worker is free, `on_report` after each epoch, and `on_lost` when a worker died.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import replace

from search.choice import Choice
from search.evaluators import Grow
from search.included import Included
from search.interrupts import held
from search.ledger import KILLED, RETRIES, Ledger
from search.lineage import Lineage
from search.objectives import places
from search.proposals import Accepted, Proposals
from search.running import Running
from search.scheduler import continues
from search.settings import Settings
from search.study.study import Study
from search.study.trials import AGAIN, ESTIMATED, FAILED, ORPHAN, SCORED, Record, TakenOver
from search.timetable import Timetable
from search.worker import Job, Report
from space import Space


class Driver:
    """Turn the study's proposals into jobs for workers, and record their reports in the study.

    The study holds the whole state. The ledger is computed from the study. Other drivers may write the same study. A
    driver ends when only other drivers' trials remain. Any driver still alive takes over the trials of dead drivers.

    on_scored: called before a trial's score is recorded, with the job and the trained weights (None without any).
    checkpoints: the newest checkpoint of each trial that may still resume, by trial number.
    trunks: weights to grow from, by trial number. included: the networks that the search starts from.
    timetable: the networks to train and the epochs of each, if the search is planned.
    ends: the time (`time.monotonic`) at which the search ends.
    session: this session's index in `run.json`. Each trial records the index, to find the hardware and the commit.
    """

    def __init__(
        self,
        settings: Settings,
        space: Space,
        study: Study,
        on_scored: Callable[[Job, bytes | None], None] = lambda job, weights: None,
        on_change: Callable[[], None] = lambda: None,
        session: int = 0,
        checkpoints: MutableMapping[int, bytes] | None = None,
        trunks: MutableMapping[int, bytes] | None = None,
        timetable: Timetable | None = None,
        ends: float | None = None,
        included: Sequence[Included] = (),
    ) -> None:
        self.checkpoints = {} if checkpoints is None else checkpoints
        self.settings, self.space, self.study = settings, space, study
        self.on_scored, self.on_change, self.session = on_scored, on_change, session
        self.evaluator, self.limits = settings.evaluator, settings.scope.limits
        self.ledger = Ledger(settings.rules)
        self.proposals = Proposals(settings, space, study, self.ledger, self._refresh)
        cost, size = settings.scope.cost, space.image_size
        self.lineage = Lineage({} if trunks is None else trunks, included, study, lambda arch: cost.of(arch, size))
        self.running: dict[int, Running] = {}
        limit = settings.budget.time
        self.ends = ends if ends is not None or limit is None else time.monotonic() + limit
        self.choice = Choice(settings, study, self.ledger, self.proposals, self.lineage, timetable, self.seconds_left)
        self.timetable = timetable
        self._recover()
        if timetable is not None:
            timetable.resume([*self.ledger.history, *self.study.unended()])

    @property
    def why_stopped(self) -> str:
        """The reason why no further trial starts, in words; empty while trials may start."""
        return self.choice.why_stopped

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the end of the search's time; None without a limit."""
        return None if self.ends is None else self.ends - time.monotonic()

    # ---- The next job ----------------------------------------------------------------------------------------------

    def next_job(self) -> Job | None:
        """Return the next job, or None if nothing can start now."""
        with self.study.exclusive():
            self._refresh()
            self._take_over()
            while (accepted := self.choice.next(self.running, self.seconds_left)) is not None:
                known = self.lineage.reused(accepted.proposal.number)
                if known is None:
                    return self._start(accepted)
                self._reuse(accepted, known)
            return None

    def _reuse(self, accepted: Accepted, known: Included) -> None:
        """Give a network the score of an earlier run, without a training. Its trial does not count against `trials`."""
        number, training = accepted.proposal.number, known.training
        self.on_scored(self.evaluator.job(number, accepted.arch), known.weights)
        earned = {name: training[name] for name in ("epochs", "inherited", "seconds")}
        reused = {name: training[name] for name in ("hardware", "versions", "commit")}
        attrs = {**earned, "reused": reused, "note": f"scored as {known.name}", "session": self.session}
        self.study.complete(number, (known.score, *accepted.costs), SCORED, **attrs)
        self._refresh()
        self.on_change()

    def _start(self, accepted: Accepted) -> Job:
        """Return the job of an accepted proposal, with the last checkpoint of the network's earlier trials."""
        number, again = accepted.proposal.number, accepted.proposal.again
        is_new = accepted.proposal.confirms is None and again is None
        job = self.evaluator.of(accepted.proposal, accepted.arch)
        if self.timetable is not None and accepted.proposal.budget is not None:
            config = self.timetable.config(job.config, accepted.proposal.budget)
            job = replace(job, config=config, rungs=self.settings.budget.rungs(config.epochs))
        if isinstance(self.evaluator, Grow):
            job = self._grown(self.evaluator, job, accepted)
        earlier = self._earlier(number)
        estimate, budget = is_new and self.evaluator.estimates, accepted.proposal.budget or job.config.epochs
        self.running[number] = Running(job, accepted, estimate, budget, earlier=earlier)
        self.on_change()
        checkpoint = next((self.checkpoints[n] for n in earlier if n in self.checkpoints), None)
        left = self.seconds_left
        if left is not None and again is None and left > self.choice.reserve:  # else it is a retry, which runs first
            left -= self.choice.reserve
        fits = self.timetable is not None and again is None
        return replace(job, checkpoint=checkpoint, seconds=left, fits=fits)

    def _grown(self, evaluator: Grow, job: Job, accepted: Accepted) -> Job:
        """Return the job of a network that grows from an origin (`Lineage`), if the network contains one.

        A retry grows from the same trunk as the trial before it. If this trunk is gone, the worker fails the trial.
        """
        if self.timetable is not None and not self.timetable.plan.grown:
            return job
        attrs = self.study.record(job.number).attrs
        if "inherited" not in attrs:
            trunk = evaluator.grown(job, accepted.proposal.trunk, None).trunk
            found = self.lineage.of(job.arch) if accepted.proposal.again is None else self.lineage.again(attrs)
            self.study.annotate(job.number, {**found, "trunk": trunk})
            attrs = self.study.record(job.number).attrs
        return evaluator.grown(job, attrs["trunk"], self.lineage.weights(attrs))

    # ---- Reports of workers ----------------------------------------------------------------------------------------

    def on_report(self, number: int, report: Report) -> bool:
        """Record a trial's report; return whether the trial continues."""
        with self._own(number):
            return self._on_report(number, report)
        return False

    def _on_report(self, number: int, report: Report) -> bool:
        trial = self.running[number]
        trial.note(report)
        if report.paused:  # without scores
            if report.checkpoint is not None:
                self.checkpoints[number] = report.checkpoint
            self.release(number, f"the time was up after epoch {report.epoch}")
            self.choice.why_stopped = "the time is up"
            return False
        reason = report.reason
        if reason is None and not (math.isfinite(report.quality) and math.isfinite(report.val_loss)):
            reason = (
                f"after epoch {report.epoch} the accuracy is {report.quality}, the validation loss {report.val_loss}"
            )
        if reason is not None:
            self._fail(number, reason, report.lost)
            return False
        if report.note is not None and len(trial.reports) == 1:
            self.study.annotate(number, {"note": report.note})
        if report.trunk is not None:  # before the checkpoint: a resume from it does not report the trunk again
            self.lineage.keep(number, report.trunk, {self.study.record(n).attrs.get("parent") for n in self.running})
        if report.checkpoint is not None:  # before the rung's accuracy: after a kill, no rung may lack its checkpoint
            self.checkpoints[number] = report.checkpoint
            self._drop_checkpoints(*trial.earlier)
        self.study.report(number, report.epoch, report.quality)
        if report.epoch >= trial.job.config.epochs or report.budget is not None:
            self._score(number, report)
            return False
        if not self._continues(trial, report):
            self._stop(number, report)
            return False
        if self.seconds_left is not None and self.seconds_left <= 0:
            self.release(number, f"the time was up after epoch {report.epoch}")
            self.choice.why_stopped = "the time is up"
            return False
        self.on_change()
        return True

    def _continues(self, trial: Running, report: Report) -> bool:
        """Return whether the scheduler lets a trial continue. A retry passes the rungs that earlier trials passed."""
        if trial.accepted.proposal.again is not None:
            return True
        books, key = self.ledger, trial.job.arch.key()
        before = books.furthest.get(key, 0)
        books.note_rung(key, report.epoch, report.quality, trial.accepted.costs)
        if report.epoch not in books.rungs or report.epoch < before:
            return True
        rung = books.rungs[report.epoch]
        quality, *costs = zip(*rung.values(), strict=True)
        budget = self.settings.budget
        scheduler = budget.scheduler
        if self.timetable is not None:  # the plan's own networks are never stopped
            scheduler = "none" if trial.accepted.proposal.plan is not None else "pareto-asha"
        axes = places(books.rules.costs, costs)
        return continues(scheduler, budget.eta, list(rung).index(key), quality, *axes)

    def _score(self, number: int, report: Report) -> None:
        trial = self.running.pop(number)
        if report.budget is not None:
            trial.budget = report.budget
        if self.timetable is not None and not trial.earlier:
            self.timetable.note(trial.cost, trial.budget, time.monotonic() - trial.begun)
        attrs = self._earned(0 if trial.estimate else trial.budget, report)
        self.on_scored(trial.job, report.weights)  # before the score: after a kill, no score may lack its weights
        again = trial.accepted.proposal.again is not None
        outcome = ESTIMATED if trial.estimate else AGAIN if again else SCORED
        self.study.complete(number, (report.quality, *trial.accepted.costs), outcome, **attrs)
        self._drop_checkpoints(number, *trial.earlier)
        self._refresh()
        self.on_change()

    def _stop(self, number: int, report: Report) -> None:
        trial, of = self.running.pop(number), len(self.ledger.rungs[report.epoch])
        # The missing share of the budget is recorded as a violated limit. So TPE learns from the trial, and fronts
        # leave the trial out. Without a violated limit, a pruned trial would crash Optuna's TPE.
        lacking = 1 - report.epoch / trial.budget
        violations = [*self.limits.violations(trial.job.arch, self.space.image_size), lacking]
        reason = f"after epoch {report.epoch} not among the best 1/{self.settings.budget.eta} of {of}"
        self.study.stop(number, violations, reason, **self._earned(report.epoch, report))
        self._drop_checkpoints(number, *trial.earlier)
        self._refresh()
        self.on_change()

    def _earned(self, epochs: float, report: Report) -> dict[str, object]:
        """Return the attributes of a trial that spent budget: epochs, seconds, speed and machine."""
        training = {
            "images_per_second": round(report.images_per_second, 1),
            "val_loss": report.val_loss,
            "host": report.host,
            **({"node": report.node} if report.node else {}),
            "session": self.session,
        }
        return {"epochs": epochs, "seconds": round(report.seconds, 3), "training": training}

    def _fail(self, number: int, reason: str, lost: bool) -> None:
        """Record a failure. Run only a lost trial's network again: with the same seed, other failures would recur."""
        trial = self.running.pop(number)
        with self.study.exclusive():
            self._refresh()  # another driver may have taken the trial over
            books, reached = self.ledger, self.study.record(number).reached
            again = lost and number not in books.retried and books.lost[reached] < RETRIES
            if again:
                self.study.enqueue(trial.accepted.proposal.params, retry_of=number)
            self.study.fail(number, FAILED, reason)
            self._refresh()
        if not again:
            self._drop_checkpoints(number, *trial.earlier)
        self.on_change()

    def on_lost(self, number: int, reason: str) -> None:
        """Record that a trial's worker died; run the trial's network again, up to a limit (`RETRIES`)."""
        if number in self.running:
            with self._own(number):
                self._fail(number, reason, lost=True)

    def release(self, number: int, reason: str) -> None:
        """End a running trial that did not fail, and enqueue the trial's network again."""
        del self.running[number]
        with self.study.exclusive():
            self._ask_again(self.study.record(number), reason)

    def release_all(self, reason: str) -> None:
        """Release all running trials. After an interrupt, the study may hold one that `running` lacks."""
        self.running.clear()
        with self.study.exclusive():
            for orphan in [*self.study.own_running(), *self.study.orphans()]:
                self._ask_again(orphan, reason)
            self._sweep_checkpoints()

    @contextlib.contextmanager
    def _own(self, number: int) -> Iterator[None]:
        """Drop the trial if the block raises `TakenOver`: the driver that took it over runs the network again."""
        try:
            with held():
                yield
        except TakenOver:
            self.running.pop(number, None)
            self.study.forget(number)
            self.on_change()

    # ---- Study and ledger ------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Compute the ledger from the study, and take over trials that dead drivers left running."""
        with self.study.exclusive():
            self.proposals.count_misses(self._refresh())
            self._take_over()
            self._sweep_checkpoints()

    def _refresh(self) -> list[Record]:
        """Add the study's new results to the ledger; return the trials that ended since the last call."""
        ended = self.study.ended()
        self.ledger.add(ended, self.study.unended())
        return ended

    def _take_over(self) -> None:
        """End orphaned trials, and enqueue their networks again.

        Without Ray, a network can kill the driver's process. Such a network must not kill every resume too. So a
        network that is lost more than RETRIES times at the same epoch becomes a suspect. Suspects run last, each alone.
        A suspect that kills its driver is given up. A network that only ran beside the culprit passes this test.
        """
        for orphan in self.study.orphans():
            if orphan.attrs.get("alone") and orphan.key:  # without a key, the driver died before the network ran
                self.study.adopt(orphan.number)
                self.study.fail(orphan.number, FAILED, f"{KILLED}, and it ran alone")
                self._refresh()
            else:
                suspect = bool(orphan.key) and self.ledger.lost[orphan.reached] >= RETRIES
                self._ask_again(orphan, KILLED, at_once=not suspect)

    def _ask_again(self, orphan: Record, reason: str, at_once: bool = True) -> None:
        suspect = orphan.attrs.get("alone") and orphan.key  # the network stays a suspect and runs last
        if at_once and not suspect and orphan.number not in self.ledger.retried:
            # Enqueued before the orphan is ended, so that a kill in between loses no network.
            self.study.enqueue(orphan.params, retry_of=orphan.number, alone=orphan.attrs.get("alone"))
        self.study.adopt(orphan.number)
        self.study.fail(orphan.number, ORPHAN, reason)
        self._refresh()

    def _earlier(self, number: int) -> list[int]:
        """Return the numbers of the trials that this trial retries, newest first."""
        out = []
        while (before := self.study.record(number).attrs.get("retry_of")) is not None:
            out.append(number := before)
        return out

    def _sweep_checkpoints(self) -> None:
        """Keep only the checkpoints of trials that have not ended, and of suspects (`Ledger.suspects`)."""
        needed = [r.number for r in (*self.study.unended(), *self.ledger.suspects.values())]
        self._drop_checkpoints(*set(self.checkpoints).difference(needed, *map(self._earlier, needed)))

    def _drop_checkpoints(self, *numbers: int) -> None:
        for number in numbers:
            self.checkpoints.pop(number, None)
