"""Metrics that score networks, against counts by hand, and a user's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from res2net.errors import UserError
from trainers.ddp import ALONE
from trainers.epoch import TrainingFailed
from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.metrics import METRICS, balanced, metric_of

CLASSES = 7
OF_CLASSES = [name for name, metric in METRICS.items() if metric.task.name == "classification"]
batches = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def drawn(sizes: list[int], seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, CLASSES, generator=rng), torch.randint(CLASSES, (n,), generator=rng)) for n in sizes]


def score(name: str, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    metric = metric_of(name)
    meter = metric.task.meter(torch.device("cpu"))
    for logits, labels in parts:
        meter.add(logits, labels)
    return metric.of(meter.scores(ALONE))


class TestBuiltIn:
    @given(batches, st.integers(0, 99))
    def test_they_equal_counts_by_hand(self, sizes: list[int], seed: int) -> None:
        parts = drawn(sizes, seed)
        logits, labels = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        order = np.argsort(-logits, axis=1)
        right = order[:, 0] == labels
        recalls = [right[labels == c].mean() for c in range(CLASSES) if (labels == c).any()]
        assert score("top1", parts) == pytest.approx(100 * right.mean())
        assert score("top5", parts) == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).mean())
        assert score("balanced", parts) == pytest.approx(100 * np.mean(recalls))

    @pytest.mark.parametrize("name", OF_CLASSES)
    def test_the_other_scores_stay(self, name: str) -> None:
        parts = drawn([5, 3], 0)
        meters = [task.meter(torch.device("cpu")) for task in (METRICS[name].task, CLASSIFICATION)]
        for meter in meters:
            for logits, labels in parts:
                meter.add(logits, labels)
        found, expected = (meter.scores(ALONE) for meter in meters)
        assert (found.loss, found.top1, found.top5) == pytest.approx(tuple(expected))

    def test_chance_and_keys(self) -> None:
        assert [METRICS[n].chance(10) for n in ("top1", "top5", "balanced")] == [10, 50, 10]
        assert METRICS["top5"].chance(3) == 100
        assert [METRICS[n].key for n in OF_CLASSES] == ["val_top1", "val_top5", "val_balanced"]

    def test_a_rare_class_counts_as_much_as_a_frequent_one(self) -> None:
        logits = torch.eye(2)[torch.tensor([0] * 9 + [0])]
        labels = torch.tensor([0] * 9 + [1])
        assert balanced(logits, labels) == 50


class TestUsersOwn:
    @pytest.fixture
    def module(self, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
        def write(body: str) -> str:
            name = f"own_metric_{abs(hash(body))}"
            path = tmp_path / f"{name}.py"  # type: ignore[operator]
            path.write_text(f"def share(logits, labels):\n    return {body}\nNUMBER = 3\n")
            monkeypatch.syspath_prepend(str(tmp_path))
            return name

        return write

    def test_a_function_of_all_logits_and_labels(self, module: Callable[[str], str]) -> None:
        name = f"{module('10 * len(labels) + logits.shape[1]')}:share"
        assert score(name, drawn([2, 3], 0)) == 10 * 5 + CLASSES
        assert metric_of(name).key == "val_share"
        assert metric_of(name).chance(10) == 0

    @pytest.mark.parametrize("body", ["101", "-1", "float('inf')"])
    def test_a_value_that_is_no_share_fails_the_training(self, module: Callable[[str], str], body: str) -> None:
        with pytest.raises(TrainingFailed, match=r"metric .*share is .*; accepted: 0 to 100 \(%\)"):
            score(f"{module(body)}:share", drawn([2], 0))

    def test_nan_is_left_to_the_search(self, module: Callable[[str], str]) -> None:
        assert math.isnan(score(f"{module('float(chr(110) + chr(97) + chr(110))')}:share", drawn([2], 0)))

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("top_1", "unknown value 'top_1'; did you mean 'top1'"),
            ("{}:NUMBER", "is a int; accepted: a function"),
            ("{}:other", "has no 'other'"),
        ],
    )
    def test_another_name_is_refused(self, module: Callable[[str], str], name: str, said: str) -> None:
        with pytest.raises(UserError, match=r"^`metric`: ") as error:
            metric_of(name.format(module("1")))
        assert said in str(error.value)
