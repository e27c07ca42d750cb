"""`studies.object_size`: the IoU of single objects, and networks of equal MACs."""

import numpy as np
import pandas as pd
import pytest

from search.objectives import MACS
from studies.object_size import COLUMNS, SCALES, ious, network, picture, summary
from trainers.datasets import load
from trainers.datasets.scenes import generate


def test_the_truth_is_right_and_the_background_is_wrong() -> None:
    truth = generate(6, 2)
    masks = np.zeros_like(truth.instances)
    for i, slot in zip(*np.nonzero(truth.classes), strict=True):
        masks[i][truth.instances[i] == slot + 1] = truth.classes[i, slot]
    found = ious(masks, truth)
    assert np.array_equal(np.isnan(found), truth.classes == 0)
    assert np.nanmin(ious(masks, truth)) > 0.5  # another object of the class may be close
    assert np.nanmean(found) > 0.97
    assert np.nanmax(ious(np.zeros_like(masks), truth)) == 0


def test_networks_have_equal_macs() -> None:
    data = load("scenes", target="mask", train_images=8, image_size=32)
    found = [MACS.of(network(scale, 1, 3_000_000, data), 32) for scale in SCALES]
    assert max(found) / min(found) < 1.1


def test_gains_are_paired() -> None:
    rows = [
        {"scale": scale, "seed": seed, "macs": 10, **dict.fromkeys(COLUMNS, 50.0 + seed + scale)}
        for scale in SCALES
        for seed in range(3)
    ]
    table = summary(pd.DataFrame(rows)).set_index("scale")
    assert list(table.large_gain[1:]) == pytest.approx([1, 3, 7])
    assert list(table.large_gain_ci95[1:]) == pytest.approx([0, 0, 0])
    assert table.n.tolist() == [3] * 4
    assert picture(table.reset_index(), "title").startswith(b"\x89PNG")
