"""Rank correlations by hand, and members spread over the space."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

import space
from res2net import Arch, Stage, cost, create
from studies.rank import TRUTH, choose, correlations, interval, kendall, spearman, synflow


def test_tau_counts_pairs() -> None:
    a, b = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])
    assert kendall(a, b) == pytest.approx((5 - 1) / 6)
    assert kendall(a, -a) == pytest.approx(-1)
    assert spearman(a, b) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_ties_are_left_out_of_their_own_count() -> None:
    """Of six pairs one is tied in `a` alone: five are ordered alike."""
    assert kendall(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(5 / np.sqrt(5 * 6))


def test_the_interval_narrows_with_members() -> None:
    rng = np.random.default_rng(0)

    def width(n: int) -> float:
        a = rng.normal(size=n)
        low, high = interval(kendall, a, a + rng.normal(size=n))
        assert low < kendall(a, a + 0) <= 1
        return high - low

    assert width(200) < width(15)


def test_members_are_spread_over_scale_and_macs() -> None:
    allowed = space.get("scale_card_depth", "micro")
    members = choose(allowed, 30, 0)
    assert members == choose(allowed, 30, 0) != choose(allowed, 30, 1)
    assert len(set(members)) == 30
    assert set(Counter(a.stages[0].scale for a in members).values()) == {5}
    macs = [cost(a, 32).macs for a in members]
    assert max(macs) > 15 * min(macs)
    assert len(choose(space.get("scale", "micro"), 30, 0)) == 6  # all there are


def test_the_table_has_a_row_for_each_score_that_is_whole() -> None:
    frame = pd.DataFrame(
        {TRUTH: [1.0, 2, 3, 4], "macs": [1, 2, 3, 4], "params": [4, 3, 2, 1], "supernet": [1, 2, 3, None]}
    )
    table = correlations(frame).set_index("score")
    assert set(table.index) == {"macs", "params"}
    assert (table.tau["macs"], table.tau["params"]) == (1.0, -1.0)


def test_synflow_sees_the_network_and_not_its_signs() -> None:
    arch = Arch((Stage(1, 4, 4, 1, 2, 2),), stem="cifar", stem_channels=4, num_classes=3)
    torch.manual_seed(0)
    model = create(arch)
    before = synflow(create(arch), 8)
    with torch.no_grad():
        for p in model.parameters():
            p.neg_()
    torch.manual_seed(0)
    assert synflow(model, 8) == synflow(create(arch), 8)
    assert before != synflow(create(Arch((Stage(2, 4, 4, 1, 2, 2),), stem="cifar", num_classes=3)), 8)
