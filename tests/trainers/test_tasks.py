"""Tasks: the contract of all that are registered, and a trainer that asks a task of a test's own."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net import Arch, Stage, create
from res2net.arch import BaseArch
from trainers.datasets.base import COCO_SIZES, OBJECTS, TARGETS, Sizes
from trainers.datasets.data import Data, Split
from trainers.ddp import ALONE, Group
from trainers.evaluate import evaluate
from trainers.images import Images
from trainers.recipes import RECIPES, Config
from trainers.start import fitted_arch
from trainers.tasks import TASKS
from trainers.tasks.metrics import METRICS
from trainers.tasks.task import Metric, Task, described, no_scores
from trainers.train import Epoch, Trainer

CPU = torch.device("cpu")
SIZE = 16  # pixels along a side of the images
SMALL = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4)
QUICK = Config(epochs=2, batch_size=8, crop_padding=0, flip=False, precision="fp32", device="cpu")


class Example(NamedTuple):
    """What the contract needs to know of a task. Each task has a row in `EXAMPLES`.

    classes: names of the data set's classes.
    labels: a function that returns the labels of a number of images, as in a `Split`. All images have equal weights.
    shape: shape of the outputs for one image; () for tasks whose outputs are objects.
    """

    classes: tuple[str, ...]
    labels: Callable[[int], np.ndarray]
    shape: tuple[int, ...]


def numbers(n: int) -> np.ndarray:
    return np.arange(n) % 6


def masks(n: int, classes: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, classes, (n, SIZE, SIZE), np.uint8)


def points(n: int) -> np.ndarray:
    found = np.random.default_rng(n).uniform(0, SIZE, (n, 3, 3)).astype(np.float32)
    found[:, :-1, 2], found[:, -1] = 2, (64, 64, 1)
    return found


def boxes(n: int) -> np.ndarray:
    """Up to two objects in each image, of two classes. The second object of every third image is a crowd."""
    rng = np.random.default_rng(n)
    corners = rng.uniform(0, SIZE / 2, (n, 2, 2))
    rows = np.concatenate([corners, corners + rng.uniform(2, SIZE / 2, (n, 2, 2))], 2)
    found = np.concatenate([rows, rng.integers(1, 3, (n, 2, 1)), np.zeros((n, 2, 1))], 2).astype(np.float32)
    found[::3, 1, 5] = 1
    found[1::3, 1] = 0
    return found


def instances(n: int) -> np.ndarray:
    """The objects of `boxes` as rectangles. The second object is in front."""
    maps = np.zeros((n, SIZE, SIZE), np.int32)
    for image, rows in zip(maps, boxes(n), strict=True):
        for number, (x1, y1, x2, y2, label, crowd) in enumerate(rows.round().astype(int).tolist(), 1):
            image[y1:y2, x1:x2] = OBJECTS * label + number * (1 - crowd)
    return maps


EXAMPLES = {
    "classification": Example(tuple("abcdef"), numbers, (6,)),
    "segment": Example(("background", "a", "b"), partial(masks, classes=3), (3, SIZE, SIZE)),
    "saliency": Example(("object",), partial(masks, classes=2), (1, SIZE, SIZE)),
    "keypoints": Example(("left", "right"), points, (2, SIZE // 4, SIZE // 4)),
    "detect": Example(("background", "a", "b"), boxes, ()),
    "instances": Example(("background", "a", "b"), instances, ()),
    "regression": Example(tuple("abcdef"), numbers, (1,)),
}


def data(task: Task, n: int = 20, n_val: int = 7) -> Data:
    rng, found = np.random.default_rng(0), EXAMPLES[task.name]

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, 3, SIZE, SIZE), np.uint8), found.labels(n))

    return Data("noise", found.classes, split(n), split(n_val), (0.5,) * 3, (0.3,) * 3, task.target)


def labels_of(task: Task, n: int) -> Tensor:
    """Return labels as the trainer has them on the device."""
    d = data(task, n)
    return Images(d.train, d, CPU).labels


def outputs_for(task: Task, n: int) -> Any:
    """Return random outputs for images."""
    if not task.detects:
        return torch.randn(n, *EXAMPLES[task.name].shape)
    found = []
    for rows in torch.from_numpy(boxes(n + 100))[:n]:
        image = {"boxes": rows[:, :4], "labels": torch.tensor([1, 2]), "scores": torch.rand(2).sort(descending=True)[0]}
        found.append(image | {"masks": torch.rand(2, 1, SIZE, SIZE)} if task.name == "instances" else image)
    return found


class Brightness(NamedTuple):
    loss: float
    closeness: float


class Regression:
    """The label as a number: a task whose outputs, loss and metric have nothing to do with classes."""

    name = "regression"
    target = "class"
    head_kind = None
    detects = False
    recipe = "fast"
    metrics = (Metric("closeness", "close", "%", "closeness"),)
    scores = Brightness

    def check(self) -> None:
        pass

    def head_size(self, data: Data) -> int:
        return 1

    def head(self, arch: BaseArch, image_size: int) -> None:
        return None

    def eval_batch(self, image_size: int) -> int:
        return 100

    def targets(self, x: Tensor, labels: Tensor, size: int, config: Config, step: int) -> tuple[Tensor, Tensor]:
        return x, labels.float()[:, None].expand(-1, size)

    def loss(self, outputs: Tensor, targets: Tensor, config: Config) -> Tensor:
        return F.mse_loss(outputs, targets)

    def distilled(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(outputs, teacher)

    def predicted(self, outputs: Tensor) -> Tensor:
        return outputs[:, 0].round().long()

    def picture(self, images: np.ndarray, labels: Tensor) -> list[np.ndarray]:
        return []

    def meter(self, device: torch.device, classes: tuple[str, ...] = (), sizes: Sizes = COCO_SIZES) -> "Meter":
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


OURS = [*TASKS.values(), Regression()]
TENSORS = [task for task in OURS if not task.detects]  # tasks whose outputs are one tensor


def test_every_task_has_an_example() -> None:
    assert EXAMPLES.keys() == {task.name for task in OURS}


@pytest.mark.parametrize("task", OURS, ids=lambda task: task.name)
class TestContract:
    def test_scores_are_the_loss_and_the_metrics_in_order(self, task: Task) -> None:
        assert task.scores._fields == ("loss", *(m.name for m in task.metrics))
        assert all(math.isnan(v) for v in no_scores(task))
        assert task.metrics[0].larger
        assert task.recipe in RECIPES
        assert task.target in TARGETS

    def test_the_first_metric_is_in_front_in_a_row_and_back(self, task: Task) -> None:
        epoch = Epoch(3, 0.5, task.scores(*range(1, 2 + len(task.metrics))), 100.0, 2.0)
        row = epoch.row()
        assert list(row)[:4] == ["epoch", "train_loss", "val_loss", f"val_{task.metrics[0].name}"]
        assert Epoch.from_row(row, task) == epoch

    def test_predictions_have_the_form_of_labels(self, task: Task) -> None:
        labels = labels_of(task, 4)
        found = task.predicted(outputs_for(task, 4))
        assert (found.dtype, found.ndim, len(found)) == (labels.dtype, labels.ndim, 4)
        assert task.name == "detect" or found.shape == labels.shape  # the number of boxes may differ
        images = np.zeros((4, SIZE, SIZE, 3), np.uint8)
        for panels in (task.picture(images, labels), task.picture(images, found)):
            assert [(p.shape, p.dtype) for p in panels] in ([], [((SIZE, SIZE, 3), np.uint8)] * 4)
        assert not images.any()

    def test_a_meter_does_not_depend_on_how_images_are_batched(self, task: Task) -> None:
        outputs, labels = outputs_for(task, 9), labels_of(task, 9)
        found = []
        for size in (1, 4, 9):
            meter = task.meter(CPU, EXAMPLES[task.name].classes)
            for i in range(0, 9, size):
                meter.add(outputs[i : i + size], labels[i : i + size])
            found.append(meter.scores(ALONE))
        assert found[0] == pytest.approx(found[1], rel=1e-5, nan_ok=True)
        assert found[0] == pytest.approx(found[2], rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("task", TENSORS, ids=lambda task: task.name)
class TestTensors:
    def test_the_loss_is_a_mean_and_flows_back_to_the_outputs(self, task: Task) -> None:
        size = task.head_size(data(task))
        outputs = torch.randn(4, *EXAMPLES[task.name].shape, requires_grad=True)
        x, targets = task.targets(torch.zeros(4, 3, SIZE, SIZE), labels_of(task, 4), size, QUICK, 0)
        assert x.shape == (4, 3, SIZE, SIZE)
        whole = task.loss(outputs, targets, QUICK)
        halves = [task.loss(outputs[s], targets[s], QUICK) for s in (slice(2), slice(2, 4))]
        assert whole.item() == pytest.approx(sum(h.item() for h in halves) / 2, rel=1e-5)
        whole.backward()
        assert outputs.grad is not None
        assert outputs.grad.abs().sum() > 0

    def test_the_loss_of_half_precision_is_computed_in_single(self, task: Task) -> None:
        outputs = torch.randn(4, *EXAMPLES[task.name].shape).bfloat16()
        targets = task.targets(torch.zeros(4, 3, SIZE, SIZE), labels_of(task, 4), 1, QUICK, 0)[1]
        assert torch.equal(task.loss(outputs, targets, QUICK), task.loss(outputs.float(), targets, QUICK))

    def test_a_teacher_pulls_the_outputs_towards_its_own(self, task: Task) -> None:
        shape = (4, *EXAMPLES[task.name].shape)
        outputs, teacher = torch.zeros(shape, requires_grad=True), torch.randn(shape)
        before = task.distilled(outputs, teacher)
        before.backward()
        assert outputs.grad is not None
        assert task.distilled(outputs - 0.1 * outputs.grad, teacher) < before

    def test_a_meter_does_not_wait_for_the_device(self, task: Task) -> None:
        """Values on the meta device cannot be read."""
        meta = torch.device("meta")
        meter = task.meter(meta, EXAMPLES[task.name].classes)
        outputs, labels = torch.randn(4, *EXAMPLES[task.name].shape), labels_of(task, 4)
        for _ in range(2):
            meter.add(outputs.to(meta), labels.to(meta))

    def test_a_diverged_network_has_a_loss_that_is_no_number(self, task: Task) -> None:
        meter = task.meter(CPU, EXAMPLES[task.name].classes)
        meter.add(torch.full((4, *EXAMPLES[task.name].shape), math.nan), labels_of(task, 4))
        assert math.isnan(meter.scores(ALONE).loss)

    def test_the_trainer_asks_it(self, task: Task) -> None:
        d, shape = data(task), EXAMPLES[task.name].shape
        torch.manual_seed(0)
        last = nn.Linear(3 * SIZE**2, math.prod(shape))
        model = nn.Sequential(nn.Flatten(), last, nn.Unflatten(1, shape))
        trainer = Trainer(model, d, replace(QUICK, lr=1e-4), task=task)
        x, y = next(Images(d.train, d, CPU).batches(20))
        before = task.loss(model(x), task.targets(x, y, task.head_size(d), QUICK, 0)[1], QUICK).item()
        first, second = trainer.epoch(), trainer.epoch()
        assert first.train_loss == pytest.approx(before, rel=0.1)
        assert second.train_loss < first.train_loss
        assert type(second.val) is task.scores
        assert evaluate(model, trainer.val_images, task=task) == second.val


class Pair:
    """One of two processes that are threads."""

    def __init__(self, rank: int, sent: dict[int, Any], barrier: threading.Barrier) -> None:
        self.rank, self.sent, self.barrier = rank, sent, barrier

    def _exchanged(self, own: Any) -> list[Any]:
        self.sent[self.rank] = own
        self.barrier.wait()
        both = [self.sent[0], self.sent[1]]
        self.barrier.wait()
        return both

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchanged(tensor)).sum(0)

    def gather(self, rows: Tensor) -> Tensor:
        return torch.cat([part for part in self._exchanged(rows) if len(part)])

    def gather_objects(self, items: list[Any]) -> list[Any]:
        return [item for part in self._exchanged(items) for item in part]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
class TestOurs:
    def test_two_processes_have_the_scores_of_one(self, task: Task) -> None:
        outputs, labels = outputs_for(task, 9), labels_of(task, 9)
        meters = [task.meter(CPU, EXAMPLES[task.name].classes) for _ in range(3)]
        for meter, own in zip(meters, (slice(0, None, 2), slice(1, None, 2), slice(None)), strict=True):
            meter.add(outputs[own], labels[own])
        sent, barrier = dict[int, Any](), threading.Barrier(2, timeout=60)
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda rank: meters[rank].scores(Pair(rank, sent, barrier)), range(2)))
        assert found[0] == pytest.approx(found[1], nan_ok=True)
        assert found[0] == pytest.approx(meters[2].scores(ALONE), rel=1e-6, nan_ok=True)

    def test_a_network_with_its_head_has_such_outputs(self, task: Task) -> None:
        if task.detects:
            pytest.skip("see test_rcnn.py")
        d = data(task)
        arch = fitted_arch(SMALL, d, task)
        torch.manual_seed(0)
        model, labels = create(arch), labels_of(task, 4)
        x = torch.randn(4, 3, SIZE, SIZE)
        assert model.eval()(x).shape == (4, *EXAMPLES[task.name].shape)
        task.loss(model.train()(x), task.targets(x, labels, task.head_size(d), QUICK, 0)[1], QUICK).backward()
        assert all(p.grad is not None for p in model.parameters())
        outputs = model(x)
        assert task.distilled(outputs, outputs.detach()) <= task.distilled(outputs, -outputs.detach())

    def test_its_first_metric_scores_networks(self, task: Task) -> None:
        metric = METRICS[task.metrics[0].name]
        assert metric.task is task
        assert metric.of(task.scores(*range(1 + len(task.metrics)))) == 1
        assert metric.key == f"val_{task.metrics[0].name}"


def test_metrics_are_described_with_their_units() -> None:
    assert described(TASKS["classification"], (TASKS["classification"].scores(1.0, 50.0, 100.0))) == (
        "top-1 50.00 %  top-5 100.00 %"
    )
    assert described(TASKS["saliency"], TASKS["saliency"].scores(1.0, 91.0, 0.0647)) == "max-F 91.00 %  MAE 0.065"
    assert described(TASKS["saliency"], TASKS["saliency"].scores(1.0, 9.5, 0.5), 6) == "max-F   9.50 %  MAE  0.500"


def test_a_row_of_an_earlier_version_may_lack_a_metric() -> None:
    row = {"epoch": 1, "train_loss": 2.0, "val_loss": 1.0, "val_top1": 40.0, "images_per_second": 9.0, "seconds": 1.0}
    epoch = Epoch.from_row(row, TASKS["classification"])
    assert epoch.val_top1 == 40.0
    assert math.isnan(epoch.val.top5)
    assert list(epoch.row()) == [*row, "val_top5"]
