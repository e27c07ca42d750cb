"""The weights that networks of a search grow from: trunks of its trials, and trained networks of `--include`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from res2net.arch import Arch
from res2net.containment import contains
from search.included import Included
from search.study.study import Study
from search.study.trials import AGAIN, Record

KEPT = 64  # a run keeps only its newest trunks; the largest networks grow from the newest


@dataclass(frozen=True, slots=True)
class Origin:
    """A network whose weights are available, so that larger networks can grow from it.

    epochs: the epochs that trained its weights, including its ancestors' epochs.
    attrs: the attributes of a trial that grows from this origin. They name the origin.
    """

    arch: Arch
    epochs: float
    attrs: Mapping[str, Any]


class Lineage:
    """The origins of a search.

    trunks: the trunk of each trial that has one, by trial number. A driver reads only its own trunks.
    included: the networks that the search starts from.
    cost: a network's value on the cost axis.
    """

    def __init__(
        self,
        trunks: MutableMapping[int, bytes],
        included: Sequence[Included],
        study: Study,
        cost: Callable[[Arch], float],
    ) -> None:
        self.trunks, self.included, self.study, self.cost = trunks, included, study, cost

    @property
    def origins(self) -> list[Origin]:
        """All networks whose weights are available."""
        records = [self.study.record(number) for number in self.trunks]
        out = [
            Origin(r.arch, r.attrs.get("inherited", 0) + r.attrs["trunk"], {"parent": r.number})
            for r in records
            if r.key
        ]
        return out + [Origin(n.arch, n.epochs, {"origin": n.name}) for n in self.included if n.weights is not None]

    def of(self, arch: Arch) -> dict[str, Any]:
        """Return the attributes of a trial that trains this network: its origin, and the epochs that it inherits.

        The origin is the dearest one that the network contains. Of equally dear origins, take the longest trained one.
        A network that contains no origin inherits 0 epochs.
        """
        fits = [origin for origin in self.origins if contains(arch, origin.arch)]
        best = max(fits, key=lambda origin: (self.cost(origin.arch), origin.epochs), default=None)
        return {"inherited": 0} if best is None else {**best.attrs, "inherited": best.epochs}

    def again(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of a trial that trains a network with another seed. It repeats the whole lineage.

        attrs: the attributes of the trial. If the network's first trial grew from a trunk, this trial grows from the
            parent's trunk with the same seed.
        """
        first, records = self.study.record(attrs["again"]).attrs, self.study.records()
        out = {name: first[name] for name in ("origin", "inherited") if name in first}
        if "parent" in first:
            same = (first_of(first["parent"], records), attrs["sample"])
            done = (r for r in records if r.outcome == AGAIN)
            out["parent"] = next(r.number for r in done if (r.attrs["again"], r.attrs["sample"]) == same)
        return out

    def weights(self, attrs: Mapping[str, Any]) -> tuple[Arch, bytes] | None:
        """Return the network and the weights that `of` chose. Return None for a trial without an origin.

        If the weights are gone, return empty bytes: the worker then fails the trial with this reason.
        """
        if "parent" in attrs:
            parent = self.study.record(attrs["parent"])
            number: int | None = parent.number
            while number is not None and number not in self.trunks:  # an earlier trial of the network may have it
                number = self.study.record(number).attrs.get("retry_of")
            return parent.arch, b"" if number is None else self.trunks[number]
        found = (n for n in self.included if n.weights is not None and n.name == attrs.get("origin"))
        return next(((n.arch, n.weights or b"") for n in found), None)

    def reused(self, number: int) -> Included | None:
        """Return the included network whose score the trial reuses, or None if the trial is to be trained."""
        name = self.study.record(number).attrs.get("included") if self.included else None
        return next((network for network in self.included if network.reused and network.name == name), None)

    def keep(self, number: int, trunk: bytes, growing: Collection[int | None]) -> None:
        """Keep a trial's trunk, and delete the oldest trunks beyond `KEPT`. growing: the parents of running trials."""
        self.trunks[number] = trunk
        for oldest in sorted(self.trunks)[:-KEPT]:
            if oldest not in growing:
                del self.trunks[oldest]


def first_of(number: int, records: Sequence[Record]) -> int:
    """Return the trial that gave a network its first score: of a trial with another seed, or of one that was retried.

    records: all trials, by number.
    """
    retries = {r.attrs["retry_of"]: r.number for r in records if "retry_of" in r.attrs}
    number = records[number].attrs.get("again", number)
    while number in retries:
        number = retries[number]
    return number
