"""Replays of learning curves: what they spend, what they keep, what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search.scheduler import SCHEDULERS
from studies import bench_scheduler
from studies.bench_scheduler import Curve, read, replay, spent_until

CURVES = [Curve(10 * (i + 1), tuple(float(e * (i + 1)) for e in range(1, 10))) for i in range(12)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys = [f"k{i}" for i in range(12)]
    pd.DataFrame({"key": keys, "macs": [c.macs for c in CURVES]}).to_csv(tmp_path / "members.csv", index=False)
    rows = [(k, "alone", e, t) for k, c in zip(keys, CURVES, strict=True) for e, t in enumerate(c.top1, 1)]
    pd.DataFrame(rows, columns=["key", "run", "epoch", "val_top1"]).to_csv(tmp_path / "curves.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("workers", [1, 5])
def test_every_network_is_tried_once_and_every_epoch_counted(scheduler: str, workers: int) -> None:
    found = replay(CURVES, scheduler, 3, 1, workers, 0)
    assert len(set(found.full)) == len(found.full)
    assert np.all(np.diff(found.hypervolume) >= 0)
    if scheduler == "none":
        assert set(found.full) == set(CURVES)
        assert len(found.hypervolume) == 12 * 9
    else:  # each has an epoch, some three, few nine
        assert 12 + 4 * 2 + 2 * 6 <= len(found.hypervolume) < 12 * 9


def test_accuracy_alone_loses_the_cheap_ones_where_all_are_on_the_front() -> None:
    curves = [Curve(i, tuple(float(e * i) for e in range(1, 10))) for i in range(1, 61)]
    cheapest = {
        s: np.mean([min(c.macs for c in replay(curves, s, 3, 1, 1, i).full) for i in range(20)]) for s in SCHEDULERS
    }
    assert cheapest["none"] == 1
    assert cheapest["pareto-asha"] < 5
    assert cheapest["asha"] > 15


def test_epochs_until_a_hypervolume() -> None:
    assert spent_until(np.array([0.0, 1.0, 1.0, 2.0]), 1.0) == 2
    assert spent_until(np.array([0.0, 1.0]), 3.0) == float("inf")


def test_the_command_reads_what_rank_wrote(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert read(folder, "alone") == CURVES
    assert bench_scheduler.main([str(folder), "--seeds", "2", "--out", str(folder / "out")]) == 0
    assert {"replays.csv", "scheduler.png", "about.json"} == {p.name for p in (folder / "out").iterdir()}
    table = pd.read_csv(folder / "out" / "replays.csv")
    assert list(table.scheduler) == [s for s in SCHEDULERS for _ in range(2)]
    assert set(table[table.scheduler == "none"].hypervolume) == {1.0}
    assert "pareto-asha" in capsys.readouterr().out


def test_curves_that_are_not_there_are_said(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert bench_scheduler.main([str(folder), "--run", "alone_again"]) == 2
    assert "12 of 12 members have no curve 'alone_again'" in capsys.readouterr().err
    assert bench_scheduler.main([str(folder / "no")]) == 2
    assert "accepted: a folder of studies.rank" in capsys.readouterr().err
