"""`--repeat K`: the networks of the final front are trained with K seeds, and the front is drawn by means."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from search.api import load, search
from search.driver import Driver
from search.evaluators import trial_seed
from search.export import export
from search.front import front
from search.ledger import Ledger, Rules
from search.objectives import MACS
from search.report.figures import _draw_attainment, new_figure
from search.report.tables import trials_frame
from search.settings import Settings
from search.study.storage import read
from search.study.trials import AGAIN, FAILED, ORPHAN, SCORED, Record
from search.worker import Job, Report
from studies.synthetic import Synthetic
from trainers.datasets.data import Data

NOISE = 4.0  # points of accuracy between seeds


class Killed(BaseException):
    """Stands for a `kill -9` of the driver."""


@pytest.fixture
def settings(make_settings: Callable) -> Settings:
    return make_settings(trials=12, epochs=1, sampler="random", repeat=3)


def noisy(job: Job, data: Data) -> Iterator[Report]:
    """Report an accuracy that depends on the seed of the training."""
    for report in Synthetic(weights=True)(job, data):
        luck = random.Random(job.config.seed).uniform(-NOISE, NOISE)
        yield replace(report, quality=report.quality + luck)


def of(folder: Path, *outcomes: str) -> list[Record]:
    return [r for r in read(folder) if r.outcome in outcomes]


def seeds_of(folder: Path) -> dict[int, list[float]]:
    """Return the accuracies of each network that was trained: its first trial's, then those of further seeds."""
    out = {r.number: [r.quality or 0.0] for r in of(folder, SCORED)}
    for again in of(folder, AGAIN):
        out[again.attrs["again"]].append(again.quality or 0.0)
    return out


