"""The ledger of a search. It is computed only from the records of the trials of all drivers.

The driver, tables, plots, `best/`, export and display all ask the ledger for counts, known networks, rungs and the
front, so that all of them agree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from search.front import Axis, front, hypervolume, knee
from search.objectives import ACCURACY, Objective, places
from search.study.trials import AGAIN, ESTIMATED, FAILED, ORPHAN, SCORED, STOPPED, Record

KILLED = "the search was stopped while it ran"  # the recorded reason of a trial whose driver was killed
REUSED = "reused"  # the attribute of trials that were scored by an earlier run
RETRIES = 2  # how often a network is run again after its trials were lost at the same epoch


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that the ledger needs in addition to the records.

    costs: the cost objectives. The first one orders the front.
    epochs: the full budget of a trial; None if each trial has its own.
    rungs: the epochs after which trials are compared; empty for estimates, which take a single step.
    estimates: whether the evaluator's scores are estimates, confirmed by training.
    quality: the quality objective.
    """

    costs: tuple[Objective, ...]
    epochs: int | None
    rungs: tuple[int, ...] = ()
    estimates: bool = False
    quality: Objective = ACCURACY

    @property
    def objective(self) -> Objective:
        """The first cost objective."""
        return self.costs[0]

    @property
    def counted(self) -> str:
        """The outcome of scored trials that count against `trials`: ESTIMATED if `estimates`, else SCORED."""
        return ESTIMATED if self.estimates else SCORED


