"""The comparison of grown networks with networks from scratch, on a few images."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pandas as pd
import pytest

from res2net import contains
from studies import growth
from trainers.datasets.data import Data, load


@pytest.fixture(scope="module")
def images() -> Data:
    return load("shapes", None, seed=0, train_images=256)


def test_each_network_of_the_chain_contains_the_one_before(images: Data) -> None:
    archs = growth.chain(images)
    assert all(contains(b, a) and a != b for a, b in itertools.pairwise(archs))


def test_the_budgets_are_equal(images: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "CHAIN", growth.CHAIN[:3])
    monkeypatch.setattr(growth, "SCORED", (2,))
    args = argparse.Namespace(data="shapes", data_dir=None, train_images=256, trunk=1, anneal=1)
    rows = pd.DataFrame(growth.compare(0, args)).set_index("way")
    assert list(rows.index) == [growth.GROWN, growth.EPOCHS, growth.COSTS]
    assert rows.own_epochs[growth.EPOCHS] == 4  # two inherited, two of its own
    assert 2 < rows.own_epochs[growth.COSTS] < 4
    assert rows.mmac_epochs[growth.COSTS] == pytest.approx(rows.mmac_epochs[growth.GROWN], abs=0.01)
    assert rows.val_top1.between(0, 100).all()


def test_the_summary_pairs_seeds(tmp_path: Path) -> None:
    rows = [
        {"seed": seed, "macs": 1, "way": way, "val_top1": 70 + gain + seed}
        for seed in range(3)
        for way, gain in ((growth.GROWN, 1), (growth.EPOCHS, 0.5), (growth.COSTS, 0))
    ]
    table = growth.summary(pd.DataFrame(rows)).set_index("way")
    assert list(table.n) == [3, 3, 3]
    assert list(table.minus_grown) == [0, -0.5, -1]
    assert table.ci95[growth.COSTS] == 0
