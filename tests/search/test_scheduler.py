"""Which trials continue: the rule against a naive one, and searches that obey it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from res2net.errors import UserError
from search.front import front
from search.scheduler import continues, crowding_distance, rank, rungs
from search.settings import Settings
from search.study.storage import read
from search.study.trials import REPEATED, SCORED, STOPPED, Record
from search.worker import Report
from studies.synthetic import Synthetic
from trainers.datasets.data import Data

points = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 7)), min_size=1, max_size=30)


def of(folder: Path, *outcomes: str) -> list[Record]:
    return [r for r in read(folder) if r.outcome in outcomes]


def naive_fronts(top1: list[float], macs: list[float]) -> list[int]:
    """Return the front of each point: take the undominated points away until none is left, in O(n^3)."""

    def dominates(a: int, b: int) -> bool:
        no_worse = top1[a] >= top1[b] and macs[a] <= macs[b]
        return no_worse and (top1[a] > top1[b] or macs[a] < macs[b])

    out, left, number = [0] * len(top1), set(range(len(top1))), 0
    while left:
        best = {i for i in left if not any(dominates(j, i) for j in left)}
        for i in best:
            out[i] = number
        left -= best
        number += 1
    return out


class TestRule:
    @given(points)
    def test_fronts_are_those_of_peeling_them_off(self, drawn: list[tuple[int, int]]) -> None:
        top1, macs = ([float(v) for v in column] for column in zip(*drawn, strict=True))
        assert list(rank(top1, macs)[0]) == naive_fronts(top1, macs)

    @given(points, st.integers(2, 5), st.sampled_from(["pareto-asha", "asha"]))
    def test_one_in_eta_continues_and_equal_ranks_stand_or_fall_together(
        self, drawn: list[tuple[int, int]], eta: int, scheduler: str
    ) -> None:
        top1, macs = zip(*drawn, strict=True)
        on = [continues(scheduler, eta, i, top1, macs) for i in range(len(drawn))]
        fronts, crowding = rank(top1, macs)
        places = [(-t,) for t in top1] if scheduler == "asha" else list(zip(fronts, -crowding, strict=True))
        last = sorted(places)[math.ceil(len(drawn) / eta) - 1]
        assert on == [place <= last for place in places]

    @given(points, st.integers(2, 5))
    def test_no_trial_continues_while_one_that_dominates_it_is_stopped(
        self, drawn: list[tuple[int, int]], eta: int
    ) -> None:
        top1, macs = zip(*drawn, strict=True)
        on = {i for i in range(len(drawn)) if continues("pareto-asha", eta, i, top1, macs)}
        for i in on:
            for j in set(range(len(drawn))) - on:
                assert not (top1[j] >= top1[i] and macs[j] <= macs[i] and drawn[j] != drawn[i])

    @given(points, st.integers(2, 5))
    def test_the_cheapest_and_the_most_accurate_always_continue(self, drawn: list[tuple[int, int]], eta: int) -> None:
        top1, macs = zip(*drawn, strict=True)
        best = front(top1, macs)
        assert continues("pareto-asha", eta, best[0], top1, macs)
        assert continues("pareto-asha", eta, best[-1], top1, macs)

    def test_accuracy_alone_stops_the_cheap_network_that_the_front_needs(self) -> None:
        top1, macs = [90.0, 80.0, 70.0, 30.0, 60.0, 50.0], [60, 50, 40, 10, 55, 45]
        assert continues("pareto-asha", 3, 3, top1, macs)
        assert not continues("asha", 3, 3, top1, macs)
        assert continues("none", 3, 3, top1, macs)

    def test_crowding_is_the_sides_of_the_box_between_neighbours(self) -> None:
        got = crowding_distance(np.array([[10.0, 20.0, 60.0, 110.0], [0.0, 1.0, 2.0, 3.0]]).T)
        assert list(got) == pytest.approx([math.inf, 0.5 + 2 / 3, 0.9 + 2 / 3, math.inf])

    @pytest.mark.parametrize(
        ("epochs", "least", "eta", "expected"),
        [(9, 1, 3, (1, 3)), (10, 1, 3, (1, 3, 9)), (2, 1, 3, (1,)), (8, 2, 2, (2, 4)), (2, 2, 3, ()), (1, 1, 2, ())],
    )
    def test_rungs(self, epochs: int, least: int, eta: int, expected: tuple[int, ...]) -> None:
        assert rungs(epochs, least, eta) == expected


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    """Settings that try all 12 networks of the space, with rungs after epochs 1 and 2 of 4."""
    return make_settings(scheduler="pareto-asha", eta=2, epochs=4, trials=12)


class TestSearch:
    @pytest.mark.parametrize(
        "sampler", ["tpe", *(pytest.param(s, marks=pytest.mark.slow) for s in ("nsga2", "random"))]
    )
    def test_stopped_trials_are_pruned_with_their_rung_and_never_on_the_front(
        self, make_settings: Callable, run_driver: Callable, tmp_path: Path, sampler: str
    ) -> None:
        driver = run_driver(make_settings(scheduler="pareto-asha", eta=2, epochs=4, trials=12, sampler=sampler))
        stopped, scored = of(tmp_path, STOPPED), of(tmp_path, SCORED)
        assert len(stopped) + len(scored) == driver.ledger.spent == 12
        assert stopped
        assert scored
        for record in stopped:
            assert record.state == "PRUNED"
            assert record.quality is None
            assert record.attrs["epochs"] == max(record.epochs) in (1, 2)
            assert f"after epoch {max(record.epochs)} not among the best 1/2 of " in record.attrs["reason"]
        assert {max(r.epochs) for r in scored} == {4}
        assert {r.key for r in driver.ledger.scored.values()} == {r.key for r in scored}

    def test_each_rung_holds_all_trials_that_reached_it_and_decides_by_those_before(
        self, settings: Settings, run_driver: Callable, tmp_path: Path
    ) -> None:
        run_driver(settings)
        records = sorted(of(tmp_path, STOPPED, SCORED), key=lambda r: r.number)
        for epoch in (1, 2):
            reached: list[Record] = []
            for record in [r for r in records if epoch in r.epochs]:
                reached.append(record)
                top1, macs = zip(*((r.epochs[epoch], r.attrs["macs"]) for r in reached), strict=True)
                expected = continues("pareto-asha", 2, len(reached) - 1, top1, [math.log(m) for m in macs])
                assert (max(record.epochs) > epoch) == expected

    def test_a_network_that_was_stopped_is_not_trained_again(
        self, settings: Settings, run_driver: Callable, tmp_path: Path
    ) -> None:
        run_driver(settings)
        trained = [r.key for r in of(tmp_path, STOPPED, SCORED)]
        assert len(trained) == len(set(trained))
        repeats = [r for r in of(tmp_path, REPEATED) if "reason" in r.attrs]
        assert all("was stopped as trial" in r.attrs["reason"] for r in repeats)

    @pytest.mark.slow
    def test_a_resumed_search_knows_its_rungs(
        self, settings: Settings, open_driver: Callable, run_driver: Callable, tmp_path: Path
    ) -> None:
        whole = run_driver(settings, folder=_made(tmp_path / "whole"))
        parts = _made(tmp_path / "parts")
        for trials in (3, 7, 12):
            driver = run_driver(settings.replace(trials=trials), folder=parts)
        assert driver.ledger.rungs == whole.ledger.rungs
        assert [(r.key, r.outcome) for r in read(parts)] == [(r.key, r.outcome) for r in read(tmp_path / "whole")]

    @pytest.mark.slow
    def test_a_trial_killed_at_a_rung_is_decided_as_without_the_kill(
        self, settings: Settings, open_driver: Callable, run_driver: Callable, tmp_path: Path, data: Data
    ) -> None:
        run_driver(settings, folder=_made(tmp_path / "whole"))
        for killed_at in range(1, 20):  # reports before the driver is killed
            folder = _made(tmp_path / f"killed{killed_at}")
            with open_driver(settings, folder) as driver:
                left = killed_at
                while left > 0 and (job := driver.next_job()) is not None:
                    for report in Synthetic()(job, data):
                        left -= 1
                        if not driver.on_report(job.number, report) or left <= 0:
                            break
            run_driver(settings, folder=folder)
            ended = [(r.key, r.outcome, r.epochs) for r in of(folder, STOPPED, SCORED)]
            assert ended == [(r.key, r.outcome, r.epochs) for r in of(tmp_path / "whole", STOPPED, SCORED)]

    def test_a_retry_passes_the_rungs_that_its_network_passed(
        self, make_settings: Callable, open_driver: Callable, tmp_path: Path
    ) -> None:
        """Better trials that reached the rung meanwhile change nothing: no training is lost."""
        with open_driver(make_settings(scheduler="asha", eta=3, epochs=4, trials=12)) as driver:
            first = driver.next_job()
            assert driver.on_report(first.number, Report(1, 10.0, 1.0))
            assert driver.on_report(first.number, Report(2, 11.0, 1.0))
            driver.on_lost(first.number, "its worker died")
            again = driver.next_job()
            assert again.arch == first.arch
            for top1 in (5.0, 4.0, 3.0):
                assert not driver.on_report(driver.next_job().number, Report(1, top1, 1.0))
            driver.ledger.rungs[1]["another"] = (50.0, 1)
            assert driver.on_report(again.number, Report(1, 10.0, 1.0))
            assert driver.on_report(again.number, Report(2, 11.0, 1.0))

    @pytest.mark.slow
    def test_fewer_epochs_are_spent_and_the_cheapest_network_stays(
        self, settings: Settings, make_settings: Callable, run_driver: Callable, tmp_path: Path
    ) -> None:
        found = {}
        for name in ("pareto-asha", "asha", "none"):
            folder = _made(tmp_path / name)
            run_driver(make_settings(scheduler=name, eta=2, epochs=4, trials=12), folder=folder)
            trained = of(folder, STOPPED, SCORED)
            scored = of(folder, SCORED)
            found[name] = (sum(max(r.epochs) for r in trained), min(r.attrs["macs"] for r in scored))
        assert found["pareto-asha"][0] < found["none"][0]
        assert found["pareto-asha"][1] == found["none"][1] < found["asha"][1]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"scheduler": "hyperband"}, "`scheduler`: unknown value 'hyperband'"),
            ({"scheduler": "asha", "epochs": 2, "min_epochs": 2}, "`min_epochs`: 2 leaves no rung below `epochs` 2"),
            ({"scheduler": "asha", "evaluator": "supernet"}, "`scheduler`: shared weights"),
            ({"eta": 1}, "`eta`: 1 is too small"),
            ({"min_epochs": 0}, "`min_epochs`: 0 is too small"),
        ],
    )
    def test_settings_that_contradict_each_other_are_refused(
        self, make_settings: Callable, change: dict, said: str
    ) -> None:
        with pytest.raises(UserError, match=said):
            make_settings(**change)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
