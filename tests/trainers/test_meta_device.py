"""Bare steps on the meta device, whose tensors have shapes and no values.

A step that reads a value fails there, and so does one that mixes in a tensor of the CPU. On CUDA, the first would wait
for the device, and the second would fail. Each test ends with meta tensors of the right shapes: nothing was read back.

Detection and instance segmentation are left out: the shapes in their losses depend on the values (matched anchors, kept
proposals), so they wait for the device in each step. The optimizer's fused kernels and autocast do not exist on meta.
Image files as a stream are in test_folder.py and test_mask_data.py, networks and growth in tests/res2net.

Branches on the device type that no test on meta takes. The tests marked `gpu` are for these (tests/gpu):

- trainers/device.py: `auto` prefers CUDA; bf16 where the GPU has it, by autocast to CUDA; an index out of range.
- trainers/train.py: `compiled` uses CUDA graphs (`reduce-overhead`).
- trainers/stream.py: pinned memory for bytes and targets, copies that do not block, events that guard its reuse.
- trainers/loop.py: CUDA's cached memory is given back before a smaller batch is tried.
- trainers/ddp.py: NCCL in place of gloo, `nn.SyncBatchNorm` in place of our own, the device of each process.
- trainers/evaluate.py: `optimize` runs on a CPU only; elsewhere the network is scored in channels-last layout.
- trainers/meta.py: the names of the GPUs.
- res2net/heads/rcnn.py: autocast of the maps' device is turned off around the detector.
- res2net/deploy/timing.py: events in the GPU's queue in place of a clock; waits; ONNX's forms are refused.
- res2net/deploy/memory.py: the peak that PyTorch allocated on the GPU, in place of resident memory.
- search/latency.py: text of an option.
- search/measure.py: the name of the GPU in the table; `auto`.
- search/measuring.py: the name of the GPU in a latency table.
- search/calibration.py: CUDA's cached memory is given back to the workers.
- search/prepared.py: the device of a latency table that a search measures first.
- search/execute/pool.py: the GPUs that each worker process sees.
- search/execute/room.py: the number of GPUs of this machine.
- res2net/latency.py: text about a table's field.

Branches for a CPU alone, which meta passes by as CUDA does:

- res2net/model.py: narrow grouped convolutions become dense ones under bf16.
- res2net/deploy/optimize.py: oneDNN's packed convolutions.
- res2net/weights.py: the values of a checkpoint that is read.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trainers.datasets.data
from res2net import Arch, Stage, create
from res2net.elastic import ElasticRes2Net
from space import Skeleton, Space
from trainers.datasets.data import Data, Split
from trainers.epoch import Unfinished
from trainers.evaluate import evaluate
from trainers.recipes import Config
from trainers.start import fitted_arch, initialised
from trainers.supernet import Members, SupernetTrainer
from trainers.tasks import TASKS
from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.task import Task
from trainers.train import Trainer

ROOT = Path(__file__).parents[2]
META = torch.device("meta")
BATCH = 8
ARCH = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(2, 4, 4, 1, 2, 1)), stem="cifar", stem_channels=4, se=4, num_classes=3)
CONFIG = Config(epochs=2, batch_size=BATCH, precision="fp32", device="meta")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no momentum": {"momentum": 0.0},
    "no decay of norms": {"decay_norms": False},
    "no label smoothing": {"label_smoothing": 0.0},
    "no crops": {"crop_padding": 0, "flip": False},
    "adamw": {"optimizer": "adamw"},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "ema": {"ema": 0.99},
    "frozen norms": {"frozen_norms": True},
    "zero weights": {"zero_init_last": True, "frozen_norms": True},
    "a short last epoch": {"steps": 7},
    "all": {"mixup": 0.2, "cutmix": 1.0, "ema": 0.99, "decay_norms": False, "optimizer": "adamw"},
}
TENSORS = [task for task in TASKS.values() if not task.detects]  # tasks whose outputs are one tensor
SPACE = Space(
    "small",
    "micro",
    Skeleton((4, 8), (2, 2), (1, 1), 64, 2, stem_channels=4, num_classes=3),
    {"scale": (1, 2, 3), "cardinality": (1, 2), "depth": (1, 2)},
)


@pytest.fixture(autouse=True)
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainers take the meta device, which a user cannot choose."""
    for module in ("train", "supernet"):
        monkeypatch.setattr(f"trainers.{module}.device_of", torch.device)


def noise(n: int = 40, n_val: int = 10) -> Data:
    def split(n: int) -> Split:
        return Split(np.zeros((n, 3, 16, 16), np.uint8), np.arange(n) % 3)

    return Data("noise", ("a", "b", "c"), split(n), split(n_val), (0.5,) * 3, (0.3,) * 3)


def unfused(trainer: Trainer) -> Trainer:
    """Return a trainer whose optimizer does not use fused kernels, which PyTorch lacks on meta."""
    for group in trainer.optimizer.param_groups:
        group["fused"] = False
    return trainer


def make(task: Task = CLASSIFICATION, data: Data | None = None, **changes: Any) -> Trainer:
    data = data or noise()
    config = Config(**{"epochs": 2, "batch_size": BATCH, "precision": "fp32", "device": "meta", **changes})
    model = initialised(fitted_arch(ARCH, data, task), zero_last=config.zero_init_last)
    return unfused(Trainer(model, data, config, task=task))