class Ledger:
    """The ledger over the records so far. Networks are named by their keys.

    counts: the number of ended trials with each outcome. Reused scores and further seeds have their own counts.
    scored, estimated: the record of each network with a score.
    given_up, stopped: for each network that never runs again, the number of the trial that failed or was stopped.
    lost: the number of lost trials for each network and last epoch (`Record.reached`).
    suspects: the last record of each network that now runs last and alone, because its drivers were killed too often.
    retried: the numbers of the trials whose network was enqueued again.
    rungs: the quality and the costs of each network at each rung.
    furthest: for each network, the last epoch with a known accuracy.
    history: the records of scored (with any seed), estimated, stopped and failed trials, in the order they were added.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.counts: Counter[str] = Counter()
        self.scored: dict[str, Record] = {}
        self.estimated: dict[str, Record] = {}
        self.lost: Counter[tuple[str, int]] = Counter()
        self.given_up: dict[str, int] = {}
        self.stopped: dict[str, int] = {}
        self.suspects: dict[str, Record] = {}
        self.retried: set[int] = set()
        self.rungs: dict[int, dict[str, tuple[float, ...]]] = {epoch: {} for epoch in rules.rungs}
        self.furthest: dict[str, int] = {}
        self.history: list[Record] = []
        self._fronts: dict[str, list[Record]] = {SCORED: [], ESTIMATED: []}

    @classmethod
    def of(cls, rules: Rules, records: Iterable[Record]) -> Self:
        """Return the ledger over all records of a study."""
        all_records = list(records)
        ended = [r for r in all_records if r.state not in ("WAITING", "RUNNING")]
        return cls(rules).add(ended, [r for r in all_records if r.state in ("WAITING", "RUNNING")])

    def add(self, ended: Sequence[Record], unended: Sequence[Record] = ()) -> Self:
        """Add the trials that ended since the last call. Of `unended` trials, add only the retries and the rungs."""
        # A retry is enqueued before the lost trial is ended, so that no kill in between loses the network. So these
        # records always include the retry of an ended trial.
        self.retried |= {r.attrs["retry_of"] for r in [*ended, *unended] if "retry_of" in r.attrs}
        self.suspects = {key: r for key, r in self.suspects.items() if r.number not in self.retried}
        for record in ended:
            self._enter(record)
        lower = any(r.outcome == AGAIN for r in ended)  # a mean may fall, so that dominated networks return
        for outcome, known in self._fronts.items():
            new = self.history if lower else ended
            points = [*([] if lower else known), *(r for r in new if r.outcome == outcome and self.qualifies(r))]
            self._fronts[outcome] = self._front_of(points)
        for record in [*ended, *(r for r in unended if r.state == "RUNNING")]:
            for epoch, quality in record.epochs.items() if AGAIN not in record.attrs else ():
                self.note_rung(record.key, epoch, quality, self.costs(record))
        return self

    def _enter(self, record: Record) -> None:
        outcome = record.outcome
        self.counts[next((name for name in (REUSED, AGAIN) if name in record.attrs), outcome)] += 1
        if outcome == AGAIN:
            self._add_seed(record)
        elif outcome == SCORED:
            known = self.scored.get(record.key)
            if known is None or record.attrs.get("epochs", 0) >= known.attrs.get("epochs", 0):
                self.scored[record.key] = record
        elif outcome == ESTIMATED:
            self.estimated[record.key] = record
        elif outcome == STOPPED:
            self.stopped[record.key] = record.number
        elif record.attrs.get("reason") == KILLED or (outcome == FAILED and record.number in self.retried):
            self.lost[record.reached] += 1
        elif outcome == FAILED and "again" not in record.attrs:
            self.given_up[record.key] = record.number
        if outcome in (SCORED, AGAIN, ESTIMATED, STOPPED, FAILED):
            self.history.append(record)
        self._suspect(record)

    def _add_seed(self, again: Record) -> None:
        """Add the score of another seed to the record of the network's first trial."""
        index = next(i for i, r in enumerate(self.history) if r.number == again.attrs[AGAIN])
        known = self.history[index] = self.history[index].with_seed(again.quality or 0.0)
        if self.scored[known.key].number == known.number:
            self.scored[known.key] = known

    def _suspect(self, record: Record) -> None:
        """Update the suspects with a record.

        The network of an orphaned trial that has no retry becomes a suspect. It stays one until a trial of the network
        is scored, estimated, stopped or failed.
        """
        if record.outcome == ORPHAN and record.key and record.number not in self.retried:
            self.suspects[record.key] = record
        elif record.outcome in (SCORED, ESTIMATED, STOPPED, FAILED):
            self.suspects.pop(record.key, None)

    def note_rung(self, key: str, epoch: int, quality: float, costs: Sequence[float]) -> None:
        """Record that a network's quality is known after an epoch. If the epoch is a rung, add the network to it."""
        if epoch in self.rungs:
            self.rungs[epoch][key] = (quality, *costs)
        self.furthest[key] = max(epoch, self.furthest.get(key, 0))

    def cost(self, record: Record) -> float:
        """Return a record's value of the first cost objective; 0 if its trial ended before it was described."""
        return record.attrs.get(self.rules.objective.name, 0)

    def costs(self, record: Record) -> tuple[float, ...]:
        """Return a record's value of each cost objective."""
        return tuple(record.attrs.get(objective.name, 0) for objective in self.rules.costs)

    @property
    def spent(self) -> int:
        """The number of trials that count against `trials`: stopped, failed, or with the outcome `Rules.counted`."""
        return sum(self.counts[outcome] for outcome in (self.rules.counted, STOPPED, FAILED))

    def qualifies(self, record: Record) -> bool:
        """Return whether a record may be on a front: trained for the full budget, or an estimate."""
        if record.outcome != SCORED or self.rules.epochs is None:
            return record.outcome in (SCORED, ESTIMATED)
        return record.attrs.get("epochs", self.rules.epochs) == self.rules.epochs

    @property
    def front(self) -> list[Record]:
        """The front that every report shows, cheapest first.

        It is the front of the trained networks, or, while no network is trained, the front of the estimates.
        """
        return self._fronts[SCORED] or self._fronts[ESTIMATED]

    @property
    def trained(self) -> bool:
        """Whether any network was trained for the full budget."""
        return bool(self._fronts[SCORED])

    def candidates(self) -> tuple[list[Record], list[Record]]:
        """Return the candidates for the front, and the other scored records (estimates, once a network is trained)."""
        scored, estimates = ([r for r in self.history if r.outcome == o] for o in (SCORED, ESTIMATED))
        return (scored, estimates) if scored or not estimates else (estimates, scored)

    @property
    def best(self) -> list[Record]:
        """The networks trained for the full budget, best first."""
        known = [r for r in self.history if r.outcome == SCORED and self.qualifies(r)]
        return sorted(known, key=lambda r: (-(r.quality or 0.0), self.cost(r), r.number))

    @property
    def noise(self) -> tuple[float, float] | None:
        """The standard deviation of an accuracy between seeds, and its 95 % quantile of t; None without further seeds.

        All networks that were trained with several seeds are pooled.
        """
        several = [r for r in self.best if len(r.seeds) > 1]
        degrees = sum(len(r.seeds) - 1 for r in several)
        if not degrees:
            return None
        from scipy.stats import t  # takes a second to import

        spread = math.sqrt(sum((len(r.seeds) - 1) * r.spread**2 for r in several) / degrees)
        return spread, float(t.ppf(0.975, degrees))

    @property
    def maybe(self) -> list[Record]:
        """The networks that may be on the front too: no network of the front is significantly better at no higher cost.

        Differences are compared with the 95 % interval of Student's t. Empty without further seeds.
        """
        if (noise := self.noise) is None:
            return []
        spread, quantile = noise
        numbers = {r.number for r in self.front}

        def beaten(record: Record) -> bool:
            for other in self.front:
                error = spread * math.sqrt(1 / len(other.seeds) + 1 / len(record.seeds))
                better = (other.quality or 0.0) - (record.quality or 0.0)
                cheaper = all(a <= b for a, b in zip(self.costs(other), self.costs(record), strict=True))
                if cheaper and better > quantile * error:
                    return True
            return False

        known = {r.key: r for r in reversed(self.best)}  # the best trial of each network
        return [r for r in known.values() if r.number not in numbers and r.seeds and not beaten(r)]

    def knee(self, records: Sequence[Record]) -> Record:
        """Return the knee of the records' front: see `search.front.knee`."""
        quality, *costs = self._columns(records)
        return records[knee(quality, *places(self.rules.costs, costs))]

    def hypervolume(self, *ranges: tuple[float, float]) -> float:
        """Return the front's hypervolume. ranges: the least and the greatest budget of each cost."""
        quality, *costs = self._columns(self.front)
        found = zip(costs, ranges, self.rules.costs, strict=True)
        return hypervolume(quality, *(Axis(values, *ends, o.log) for values, ends, o in found))

    def picks(self, count: int) -> list[Record]:
        """Return `count` networks spread evenly along the estimates' front, with both ends; for 1, the dearest.

        The dearest network comes first. If it started last, one worker would be busy with it while the others idle.
        """
        best = self._fronts[ESTIMATED]
        if count == 1:
            return best[-1:]
        places = {round(i * (len(best) - 1) / (count - 1)) for i in range(count)} if best and count else set()
        return [best[i] for i in sorted(places, reverse=True)]

    def _front_of(self, records: Sequence[Record]) -> list[Record]:
        known = sorted(records, key=lambda r: r.number)  # of equal networks, the first proposed is kept
        return [known[i] for i in front(*self._columns(known))]

    def _columns(self, records: Sequence[Record]) -> list[list[float]]:
        costs = [[record.attrs.get(o.name, 0) for record in records] for o in self.rules.costs]
        return [[r.quality or 0.0 for r in records], *costs]
