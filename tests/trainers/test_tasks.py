"""Tasks: the contract of all that are registered, and a trainer that asks a task of a test's own."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.datasets.data import Data, Split
from trainers.ddp import ALONE, Group
from trainers.evaluate import evaluate
from trainers.images import Images
from trainers.recipes import Config
from trainers.tasks import TASKS
from trainers.tasks.task import Metric, Task, described, no_scores
from trainers.train import Epoch, Trainer

CPU = torch.device("cpu")
QUICK = Config(epochs=2, batch_size=8, crop_padding=0, flip=False, precision="fp32", device="cpu")


def data(n: int = 20, n_val: int = 7) -> Data:
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, 3, 8, 8), np.uint8), np.arange(n) % 6)

    return Data("noise", tuple("abcdef"), split(n), split(n_val), (0.5,) * 3, (0.3,) * 3)


class Brightness(NamedTuple):
    loss: float
    closeness: float


class Regression:
    """The label as a number: a task whose outputs, loss and metric have nothing to do with classes."""

    name = "regression"
    metrics = (Metric("closeness", "close", "%", "closeness"),)
    scores = Brightness

    def head_size(self, data: Data) -> int:
        return 1

    def targets(self, x: Tensor, labels: Tensor, size: int, config: Config, step: int) -> tuple[Tensor, Tensor]:
        return x, labels.float()[:, None].expand(-1, size)

    def loss(self, outputs: Tensor, targets: Tensor, config: Config) -> Tensor:
        return F.mse_loss(outputs, targets)

    def distilled(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(outputs, teacher)

    def meter(self, device: torch.device) -> "Meter":
        return Meter()


class Meter:
    """Keeps every output, as a metric that is not a mean over images must."""

    def __init__(self) -> None:
        self.errors: list[Tensor] = []

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        self.errors.append(outputs[:, 0] - labels)

    def scores(self, group: Group) -> Brightness:
        errors = torch.cat(self.errors)
        return Brightness(float(errors.square().mean()), float(100 * (errors.abs() < 1).float().mean()))


@pytest.mark.parametrize("task", [*TASKS.values(), Regression()], ids=lambda task: task.name)
class TestContract:
    def test_scores_are_the_loss_and_the_metrics_in_order(self, task: Task) -> None:
        assert task.scores._fields == ("loss", *(m.name for m in task.metrics))
        assert all(math.isnan(v) for v in no_scores(task))

    def test_the_first_metric_is_in_front_in_a_row_and_back(self, task: Task) -> None:
        epoch = Epoch(3, 0.5, task.scores(*range(1, 2 + len(task.metrics))), 100.0, 2.0)
        row = epoch.row()
        assert list(row)[:4] == ["epoch", "train_loss", "val_loss", f"val_{task.metrics[0].name}"]
        assert Epoch.from_row(row, task) == epoch

    def test_the_loss_is_a_mean_and_flows_back_to_the_outputs(self, task: Task) -> None:
        d = data()
        size = task.head_size(d)
        outputs = torch.randn(4, size, requires_grad=True)
        x, targets = task.targets(torch.zeros(4, 3, 8, 8), torch.arange(4), size, QUICK, 0)
        assert x.shape == (4, 3, 8, 8)
        whole = task.loss(outputs, targets, QUICK)
        halves = [task.loss(outputs[s], targets[s], QUICK) for s in (slice(2), slice(2, 4))]
        assert whole.item() == pytest.approx(sum(h.item() for h in halves) / 2, rel=1e-5)
        whole.backward()
        assert outputs.grad is not None
        assert outputs.grad.abs().sum() > 0

    def test_a_teacher_pulls_the_outputs_towards_its_own(self, task: Task) -> None:
        size = task.head_size(data())
        outputs, teacher = torch.zeros(4, size, requires_grad=True), torch.randn(4, size)
        before = task.distilled(outputs, teacher)
        before.backward()
        assert outputs.grad is not None
        assert task.distilled(outputs - 0.1 * outputs.grad, teacher) < before

    def test_a_meter_does_not_depend_on_how_images_are_batched(self, task: Task) -> None:
        outputs, labels = torch.randn(9, task.head_size(data())), torch.arange(9) % 6
        found = []
        for size in (1, 4, 9):
            meter = task.meter(CPU)
            for i in range(0, 9, size):
                meter.add(outputs[i : i + size], labels[i : i + size])
            found.append(meter.scores(ALONE))
        assert found[0] == pytest.approx(found[1], rel=1e-5)
        assert found[0] == pytest.approx(found[2], rel=1e-5)

    def test_the_trainer_asks_it(self, task: Task) -> None:
        d = data()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, task.head_size(d)))
        trainer = Trainer(model, d, replace(QUICK, lr=1e-4), task=task)
        x, y = next(Images(d.train, d, CPU).batches(20))
        before = task.loss(model(x), task.targets(x, y, task.head_size(d), QUICK, 0)[1], QUICK).item()
        first, second = trainer.epoch(), trainer.epoch()
        assert first.train_loss == pytest.approx(before, rel=0.1)
        assert second.train_loss < first.train_loss
        assert type(second.val) is task.scores
        assert evaluate(model, trainer.val_images, task=task) == second.val


def test_metrics_are_described_with_their_units() -> None:
    assert described(TASKS["classification"], (TASKS["classification"].scores(1.0, 50.0, 100.0))) == (
        "top-1 50.00 %  top-5 100.00 %"
    )


def test_a_row_of_an_earlier_version_may_lack_a_metric() -> None:
    row = {"epoch": 1, "train_loss": 2.0, "val_loss": 1.0, "val_top1": 40.0, "images_per_second": 9.0, "seconds": 1.0}
    epoch = Epoch.from_row(row, TASKS["classification"])
    assert epoch.val_top1 == 40.0
    assert math.isnan(epoch.val.top5)
    assert list(epoch.row()) == [*row, "val_top5"]
