"""The search's decisions, whoever executes the trials: what to try next, what a report means, what is kept.

An executor calls `next_job` when a worker is free, `on_report` after each epoch, and `on_lost` when a worker died.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field, replace

from res2net.arch import Arch
from res2net.cost import Cost, cost
from res2net.errors import UserError
from search.front import front
from search.scheduler import goes_on, rungs
from search.settings import Settings, limits_of, member
from search.study.study import (
    ESTIMATED,
    FAILED,
    INFEASIBLE,
    ORPHAN,
    REPEATED,
    SCORED,
    STOPPED,
    Proposal,
    Record,
    Study,
    TakenOver,
)
from search.worker import Job, Report
from space import Space

MAX_MISSES = 12  # proposals in a row that need no training, before one that does is looked for
ENUMERABLE = 50_000  # a space of at most so many combinations is gone through, a larger one sampled
RETRIES = 2  # how often a network is tried again whose trial was lost after the same epoch
KILLED = "the search was stopped while it ran"  # of a trial whose driver ended without a word


@dataclass(slots=True)
class Running:
    """A trial under way, as the progress display shows it. `earlier`: those that its network was asked as before."""

    job: Job
    cost: Cost
    params: dict[str, int]
    reports: list[Report] = field(default_factory=list)
    earlier: list[int] = field(default_factory=list)


class Driver:
    """Asks the study, screens what it proposes, hands out jobs, and records what comes back.

    Its books are of the study alone, which other drivers may write too: each takes up what ended since it last looked.
    Whoever finds nothing to start but what others run ends; what those leave behind is taken up by any that is there.
    `on_scored` is called with the job and the weights of each trial that got its full budget, before it is recorded.
    `checkpoints` holds the newest of each trial that has not ended for good, by its number.
    `session` is the run's session that this is, whose hardware and commit its trials are told with.
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
    ) -> None:
        self.checkpoints = {} if checkpoints is None else checkpoints
        self.settings, self.space, self.study = settings, space, study
        self.on_scored, self.on_change = on_scored, on_change
        self.session = session
        self.limits = limits_of(settings)
        self.running: dict[int, Running] = {}
        self.scored: dict[str, Record] = {}
        self.estimated: dict[str, Record] = {}  # by a supernet's weights
        self.lost: Counter[tuple[str, int]] = Counter()  # trials of a network lost after an epoch, and tried again
        self.given_up: dict[str, int] = {}  # networks that are not tried again, with the trial that failed
        self.stopped: dict[str, int] = {}  # networks that the scheduler stopped, with the trial
        # What reached each rung: a network's accuracy and MACs. Shared weights are scored in one go, without rungs.
        epochs = () if self.estimates else rungs(settings.epochs, settings.min_epochs, settings.eta)
        self.rungs: dict[int, dict[str, tuple[float, int]]] = {epoch: {} for epoch in epochs}
        self.furthest: dict[str, int] = {}  # epochs that a network's accuracy is known of
        self.counts: dict[str, int] = {}
        self.fronts: dict[str, list[Record]] = {SCORED: [], ESTIMATED: []}  # of each kind of score, cheapest first
        self.history: list[Record] = []  # what counts against `--trials`, as it came in
        self.misses = 0  # proposals in a row, up to the last, that needed no training
        self.why_stopped = ""
        self.started = time.monotonic()
        self._recover()

    @property
    def spent(self) -> int:
        """Trials that count against `--trials`: scored (or estimated, before what confirms them), stopped or failed."""
        found = ESTIMATED if self.estimates else SCORED
        return sum(self.counts.get(outcome, 0) for outcome in (found, STOPPED, FAILED))

    @property
    def estimates(self) -> bool:
        """Whether trials are scored by shared weights."""
        return self.settings.evaluator == "supernet"

    @property
    def front(self) -> list[Record]:
        """The front so far, cheapest first: of networks that were trained; as long as there are none, of estimates."""
        return self.fronts[SCORED] or self.fronts[ESTIMATED]

    @property
    def seconds_left(self) -> float | None:
        """What is left of `--time`."""
        return None if self.settings.time is None else self.settings.time - (time.monotonic() - self.started)

    def next_job(self) -> Job | None:
        """The next network to score, or None: nothing more to start now."""
        with self.study.exclusive():
            self._refresh()
            self._take_over()
            return self._next_new() or self._next_confirmation()

    def _next_new(self) -> Job | None:
        """The next network that is not known."""
        searching = sum("confirms" not in r.attrs for r in self.study.running())
        nothing = self.why_stopped and not self.study.waiting()  # another driver may have given one up
        if nothing or self.spent + searching >= self.settings.trials or self._no_time():
            return None
        while True:
            if self.misses and self.misses % MAX_MISSES == 0 and not self._enqueue_unseen():
                self.why_stopped = self._nothing_new()
                return None
            job = self._propose()
            self.misses = 0 if job is not None else self.misses + 1
            if job is not None:
                return job

    def _next_confirmation(self) -> Job | None:
        """The next network of the estimates' front to train from scratch, once all estimates are in."""
        if not self.estimates or any("confirms" not in r.attrs for r in self.study.running()):
            return None
        while True:
            tried = self.scored.keys() | self.given_up.keys() | {r.key for r in self.study.running()}
            picks = picked(self.fronts[ESTIMATED], self.settings.confirm)
            pick = next((r for r in picks if r.key not in tried), None)
            if pick is None or self._no_time():
                return None
            if not self.study.waiting():
                self.study.enqueue(pick.params, confirms=pick.number)
            if (job := self._propose()) is not None:
                return job

    def on_report(self, number: int, report: Report) -> bool:
        """Take in a trial's report; whether the trial shall go on."""
        with self._held(number):
            return self._on_report(number, report)
        return False

    def _on_report(self, number: int, report: Report) -> bool:
        trial = self.running[number]
        trial.reports.append(replace(report, weights=None, checkpoint=None))
        reason = report.reason
        if reason is None and not (math.isfinite(report.val_top1) and math.isfinite(report.val_loss)):
            reason = (
                f"after epoch {report.epoch} the accuracy is {report.val_top1}, the validation loss {report.val_loss}"
            )
        if reason is not None:
            self._fail(number, reason, report.lost)
            return False
        if report.note is not None and len(trial.reports) == 1:
            self.study.annotate(number, {"note": report.note})
        if report.checkpoint is not None:  # first: what the study holds of a rung can be gone on from
            self.checkpoints[number] = report.checkpoint
            self._drop_checkpoints(*trial.earlier)
        self.study.report(number, report.epoch, report.val_top1)
        if report.epoch >= trial.job.config.epochs:
            self._score(number, report)
            return False
        if not self._goes_on(trial, report):
            self._stop(number, report)
            return False
        if self.seconds_left is not None and self.seconds_left <= 0:
            self.release(number, f"the time was up after epoch {report.epoch}")
            self.why_stopped = "the time is up"
            return False
        self.on_change()
        return True

    def on_lost(self, number: int, reason: str) -> None:
        """A worker died; its trial is recorded as failed and its network asked again."""
        if number in self.running:
            with self._held(number):
                self._fail(number, reason, lost=True)

    def release(self, number: int, reason: str) -> None:
        """Give a trial up through no fault of its own: a resumed search asks it again."""
        del self.running[number]
        with self.study.exclusive():
            self._ask_again(self.study.record(number), reason)

    def release_all(self, reason: str) -> None:
        """Give up all that runs, also what an interrupt caught between the driver's own books and the study's."""
        self.running.clear()
        with self.study.exclusive():
            for orphan in [*self.study.held(), *self.study.orphans()]:
                self._ask_again(orphan, reason)
            self._sweep_checkpoints()

    def _ask_again(self, orphan: Record, reason: str) -> None:
        if orphan.number not in self.study.retried:
            self.study.enqueue(orphan.params, retry_of=orphan.number)  # first: killed in between, it is not lost
        self.study.adopt(orphan.number)
        self.study.fail(orphan.number, ORPHAN, reason)
        self._refresh()

    @contextlib.contextmanager
    def _held(self, number: int) -> Iterator[None]:
        """A trial that another driver has taken over is let go: whatever comes of it here, it is asked again there."""
        try:
            yield
        except TakenOver:
            self.running.pop(number, None)
            self.study.forget(number)
            self.on_change()

    def _earlier(self, number: int) -> list[int]:
        """The trials that a trial's network was asked as before, the last one first."""
        out = []
        while (before := self.study.record(number).attrs.get("retry_of")) is not None:
            out.append(number := before)
        return out

    def _sweep_checkpoints(self) -> None:
        """Drop those of trials that have ended for good."""
        unended = [r.number for r in self.study.records() if r.state in ("WAITING", "RUNNING")]
        self._drop_checkpoints(*set(self.checkpoints).difference(unended, *map(self._earlier, unended)))

    def _drop_checkpoints(self, *numbers: int) -> None:
        for number in numbers:
            self.checkpoints.pop(number, None)

    def _recover(self) -> None:
        """Take up what the study holds: scores, failures, and trials that another driver left running."""
        with self.study.exclusive():
            ended = self._refresh()
            asked = [r.outcome for r in ended if r.outcome != ORPHAN]
            missed = itertools.takewhile(lambda outcome: outcome in (INFEASIBLE, REPEATED), reversed(asked))
            self.misses = sum(1 for _ in missed)
            self._take_over()
            self._sweep_checkpoints()

    def _take_over(self) -> None:
        """Have the trials asked again that drivers left running which are gone."""
        for orphan in self.study.orphans():
            # Without Ray a network may end the driver itself: asked again for ever, no resume would get past it.
            if orphan.key and self.lost[orphan.reached] >= RETRIES:
                self.study.adopt(orphan.number)
                self.study.fail(orphan.number, FAILED, f"{KILLED}, and {RETRIES} trials of it were lost before")
                self._refresh()
            else:
                self._ask_again(orphan, KILLED)

    def _refresh(self) -> list[Record]:
        """Enter what is new since the last time into the books; returns the trials that ended."""
        ended = self.study.ended()
        for record in ended:
            self._take_up(record)
        for outcome, known in self.fronts.items():
            points = [*known, *(r for r in ended if r.outcome == outcome)]
            self.fronts[outcome] = [points[i] for i in front([r.val_top1 for r in points], [r.macs for r in points])]
        for record in [*ended, *self.study.running()]:
            self._note_rungs(record)
        return ended

    def _take_up(self, record: Record) -> None:
        """Enter a trial that has ended into the books."""
        outcome = record.outcome
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if outcome in self.fronts:
            known = self.scored if outcome == SCORED else self.estimated
            known[record.key] = record
        elif outcome == STOPPED:
            self.stopped[record.key] = record.number
        elif record.attrs.get("reason") == KILLED or (outcome == FAILED and record.number in self.study.retried):
            self.lost[record.reached] += 1
        elif outcome == FAILED:
            self.given_up[record.key] = record.number
        if outcome in (SCORED, ESTIMATED, STOPPED, FAILED):
            self.history.append(record)

    def _note_rungs(self, record: Record) -> None:
        """Enter what a trial reached into the rungs."""
        for epoch, val_top1 in record.epochs.items():
            if epoch in self.rungs:
                self.rungs[epoch][record.key] = (val_top1, record.macs)
            self.furthest[record.key] = max(epoch, self.furthest.get(record.key, 0))

    def _goes_on(self, trial: Running, report: Report) -> bool:
        """Whether the scheduler lets a trial go on. One that is asked again passes the rungs that it passed before."""
        rung, key = self.rungs.get(report.epoch), trial.job.arch.key()
        before, self.furthest[key] = self.furthest.get(key, 0), max(report.epoch, self.furthest.get(key, 0))
        if rung is None:
            return True
        rung[key] = (report.val_top1, trial.cost.macs)
        top1, macs = zip(*rung.values(), strict=True)
        which = list(rung).index(key)
        return report.epoch < before or goes_on(self.settings.scheduler, self.settings.eta, top1, macs, which)

    def _stop(self, number: int, report: Report) -> None:
        trial, of = self.running.pop(number), len(self.rungs[report.epoch])
        # What it lacks of the full budget counts as a broken limit: TPE learns from it, it is on no front, and Optuna
        # crashes at stopped trials that break none.
        violations = [*self.limits.violations(trial.cost), 1 - report.epoch / trial.job.config.epochs]
        reason = f"after epoch {report.epoch} not among the best 1/{self.settings.eta} of {of}"
        attrs = {"epochs": report.epoch, "seconds": round(report.seconds, 3), "training": self._training(report)}
        self.study.stop(number, violations, reason, **attrs)
        self._drop_checkpoints(number, *trial.earlier)
        self._refresh()
        self.on_change()

    def _propose(self) -> Job | None:
        """Ask once; None if the proposal could be answered without training."""
        proposal = self.study.ask()
        try:
            arch = member(self.space, proposal.params, self.settings.match_macs)
        except UserError as error:  # only with --match-macs: no width brings this shape there
            self.study.infeasible(proposal.number, str(error))
            self._refresh()
            return None
        price = cost(arch, self.space.image_size)
        violations = self.limits.violations(price)
        if self.settings.scheduler != "none":
            violations.append(0.0)  # none of the budget is missing yet
        self.study.describe(proposal.number, arch, price, violations)
        if any(v > 0 for v in violations):
            self.study.infeasible(proposal.number, "it breaks a limit")
            self._refresh()
            return None
        earlier = [] if proposal.retry_of is None else self._earlier(proposal.number)
        if self._known(proposal, arch.key(), price):
            self._drop_checkpoints(*earlier)
            self._refresh()
            return None
        job = self._job(proposal, arch)
        self.running[proposal.number] = Running(job, price, proposal.params, earlier=earlier)
        self.on_change()
        return replace(job, checkpoint=next((self.checkpoints[n] for n in earlier if n in self.checkpoints), None))

    def _job(self, proposal: Proposal, arch: Arch) -> Job:
        s, number = self.settings, proposal.number
        if proposal.confirms is None and self.estimates:  # one report; the seed draws what calibrates, the same for all
            return Job(number, arch, replace(s.train_config(s.seed), epochs=1), "supernet")
        config = replace(s.train_config(trial_seed(s.seed, arch)), lr=s.final_lr)
        steps = rungs(s.epochs, s.min_epochs, s.eta)  # whether or not a scheduler compares trials there
        return Job(number, arch, config, "inherit" if s.tunes else "scratch", steps)

    def _known(self, proposal: Proposal, key: str, price: Cost) -> bool:
        """Whether the network was tried before; the trial is then ended with what is known."""
        earlier = self.scored.get(key)
        if earlier is None and proposal.confirms is None:
            earlier = self.estimated.get(key)
        if earlier is not None and earlier.val_top1 is not None:
            answer = {"repeat_of": earlier.number, "epochs": earlier.attrs["epochs"]}
            self.study.complete(proposal.number, earlier.val_top1, price.macs, REPEATED, **answer)
            return True
        twin = next((r.number for r in self.study.running() if r.key == key and r.number != proposal.number), None)
        if twin is not None:
            self.study.fail(proposal.number, REPEATED, f"the same network runs as trial {twin}")
            return True
        for what, trials in (("failed", self.given_up), ("was stopped", self.stopped)):
            if key in trials:
                self.study.fail(proposal.number, REPEATED, f"the same network {what} as trial {trials[key]}")
                return True
        return False

    def _enqueue_unseen(self) -> bool:
        """Enqueue a member that is within the limits and was not tried yet; False if there is none.

        Where something is enqueued already, as by a driver that was killed just then, that is enough.
        """
        if self.study.waiting():
            return True
        busy = {r.key for r in self.study.running()}
        known = self.estimated if self.estimates else self.scored
        busy |= known.keys() | self.given_up.keys() | self.stopped.keys()
        rng = random.Random(f"{self.settings.seed} {len(known)} {len(busy)}")
        fresh = next((p for p in self._candidates(rng) if self._is_fresh(p, busy)), None)
        if fresh is not None:
            self.study.enqueue(fresh)
        return fresh is not None

    def _nothing_new(self) -> str:
        if self.space.size <= ENUMERABLE:
            return "every network of the space that meets the limits was tried"
        return f"no new network in {self.misses} proposals in a row, nor in {ENUMERABLE:,} drawn at random"

    def _candidates(self, rng: random.Random) -> Iterator[dict[str, int]]:
        """Members in random order."""
        if self.space.size <= ENUMERABLE:
            every = list(self.space.all_params())
            rng.shuffle(every)
            yield from every
        else:
            yield from (self.space.sample(rng) for _ in range(ENUMERABLE))

    def _is_fresh(self, params: dict[str, int], busy: set[str]) -> bool:
        try:
            arch = member(self.space, params, self.settings.match_macs)
        except UserError:
            return False
        return self.limits.allow(cost(arch, self.space.image_size)) and arch.key() not in busy

    def _score(self, number: int, report: Report) -> None:
        trial = self.running.pop(number)
        by_weights = trial.job.evaluator == "supernet"
        epochs = 0 if by_weights else report.epoch
        attrs = {"epochs": epochs, "seconds": round(report.seconds, 3), "training": self._training(report)}
        self.on_scored(trial.job, report.weights)  # first: a score that the study holds has its weights on disk
        outcome = ESTIMATED if by_weights else SCORED
        self.study.complete(number, report.val_top1, trial.cost.macs, outcome, **attrs)
        self._drop_checkpoints(number, *trial.earlier)
        self._refresh()
        self.on_change()

    def _training(self, report: Report) -> dict[str, object]:
        return {
            "images_per_second": round(report.images_per_second, 1),
            "val_loss": report.val_loss,
            "host": report.host,
            **({"node": report.node} if report.node else {}),
            "session": self.session,
        }

    def _fail(self, number: int, reason: str, lost: bool) -> None:
        """Record a failure. Only of a lost trial is the network tried again: with its seed, others fail alike."""
        trial = self.running.pop(number)
        with self.study.exclusive():
            self._refresh()  # another driver may have taken it over
            again = lost and number not in self.study.retried and self.lost[self.study.record(number).reached] < RETRIES
            if again:
                self.study.enqueue(trial.params, retry_of=number)
            self.study.fail(number, FAILED, reason)
            self._refresh()
        if not again:
            self._drop_checkpoints(number, *trial.earlier)
        self.on_change()

    def _no_time(self) -> bool:
        """Whether a trial of the usual length would not end within `--time`; that is then why the search stops."""
        left = self.seconds_left
        if left is None:
            return False
        known = [r.attrs["seconds"] for r in (self.scored or self.estimated).values()]
        usual = statistics.median(known) if known else 0.0
        if left > 0 and left >= usual:
            return False
        self.why_stopped = "the time is up"
        return True


def picked(estimates: list[Record], count: int) -> list[Record]:
    """Of the estimates' front, so many networks: evenly along it, both ends among them."""
    best = [estimates[i] for i in front([r.val_top1 or 0.0 for r in estimates], [r.macs for r in estimates])]
    if count == 1:
        return best[-1:]
    places = {round(i * (len(best) - 1) / (count - 1)) for i in range(count)} if best and count else set()
    return [best[i] for i in sorted(places, reverse=True)]  # the dearest first, so that no worker is left with it


def trial_seed(seed: int, arch: Arch) -> int:
    """The seed of a network's training: it follows from the search's seed and the network, not from the order tried."""
    return int.from_bytes(hashlib.sha256(f"{seed} {arch.key()}".encode()).digest()[:4])