class TestSearch:
    def test_the_front_is_trained_with_all_seeds(
        self, run_driver: Callable, settings: Settings, tmp_path: Path
    ) -> None:
        driver: Driver = run_driver(settings, noisy)
        books, seeds = driver.ledger, seeds_of(tmp_path)
        assert len(of(tmp_path, SCORED)) == books.spent == 12
        for record in books.front:
            assert record.seeds == tuple(seeds[record.number])
            assert len(set(record.seeds)) == 3
            assert record.quality == pytest.approx(statistics.fmean(record.seeds))
        again = [(r.attrs["again"], r.attrs["sample"]) for r in of(tmp_path, AGAIN)]
        assert len(set(again)) == len(again)
        assert {sample for _, sample in again} == {1, 2}

    def test_it_is_the_front_of_the_means(self, run_driver: Callable, settings: Settings, tmp_path: Path) -> None:
        driver: Driver = run_driver(settings, noisy)
        records = of(tmp_path, SCORED)
        means = [statistics.fmean(seeds_of(tmp_path)[r.number]) for r in records]
        expected = [records[i].number for i in front(means, [r.attrs["macs"] for r in records])]
        assert [r.number for r in driver.ledger.front] == expected
        assert driver.ledger.best[0].quality == max(means)

    def test_other_seeds_train_otherwise_and_nothing_else_changes(
        self, run_driver: Callable, settings: Settings, tmp_path: Path
    ) -> None:
        jobs: list[Job] = []

        def work(job: Job, data: Data) -> Iterator[Report]:
            jobs.append(job)
            yield from noisy(job, data)

        run_driver(settings, work)
        first = {job.number: job for job in jobs}
        for record in of(tmp_path, AGAIN):
            job, before = first[record.number], first[record.attrs["again"]]
            assert job.arch == before.arch
            assert job.config == replace(before.config, seed=job.config.seed)
            assert job.config.seed == trial_seed(0, job.arch, record.attrs["sample"]) != before.config.seed

    def test_without_it_nothing_is_trained_again(
        self, run_driver: Callable, settings: Settings, tmp_path: Path
    ) -> None:
        run_driver(settings.replace(repeat=1), noisy)
        assert not of(tmp_path, AGAIN)

    def test_a_finished_search_gets_further_seeds(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        search(settings.replace(repeat=1), tmp_path / "run", work=noisy)
        result = search(settings, tmp_path / "run", work=noisy)
        assert result.front.n.tolist() == [3] * len(result.front)
        assert len(of(tmp_path / "run", SCORED)) == 12

    def test_a_killed_search_trains_each_seed_once(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        whole = search(settings, tmp_path / "whole", work=noisy)

        def dies(job: Job, data: Data) -> Iterator[Report]:
            if job.number == 14:
                raise Killed
            yield from noisy(job, data)

        with pytest.raises(Killed):
            search(settings, tmp_path / "run", work=dies)
        cut = search(settings, tmp_path / "run", work=noisy)
        assert len(of(tmp_path / "run", ORPHAN)) == 1
        shown = ["val_top1", "val_sd", "n", "macs"]
        assert cut.front[shown].equals(whole.front[shown])

    def test_a_seed_that_fails_costs_no_trial_and_is_not_tried_forever(
        self, run_driver: Callable, settings: Settings, tmp_path: Path
    ) -> None:
        seen: set[str] = set()

        def work(job: Job, data: Data) -> Iterator[Report]:
            if job.arch.key() in seen:
                yield Report(0, reason="it broke")
            else:
                seen.add(job.arch.key())
                yield from noisy(job, data)

        driver: Driver = run_driver(settings, work)
        assert len(of(tmp_path, SCORED)) == 12
        assert len(of(tmp_path, FAILED)) == 2 * len(driver.ledger.front)
        assert all(len(record.seeds) == 1 for record in driver.ledger.front)

    def test_grown_networks_repeat_their_lineage(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                yield replace(report, trunk=b"weights" if report.epoch == job.trunk else None)

        settings = make_settings(evaluator="grow", trials=12, epochs=2, sampler="random", repeat=2)
        search(settings, tmp_path / "run", work=work)
        records = {r.number: r for r in read(tmp_path / "run")}
        again = of(tmp_path / "run", AGAIN)
        assert any("parent" in r.attrs for r in again)
        for record in again:
            first = records[record.attrs["again"]]
            assert record.attrs["inherited"] == first.attrs["inherited"]
            if "parent" in first.attrs:
                parent = records[record.attrs["parent"]]
                assert (parent.outcome, parent.attrs["again"]) == (AGAIN, first.attrs["parent"])
            assert record.quality is not None

    def test_a_resumed_lineage_is_repeated_too(self, make_settings: Callable, loaded: Data, tmp_path: Path) -> None:
        """The trunk is that of the interrupted trial, and the score that of its retry."""

        def work(job: Job, data: Data) -> Iterator[Report]:
            for report in noisy(job, data):
                trunk = b"weights" if report.epoch == job.trunk and job.checkpoint is None else None
                yield replace(report, trunk=trunk, checkpoint=b"state")
                if job.number == 0 and trunk:
                    raise KeyboardInterrupt

        settings = make_settings(evaluator="grow", trials=12, epochs=2, sampler="random", repeat=2)
        assert search(settings, tmp_path / "run", work=work).interrupted
        result = search(settings, tmp_path / "run", work=work)
        assert 0 in result.trials.parent.dropna().to_list()
        assert result.front.n.tolist() == [2] * len(result.front)


class TestReports:
    def test_tables_plots_and_cards_show_the_spread(self, settings: Settings, loaded: Data, tmp_path: Path) -> None:
        result = search(settings, tmp_path / "run", work=noisy)
        row = result.front.iloc[-1]
        assert row.n == 3
        assert row.val_sd == pytest.approx(statistics.stdev(seeds_of(tmp_path / "run")[row.number]))
        assert load(tmp_path / "run").front.equals(result.front)
        assert "(n = 3)" in (tmp_path / "run/pareto.html").read_text()
        labels = result.plot().axes[0].get_legend_handles_labels()[1]
        assert "attained by one to all of 3 seeds" in labels
        export(tmp_path / "run", "best", tmp_path / "model")
        assert "(n = 3, +- " in (tmp_path / "model/README.md").read_text()


def test_attainment_surfaces_are_those_of_the_seeds_fronts() -> None:
    """Two networks, three seeds: the cheap one's accuracies 70, 71, 72, the dear one's 80, 60, 75."""
    attrs = [{"key": str(macs), "macs": macs, "epochs": 1} for macs in (100, 200)]
    seeds = (70.0, 71.0, 72.0), (80.0, 60.0, 75.0)
    records = [
        Record(i, "COMPLETE", SCORED, {}, a, statistics.fmean(s), {}, s)
        for i, (a, s) in enumerate(zip(attrs, seeds, strict=True))
    ]
    axes = new_figure().add_subplot()
    _draw_attainment(axes, Ledger(Rules((MACS,), 1)).add(records), MACS)
    (median,) = axes.get_lines()
    assert median.get_xdata().tolist() == [100, 200]
    assert list(median.get_ydata()) == [71.0, 75.0]
    (band,) = axes.collections
    heights = {float(y) for _, y in band.get_paths()[0].vertices}
    assert {70.0, 72.0, 71.0, 80.0} <= heights  # from what every seed attains (70, 71) to the luckiest (72, 80)


class TestMaybe:
    def record(self, number: int, top1: float, macs: int, *seeds: float) -> Record:
        attrs = {"key": str(macs), "macs": macs, "epochs": 1}
        return Record(number, "COMPLETE", SCORED, {}, attrs, statistics.fmean([top1, *seeds]), {}, (top1, *seeds))

    def books(self, *records: Record) -> Ledger:
        return Ledger(Rules((MACS,), 1)).add(records)

    def test_a_network_within_the_noise_may_be_on_the_front(self) -> None:
        best = self.record(0, 80.0, 100, 81.0, 79.0)
        close, far = self.record(1, 79.5, 110), self.record(2, 60.0, 120)
        books = self.books(best, close, far)
        assert books.noise is not None
        assert books.noise[0] == pytest.approx(1.0)
        assert [r.number for r in books.maybe] == [1]

    def test_nothing_is_known_from_single_seeds(self) -> None:
        books = self.books(self.record(0, 80.0, 100), self.record(1, 79.9, 110))
        assert (books.noise, books.maybe) == (None, [])

    def test_the_front_itself_is_not_named(self) -> None:
        books = self.books(self.record(0, 80.0, 100, 80.2), self.record(1, 85.0, 110, 85.2))
        assert books.maybe == []


def test_a_mean_that_falls_lets_dominated_networks_return() -> None:
    def record(number: int, outcome: str, top1: float, macs: int, **attrs: object) -> Record:
        attrs = {"key": str(macs), "macs": macs, "epochs": 1, **attrs}
        return Record(number, "COMPLETE", outcome, {}, attrs, top1, {}, (top1,))

    lucky, steady = record(0, SCORED, 80.0, 100), record(1, SCORED, 75.0, 200)
    books = Ledger(Rules((MACS,), 1)).add([lucky, steady])
    assert [r.number for r in books.front] == [0]
    books.add([record(2, AGAIN, 60.0, 100, again=0, sample=1)])
    assert [(r.number, r.quality) for r in books.front] == [(0, 70.0), (1, 75.0)]
    assert books.spent == 2
    table = trials_frame([lucky, steady, record(2, AGAIN, 60.0, 100, again=0, sample=1)], books)
    assert table.n.tolist() == [2, 1, 1]
    assert table.val_top1.tolist() == [70.0, 75.0, 60.0]
    assert math.isnan(table.val_sd[1])
