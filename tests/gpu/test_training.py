"""Training on the device: the CPU's losses, no waits in a step, exact resumption, shared weights, growth."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

import trainers.datasets.data
from res2net import Arch, Stage, create
from res2net.elastic import ElasticRes2Net
from res2net.grow import grow
from space import Skeleton, Space
from trainers.device import device_of
from trainers.epoch import Unfinished
from trainers.evaluate import evaluate
from trainers.images import Images, source
from trainers.recipes import Config
from trainers.resume import unpack
from trainers.start import fitted_arch
from trainers.supernet import Members, SupernetTrainer
from trainers.tasks import TASKS
from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.task import Task
from trainers.train import Trainer

NoWaits = Callable[[], AbstractContextManager[None]]
CPU = torch.device("cpu")
BATCH, STEPS = 12, 5
ARCH = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(2, 4, 4, 1, 2, 1)), stem="cifar", stem_channels=4, se=4)
LARGER = Arch((Stage(2, 2, 6, 2, 4, 2), Stage(3, 4, 8, 1, 3, 1)), stem="cifar", stem_channels=4, se=2, num_classes=3)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "adamw": {"optimizer": "adamw", "lr": 0.002},
    "mixing and averages": {"mixup": 0.2, "cutmix": 1.0, "ema": 0.9, "decay_norms": False},
    "frozen norms": {"frozen_norms": True},
}
TENSORS = [task for task in TASKS.values() if not task.detects]
SPACE = Space(
    "small",
    "micro",
    Skeleton((4, 8), (2, 2), (1, 1), 64, 2, stem_channels=4, num_classes=3),
    {"scale": (1, 2, 3), "cardinality": (1, 2), "depth": (1, 2)},
)


def make(
    device: torch.device, task: Task = CLASSIFICATION, compiled: bool = False, arch: Arch = ARCH, **changes: Any
) -> Trainer:
    data = trainers.datasets.data.load("example_data:Blocks", target=task.target)
    torch.manual_seed(0)
    model = create(fitted_arch(arch, data, task))
    config = Config(**{"epochs": 2, "batch_size": BATCH, "precision": "fp32", "device": str(device), **changes})
    trainer = Trainer(model, data, config, compiled=compiled, task=task)
    trainer.model.train()
    return trainer


def make_supernet(device: torch.device) -> SupernetTrainer:
    members = Members(SPACE.largest(), SPACE.arch(SPACE.cheapest()[0]), lambda rng: SPACE.arch(SPACE.sample(rng)))
    data = trainers.datasets.data.load("example_data:Blocks")
    torch.manual_seed(0)
    config = Config(epochs=2, batch_size=BATCH, precision="fp32", device=str(device))
    trainer = SupernetTrainer(ElasticRes2Net(SPACE), data, config, members)
    trainer.model.train()
    return trainer


def batch(trainer: Trainer, step: int) -> tuple[Tensor, Tensor]:
    """Return the batch of a step, the same on all devices: their random generators differ."""
    images = trainer.train_images
    assert isinstance(images, Images)
    index = torch.arange(BATCH * step, BATCH * (step + 1), device=trainer.device) % len(images)
    return images.batch(index, torch.stack([index % 3, index % 2]), index % 2 > 0)


def losses(trainer: Trainer) -> list[float]:
    return torch.stack([trainer._step(*batch(trainer, step), step) for step in range(STEPS)]).tolist()


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
class TestSteps:
    def test_fp32_has_the_losses_of_the_cpu(self, device: torch.device, changes: dict[str, Any]) -> None:
        ours, theirs = make(device, **changes), make(CPU, **changes)
        assert losses(ours) == pytest.approx(losses(theirs), rel=5e-3)
        for name, value in ours.scored.state_dict().items():
            torch.testing.assert_close(value.cpu(), theirs.scored.state_dict()[name], rtol=0.02, atol=0.02)

    def test_bf16_is_close_to_the_losses_of_the_cpu(self, device: torch.device, changes: dict[str, Any]) -> None:
        ours = make(device, precision="bf16", **changes)
        assert ours.bf16
        assert losses(ours) == pytest.approx(losses(make(CPU, **changes)), rel=0.1)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_no_step_waits(
        self, device: torch.device, changes: dict[str, Any], precision: str, no_waits: NoWaits
    ) -> None:
        trainer = make(device, precision=precision, **changes)
        trainer._step(*batch(trainer, 0), 0)  # libraries may wait while they start
        with no_waits():
            for step in range(1, STEPS):
                trainer._step(*batch(trainer, step), step)
        assert trainer.model.conv1.weight.isfinite().all()

    def test_the_steps_of_an_epoch_do_not_wait(
        self, device: torch.device, changes: dict[str, Any], no_waits: NoWaits
    ) -> None:
        trainer = make(device, **changes)
        trainer._step(*batch(trainer, 0), 0)
        at = Unfinished(trainer.rng.get_state(), torch.zeros(2, device=device))
        with no_waits():
            assert trainer._train_rest(at, None)
        assert at.sums.isfinite().all()

    @pytest.mark.parametrize("stopped", [False, True])
    def test_a_resumed_training_equals_an_uninterrupted_one(
        self, device: torch.device, changes: dict[str, Any], stopped: bool
    ) -> None:
        whole, first, second = (make(device, **changes) for _ in range(3))
        whole.epoch()
        whole.epoch()
        first.epoch()
        if stopped:
            calls = iter([False, False, True])
            assert first.epoch(lambda: next(calls)) is None
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        second.load_state_dict(unpack(file.getvalue()))
        second.epoch()
        for ours, theirs in ((second.model, whole.model), (second.scored, whole.scored)):
            state = theirs.state_dict()
            assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


class TestData:
    def test_images_and_labels_are_on_the_device(self, device: torch.device) -> None:
        trainer = make(device)
        for images in (trainer.train_images, trainer.val_images):
            assert isinstance(images, Images)
            assert {images.pixels.device.type, images.labels.device.type} == {device.type}
            assert {t.device.type for t in next(images.batches(4))} == {device.type}
        assert {t.device.type for t in trainer.model.state_dict().values()} == {device.type}

    def test_batches_are_those_of_the_cpu(self, device: torch.device) -> None:
        for ours, theirs in zip(batch(make(device), 1), batch(make(CPU), 1), strict=True):
            torch.testing.assert_close(ours.cpu(), theirs)

    @pytest.mark.gpu
    def test_auto_takes_the_gpu(self) -> None:
        assert device_of("auto").type == "cuda"


@pytest.mark.parametrize("task", TENSORS, ids=lambda task: task.name)
class TestTasks:
    def test_a_training_has_the_losses_of_the_cpu(self, device: torch.device, task: Task) -> None:
        ours, theirs = make(device, task, lr=0.01), make(CPU, task, lr=0.01)
        assert losses(ours) == pytest.approx(losses(theirs), rel=0.02)

    def test_scores_are_those_of_the_cpu(self, device: torch.device, task: Task, no_waits: NoWaits) -> None:
        ours, theirs = make(device, task), make(CPU, task)
        found, expected = (evaluate(t.scored, t.val_images, task=task) for t in (ours, theirs))
        assert found.loss == pytest.approx(expected.loss, rel=1e-2)
        assert found == pytest.approx(expected, abs=7)  # in %; rounding may decide one of 16 images
        meter = task.meter(device, ours.val_images.classes, ours.val_images.sizes)
        with no_waits(), torch.no_grad():
            for x, y in ours.val_images.batches(8):
                meter.add(ours.scored(x), y)

    def test_no_step_waits(self, device: torch.device, task: Task, no_waits: NoWaits) -> None:
        trainer = make(device, task)
        trainer._step(*batch(trainer, 0), 0)
        with no_waits():
            loss = trainer._step(*batch(trainer, 1), 1)
        assert loss.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detect", "instances"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_detectors_train_and_are_scored(device: torch.device, name: str, precision: str) -> None:
    """Their steps wait for the device: the number of matched objects decides the shapes."""
    trainer = make(device, TASKS[name], lr=0.01, precision=precision)
    assert trainer.epoch().train_loss > 0  # an epoch raises `TrainingFailed` for a loss that is not finite


class TestSupernet:
    def test_a_step_has_the_losses_of_the_cpu(self, device: torch.device) -> None:
        assert losses(make_supernet(device)) == pytest.approx(losses(make_supernet(CPU)), rel=1e-2)

    def test_neither_a_step_nor_calibration_waits(self, device: torch.device, no_waits: NoWaits) -> None:
        trainer = make_supernet(device)
        archs = trainer.step_members(1)
        trainer._step(*batch(trainer, 0), 1)
        trainer.scorer.member(archs[0])
        with no_waits():
            trainer._step(*batch(trainer, 1), 1)
            members = [trainer.scorer.member(arch) for arch in archs]
        assert all(value.isfinite().all() for member in members for value in member.state_dict().values())

    def test_scores_are_those_of_the_cpu(self, device: torch.device) -> None:
        ours, theirs = make_supernet(device), make_supernet(CPU)
        for arch in ours.step_members(0):
            assert ours.scorer(arch).loss == pytest.approx(theirs.scorer(arch).loss, rel=1e-3)


class TestGrowth:
    def test_a_grown_network_keeps_its_outputs_and_its_device(self, device: torch.device) -> None:
        trainer = make(device)
        trainer.epoch()
        states = torch.cuda.get_rng_state_all()
        small = trainer.model.eval()
        grown = grow(small, LARGER, 0)  # type: ignore[arg-type]
        assert all(map(torch.equal, torch.cuda.get_rng_state_all(), states))
        x, _ = next(trainer.val_images.batches(8))
        assert {value.device.type for value in grown.state_dict().values()} == {device.type}
        with torch.no_grad():
            torch.testing.assert_close(grown(x), small(x), rtol=1e-3, atol=1e-3)

    def test_a_grown_network_trains(self, device: torch.device) -> None:
        data = trainers.datasets.data.load("example_data:Blocks")
        model = grow(make(device).model, LARGER, 0)  # type: ignore[arg-type]
        trainer = Trainer(model, data, Config(epochs=1, batch_size=BATCH, device=str(device)))
        assert trainer.epoch().train_loss > 0
        assert len(source(data.val, data, device)) == len(trainer.val_images)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the compiler takes minutes on a CPU
def test_a_compiled_training_has_the_losses_of_an_eager_one(device: torch.device) -> None:
    """On CUDA, `--compile` records CUDA graphs, which must not return the memory of an earlier step."""
    small = Arch((Stage(1, 2, 4, 1, 2, 2),), stem="cifar", stem_channels=4)
    ours, theirs = make(device, compiled=True, arch=small), make(device, arch=small)
    assert losses(ours) == pytest.approx(losses(theirs), rel=5e-3)
