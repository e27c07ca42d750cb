"""Find networks to train: screen the sampler's proposals, and draw untried members if proposals bring nothing new."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

from res2net.arch import Arch
from res2net.errors import UserError
from search.groups import Scope
from search.ledger import Ledger
from search.objectives import COSTS
from search.settings import Settings
from search.study.study import Study
from search.study.trials import INFEASIBLE, ORPHAN, REPEATED, Proposal, Record
from space import Space

MAX_MISSES = 12  # after this many proposals in a row without a new network, draw an untried member
ENUMERABLE = 50_000  # spaces of at most this many combinations are enumerated; larger ones are sampled


@dataclass(frozen=True, slots=True)
class Accepted:
    """A proposal whose network needs a score, with the network and its value of each cost objective."""

    proposal: Proposal
    arch: Arch
    costs: tuple[float, ...]

    @property
    def cost(self) -> float:
        """The first cost."""
        return self.costs[0]


class Proposals:
    """Ask the study for proposals, and end those that need no training: networks over a limit, and known networks.

    refresh: a function that updates the ledger from the study.
    misses: the number of proposals since the last one that needed training.
    exhausted: whether `new` has found no new network.
    """

    def __init__(
        self, settings: Settings, space: Space, study: Study, ledger: Ledger, refresh: Callable[[], object]
    ) -> None:
        self.settings, self.space, self.study, self.ledger, self.refresh = settings, space, study, ledger, refresh
        self.limits, self.objectives = settings.scope.limits, settings.scope.costs
        self.estimates = settings.evaluator.estimates
        self.misses, self.exhausted = 0, False

    def count_misses(self, ended: Sequence[Record]) -> None:
        """Set `misses` to the number of trials without training at the end of `ended`. Orphans do not count."""
        asked = [r.outcome for r in ended if r.outcome != ORPHAN]
        missed = itertools.takewhile(lambda outcome: outcome in (INFEASIBLE, REPEATED), reversed(asked))
        self.misses = sum(1 for _ in missed)

    def new(self) -> Accepted | str:
        """Return the next new network, or the reason why there is none."""
        while True:
            if self.misses and self.misses % MAX_MISSES == 0 and not self._enqueue_unseen():
                self.exhausted = True
                if self.space.size <= ENUMERABLE:
                    return "every network of the space that meets the limits was tried"
                return f"no new network in {self.misses} proposals in a row, nor in {ENUMERABLE:,} drawn at random"
            accepted = self.ask()
            self.misses = 0 if accepted is not None else self.misses + 1
            if accepted is not None:
                return accepted

    def ask(self) -> Accepted | None:
        """Ask the study for one proposal and return it. If its network must not run, end its trial and return None.

        A network must not run if it breaks a limit, is known already, or runs in another trial.
        """
        proposal = self.study.ask()
        accepted = self._screened(proposal)
        if accepted is None:
            self.refresh()
        return accepted

    def _screened(self, proposal: Proposal) -> Accepted | None:
        try:
            if proposal.given is not None:
                arch = Arch.from_dict(proposal.given)
            else:
                arch = self.settings.scope.matching.member(self.space, proposal.params)
        except UserError as error:  # no width gives this shape the MACs to match
            self.study.infeasible(proposal.number, str(error))
            return None
        costs = {o.name: o.of(arch, self.space.image_size) for o in (*COSTS.values(), *self.objectives)}
        violations = self.limits.violations(arch, self.space.image_size)
        if self.settings.budget.scheduler != "none" or self.settings.planned:
            # The missing share of the budget, which is above 0 for stopped trials (`Driver._stop`). It is 0 for others,
            # because some of Optuna's samplers refuse trials with different numbers of violations.
            violations.append(0.0)
        self.study.describe(proposal, arch, costs, violations)
        if any(v > 0 for v in violations):
            self.study.infeasible(proposal.number, "it breaks a limit")
            return None
        accepted = Accepted(proposal, arch, tuple(costs[o.name] for o in self.objectives))
        return None if self._answered(accepted) else accepted

    def _answered(self, accepted: Accepted) -> bool:
        """Return whether the network is known. If so, end the trial with the earlier result, or with a reason."""
        books, proposal, key = self.ledger, accepted.proposal, accepted.arch.key()
        if proposal.again is not None:
            return False
        earlier = books.scored.get(key)
        if earlier is None and proposal.confirms is None:
            earlier = books.estimated.get(key)
        longer = proposal.budget is not None and earlier is not None and proposal.budget > earlier.attrs["epochs"]
        if earlier is not None and earlier.quality is not None and not longer:
            answer = {"repeat_of": earlier.number, "epochs": earlier.attrs["epochs"]}
            self.study.complete(proposal.number, (earlier.quality, *accepted.costs), REPEATED, **answer)
            return True
        others = (r for r in self.study.running() if r.key == key and r.number != proposal.number)
        # A plan may train a known network again, for a longer budget. A sampler's proposal does not.
        twin = next((r.number for r in others if proposal.budget in (None, r.attrs.get("budget"))), None)
        if twin is not None:
            self.study.fail(proposal.number, REPEATED, f"the same network runs as trial {twin}")
            return True
        last = {k: r.number for k, r in books.suspects.items()}
        for what, trials in (("failed", books.given_up), ("was stopped", books.stopped), ("is to run last", last)):
            if key in trials:
                self.study.fail(proposal.number, REPEATED, f"the same network {what} as trial {trials[key]}")
                return True
        return False

    def _enqueue_unseen(self) -> bool:
        """Enqueue a new member within the limits; return False if there is none.

        A waiting proposal counts as enqueued: a driver may have been killed just after it enqueued one. The order of
        the members depends only on the seed and the ledger, so a resumed search enqueues the same member.
        """
        if self.study.waiting():
            return True
        books = self.ledger
        done, known = books.estimated if self.estimates else books.scored, self.known()
        rng = random.Random(f"{self.settings.scope.seed} {len(done)} {len(known)}")
        unseen = next((p for p in self._candidates(rng) if is_new(self.settings.scope, self.space, p, known)), None)
        if unseen is not None:
            self.study.enqueue(unseen)
        return unseen is not None

    def known(self) -> set[str]:
        """Return the keys of all networks that need no further trial."""
        return known_of(self.ledger, self.estimates) | {r.key for r in self.study.running()}

    def _candidates(self, rng: random.Random) -> Iterator[dict[str, int]]:
        """Yield members in random order."""
        if self.space.size <= ENUMERABLE:
            every = list(self.space.all_params())
            rng.shuffle(every)
            yield from every
        else:
            yield from (self.space.sample(rng) for _ in range(ENUMERABLE))


def known_of(books: Ledger, estimates: bool) -> set[str]:
    """Return the keys of the networks that a ledger needs no further trial of. estimates: see `Evaluator.estimates`."""
    done = books.estimated if estimates else books.scored
    return set().union(done, books.given_up, books.stopped, books.suspects)


def is_new(scope: Scope, space: Space, params: dict[str, int], known: Set[str]) -> bool:
    """Return whether parameters give a network within the limits whose key is not among the known ones."""
    try:
        arch = scope.matching.member(space, params)
    except UserError:
        return False
    return scope.limits.allow(arch, space.image_size) and arch.key() not in known


def all_tried(settings: Settings, space: Space, books: Ledger) -> bool:
    """Return whether all networks of a space are known or break a limit. Assume that large spaces hold new ones."""
    known = known_of(books, settings.evaluator.estimates)
    return space.size <= ENUMERABLE and not any(is_new(settings.scope, space, p, known) for p in space.all_params())