def batch(trainer: Trainer) -> tuple[Tensor, Tensor]:
    index = torch.zeros(BATCH, dtype=torch.int64, device=META)
    images: Any = trainer.train_images
    return images.batch(index, torch.stack([index, index]), index > 0 if trainer.config.flip else None)


def check_on_meta(model: nn.Module, trained: bool = True) -> None:
    """Check that all values of a network, and the gradients of its trained weights, are on the meta device."""
    assert {value.device for value in model.state_dict().values()} == {META}
    for name, weight in model.named_parameters():
        if trained and weight.requires_grad:
            assert weight.grad is not None, name
            assert (weight.grad.device, weight.grad.shape) == (META, weight.shape), name


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
class TestRecipes:
    def test_a_step_reads_nothing(self, changes: dict[str, Any]) -> None:
        trainer = make(**changes)
        trainer.model.train()
        for step in range(3):
            x, y = batch(trainer)
            assert (x.device, x.shape, y.device) == (META, (BATCH, 3, 16, 16), META)
            loss = trainer._step(x, y, step)
            assert (loss.device, loss.shape) == (META, ())
        check_on_meta(trainer.model)
        check_on_meta(trainer.scored, trained=False)

    def test_the_steps_of_an_epoch_read_nothing(self, changes: dict[str, Any]) -> None:
        trainer = make(**changes)
        at = Unfinished(trainer.rng.get_state(), torch.zeros(2, device=META))
        assert trainer._train_rest(at, None)
        assert (at.steps, at.sums.device, at.sums.shape) == (5, META, (2,))


@pytest.mark.parametrize("task", TENSORS, ids=lambda task: task.name)
class TestTasks:
    @pytest.fixture
    def trainer(self, task: Task) -> Trainer:
        return make(task, trainers.datasets.data.load("example_data:Blocks", target=task.target))

    def test_a_step_reads_nothing(self, task: Task, trainer: Trainer) -> None:
        trainer.model.train()
        loss = trainer._step(*batch(trainer), 0)
        assert (loss.device, loss.shape) == (META, ())
        check_on_meta(trainer.model)

    def test_scoring_reads_nothing_before_the_scores(
        self, task: Task, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meter = task.meter(META, trainer.val_images.classes)
        monkeypatch.setattr(type(meter), "scores", lambda self, group: self.sums)
        sums = evaluate(trainer.scored, trainer.val_images, task=task)
        assert (sums.device, sums.shape) == (META, meter.sums.shape)  # type: ignore[attr-defined]

    def test_predictions_and_distillation_read_nothing(self, task: Task, trainer: Trainer) -> None:
        x, y = batch(trainer)
        outputs = trainer.model.train()(x)
        loss = task.distilled(outputs, outputs.detach())
        assert (loss.device, loss.shape) == (META, ())
        found = task.predicted(trainer.model.eval()(x))
        assert (found.device, found.shape) == (META, y.shape)


class TestSupernet:
    @pytest.fixture
    def trainer(self) -> SupernetTrainer:
        smallest = SPACE.arch(SPACE.cheapest()[0])
        members = Members(SPACE.largest(), smallest, lambda rng: SPACE.arch(SPACE.sample_by_macs(rng)))
        return SupernetTrainer(ElasticRes2Net(SPACE), noise(), CONFIG, members)

    def test_a_step_reads_nothing(self, trainer: SupernetTrainer) -> None:
        trainer.model.train()
        for step in range(3):
            loss = trainer._step(*batch(trainer), step)
            assert (loss.device, loss.shape) == (META, ())
        check_on_meta(trainer.model, trained=False)
        assert {w.grad.device for w in trainer.model.parameters() if w.grad is not None} == {META}

    def test_calibration_and_scoring_read_nothing_before_the_scores(
        self, trainer: SupernetTrainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("trainers.tasks.classification.ClassificationMeter.scores", lambda self, group: self.sums)
        for arch in trainer.step_members(0):
            check_on_meta(trainer.scorer.member(arch), trained=False)
            sums = trainer.scorer(arch)
            assert (sums.device, sums.shape) == (META, (4,))


def test_a_step_that_reads_a_value_would_fail() -> None:
    """The check itself."""
    trainer = make()
    trainer.task = Reads()  # type: ignore[assignment]
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        trainer._step(*batch(trainer), 0)


class Reads(type(CLASSIFICATION)):
    def loss(self, outputs: Tensor, targets: Tensor, config: Config) -> Tensor:
        return super().loss(outputs, targets, config) / outputs.abs().max().item()


@pytest.mark.parametrize(
    "mixes",
    [
        lambda y: y + torch.ones(3),
        lambda y: y * torch.ones(len(y), 3),
        lambda y: torch.cat([y, torch.ones(1, 3)]),
        lambda y: torch.where(torch.ones(len(y), 3) > 0, y, y),
    ],
)
def test_a_tensor_of_the_cpu_would_fail(mixes: Callable[[Tensor], Tensor]) -> None:
    """The check itself."""
    with pytest.raises(RuntimeError, match="device"):
        mixes(create(ARCH).to(META)(torch.zeros(2, 3, 8, 8, device=META)))


def test_the_list_above_names_each_file_that_asks_for_the_device() -> None:
    asks = re.compile(r"cuda|device\.type|is_cuda")
    files = (path for room in ("res2net", "space", "trainers", "search") for path in (ROOT / room).rglob("*.py"))
    found = {str(path.relative_to(ROOT)) for path in files if asks.search(path.read_text(encoding="utf-8"))}
    assert found == set(re.findall(r"^- (\S+):", __doc__ or "", re.MULTILINE))
