"""A study in SQLite, and the options that name another storage."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from storages import Open, StorageContract, opener

import search.study.sampler
import search.study.study
from search.study.sampler import SAMPLERS, Bounded, tpe
from search.study.storage import sqlite_url
from studies.synthetic import Synthetic
from trainers.datasets.data import Data


@pytest.mark.slow
class TestSqlite(StorageContract):
    @pytest.fixture
    def open_(self, tmp_path: Path) -> Open:
        return opener(sqlite_url(tmp_path), "run")


class TestRefusals:
    """One line, and nothing written."""

    @pytest.mark.parametrize(
        ("url", "named"),
        [
            ("sqlite:///study.db", "--storage: no URL of a PostgreSQL database; accepted: postgresql://"),
            ("postgresql://host", "--storage: no URL of a PostgreSQL database; accepted: postgresql://"),
            ("postgresql://me:secret@host/db", "--storage: holds a password"),
            ("postgresql://host/db?user=me&password=secret", "--storage: holds a password"),
        ],
    )
    def test_a_url_that_will_not_do(self, url: str, named: str, refused: Callable) -> None:
        error = refused(f"--storage {url}")
        assert error.startswith(named)
        assert "secret" not in error

    def test_a_name_without_a_storage(self, refused: Callable) -> None:
        assert refused("--study mine").startswith("--study: has no effect without --storage")

    def test_shared_weights_that_each_driver_would_train(self, refused: Callable) -> None:
        error = refused("--storage postgresql://me@host/db --evaluator supernet")
        assert error.startswith("--storage: with --evaluator supernet all drivers need the same shared weights")

    def test_a_server_that_is_not_there(self, refused: Callable) -> None:
        error = refused("--storage postgresql://me@127.0.0.1:1/db")
        assert error.startswith("--storage: postgresql://me@127.0.0.1:1/db cannot be opened: ")
        assert "accepted: a database that you may write" in error

    def test_the_package_is_missing(self, refused: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        assert "pip install 'res2net-search[postgres]'" in refused("--storage postgresql://me@host/db")


@pytest.mark.slow
def test_what_is_done_for_a_trial_does_not_grow_with_the_study(
    open_driver: Callable, make_settings: Callable, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial is read out of the study a bounded number of times, however many there are."""
    monkeypatch.setitem(SAMPLERS, "tpe", lambda seed: Bounded(tpe(seed).sampler, 10))
    given, read_, seen = search.study.study.record_of, [], []
    monkeypatch.setattr(search.study.study, "record_of", lambda trial: read_.append(trial.number) or given(trial))
    settings = make_settings(space="scale_card_depth_width", trials=60, epochs=1, sampler="tpe")
    with open_driver(settings) as driver:
        while (job := driver.next_job()) is not None:
            for report in Synthetic()(job, data):
                driver.on_report(job.number, report)
            seen.append(len(search.study.sampler.remembered(driver.study._trials, driver.study._front, 10)))
        trials = len(driver.study._trials)
        front = len(driver.study._front)
    assert len(read_) < 12 * trials
    assert max(Counter(read_).values()) < 20
    assert 10 <= seen[-1] <= 10 + front < 60
