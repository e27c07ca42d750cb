"""The ledger is a pure fold: how its records are split into calls, and in which order trials end, changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.driver import Driver
from search.ledger import RETRIES, Ledger, Rules
from search.objectives import MACS, PARAMS
from search.settings import Settings
from search.study.storage import read
from search.study.trials import ESTIMATED, FAILED, INFEASIBLE, ORPHAN, REPEATED, SCORED, STOPPED, Record
from search.worker import Report
from studies.synthetic import accuracy

WORKERS = 3
UNENDED = ("WAITING", "RUNNING")
KINDS = {
    "stopped": {"scheduler": "pareto-asha", "eta": 2, "epochs": 4, "trials": 18, "max_macs": 350_000},
    "estimates": {"evaluator": "supernet", "epochs": 2, "trials": 9, "confirm": 3},
}


def state(books: Ledger) -> dict[str, object]:
    """Return everything that the books say, in an order that does not depend on when trials ended."""
    return {
        "counts": books.counts,
        "spent": books.spent,
        "front": [r.number for r in books.front],
        "best": [r.number for r in books.best],
        "rungs": books.rungs,
        "furthest": books.furthest,
        "lost": books.lost,
        "given_up": books.given_up,
        "stopped": books.stopped,
        "suspects": {key: r.number for key, r in books.suspects.items()},
        "scored": {key: r.number for key, r in books.scored.items()},
        "estimated": {key: r.number for key, r in books.estimated.items()},
        "retried": books.retried,
        "history": sorted(r.number for r in books.history),
        "picks": [r.number for r in books.picks(3)],
    }


def play(driver: Driver, rng: random.Random, events: int, check: Callable[[Driver], None]) -> None:
    """Have workers report in a random order: most reports are scores, some are failures, losses or interruptions."""
    done: dict[int, int] = {}
    for _ in range(events):
        if len(driver.running) < WORKERS and driver.next_job() is not None:
            check(driver)
            continue
        if not driver.running:
            return
        number = rng.choice(list(driver.running))
        trial, fate = driver.running[number], rng.random()
        if fate < 0.06:
            driver.on_lost(number, "the worker died")
        elif fate < 0.09:
            driver.release(number, "the time was up")
        elif fate < 0.12:
            driver.on_report(number, Report(0, reason="no luck"))
        else:
            epoch = done[number] = done.get(number, 0) + 1
            driver.on_report(number, Report(epoch, accuracy(trial.job.arch, epoch), 1.0, seconds=1.0))
        check(driver)


@pytest.fixture(params=KINDS)
def settings(request: pytest.FixtureRequest, make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(**KINDS[request.param])


@pytest.fixture
def searched(settings: Settings, open_driver: Callable, tmp_path: Path) -> list[Record]:
    """Return the records of a search with killed drivers, whose books were compared after each event."""

    def check(driver: Driver) -> None:
        folded = Ledger.of(settings.rules, driver.study.records())
        assert state(driver.ledger) == state(folded)

    rng = random.Random(0)
    for _ in range(2 + RETRIES):  # each driver is killed as it runs the same first network, which becomes a suspect
        with open_driver(settings) as driver:
            check(driver)
            if not driver.ledger.suspects:
                driver.next_job()
            check(driver)
    assert len(driver.ledger.suspects) == 1
    for events in (15, 20, 200):
        with open_driver(settings) as driver:
            check(driver)
            play(driver, rng, events, check)
    return list(read(tmp_path))


@pytest.mark.slow
def test_at_any_moment_the_drivers_books_are_a_fold_of_the_records_however_they_are_split(
    searched: list[Record], settings: Settings
) -> None:
    outcomes = {r.outcome for r in searched}
    assert outcomes >= {SCORED, FAILED, ORPHAN, ESTIMATED if settings.rules.estimates else STOPPED}
    assert outcomes & {INFEASIBLE, REPEATED}

    @given(st.permutations(range(len(searched))), st.sets(st.integers(1, len(searched))))
    def folded(order: list[int], cuts: set[int]) -> None:
        ended = _in_order(searched, order)
        books, begun = Ledger(settings.rules), 0
        for end in [*sorted(cuts), len(ended)]:
            known = {r.number for r in ended[:end]}
            # A retry is enqueued before its trial ends, so it is always among the records.
            enqueued = [
                replace(r, state="WAITING", outcome="waiting", epochs={})
                for r in searched
                if r.attrs.get("retry_of") in known and r.number not in known
            ]
            books.add(ended[begun:end], enqueued)
            begun = end
            assert state(books) == state(Ledger.of(settings.rules, [*ended[:end], *enqueued]))
        unended = [r for r in searched if r.state in UNENDED]
        assert state(books.add([], unended)) == state(Ledger.of(settings.rules, searched))

    folded()


def _in_order(records: list[Record], order: list[int]) -> list[Record]:
    """Return the ended records in another order of their ends: the trials of one network still end one by one."""
    shuffled = [records[i] for i in order if records[i].state not in UNENDED]
    by_network: dict[str, list[Record]] = {}
    for r in sorted(shuffled, key=lambda r: r.number, reverse=True):
        by_network.setdefault(r.key, []).append(r)
    return [by_network[r.key].pop() for r in shuffled]


def record(number: int, outcome: str, quality: float | None = None, **attrs: object) -> Record:
    return Record(number, "COMPLETE", outcome, {}, {"key": f"network {number}", **attrs}, quality, {})


class TestFront:
    def test_it_is_by_the_rules_objective(self) -> None:
        records = [record(0, SCORED, 50.0, macs=10, params=2), record(1, SCORED, 60.0, macs=20, params=1)]
        assert [r.number for r in Ledger.of(Rules((MACS,), 2), records).front] == [0, 1]
        assert [r.number for r in Ledger.of(Rules((PARAMS,), 2), records).front] == [1]

    def test_of_equal_networks_the_first_asked_stands_whichever_ended_first(self) -> None:
        first, second = record(0, SCORED, 50.0, macs=10), record(1, SCORED, 50.0, macs=10)
        rules = Rules((MACS,), 2)
        for ended in ([first, second], [second, first]):
            books = Ledger(rules)
            for one in ended:
                books.add([one])
            assert [r.number for r in books.front] == [0]

    def test_estimates_are_on_it_only_until_a_network_is_trained(self) -> None:
        books = Ledger(Rules((MACS,), 2, estimates=True)).add([record(0, ESTIMATED, 90.0, macs=10)])
        assert ([r.number for r in books.front], books.trained, books.spent) == ([0], False, 1)
        books.add([record(1, SCORED, 50.0, macs=20)])
        assert ([r.number for r in books.front], books.trained, books.spent) == ([1], True, 1)

    def test_a_score_of_less_than_the_full_budget_is_not_on_it(self) -> None:
        books = Ledger.of(
            Rules((MACS,), 8), [record(0, SCORED, 90.0, macs=10, epochs=4), record(1, SCORED, 50.0, macs=20)]
        )
        assert [r.number for r in books.front] == [r.number for r in books.best] == [1]
        assert len(books.scored) == 2

    def test_picks_are_spread_evenly_with_both_ends(self) -> None:
        records = [record(i, ESTIMATED, 10.0 + i, macs=10 + i) for i in range(9)]
        books = Ledger.of(Rules((MACS,), 2, estimates=True), records)
        assert [r.number for r in books.picks(3)] == [8, 4, 0]
        assert [r.number for r in books.picks(1)] == [8]
        assert books.picks(0) == []
        assert len(books.picks(50)) == 9
