"""Object detection: labels become objects, the AP is the counted one, and networks are trained, resumed and scored."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_folders import evaluated_with_pictures, trained_folder
from torch import Tensor, nn

import res2net
from res2net import Arch, Stage, UserError, create
from res2net.grow import grow
from res2net.heads import FasterRcnn, MaskRcnn, vision_private
from search.settings import Settings
from trainers import fit
from trainers.datasets.base import OBJECTS
from trainers.datasets.data import Data, Split
from trainers.ddp import ALONE
from trainers.recipes import Config
from trainers.start import fitted_arch
from trainers.tasks import TASKS, objects
from trainers.train import Trainer

CPU = torch.device("cpu")
SIZE = 32
SMALL = Arch((Stage(1, 2, 8, 2, 3, 2), Stage(1, 4, 16, 1, 2, 2)), stem="strided", stem_channels=4, num_classes=4)
QUICK = Config(epochs=2, batch_size=4, crop_padding=0, lr=0.02, device="cpu", precision="fp32")
BLOCKS = "example_data:Blocks"
every_task = pytest.mark.parametrize("task", [TASKS["detect"], TASKS["instances"]], ids=lambda task: task.name)


def rows(*objects: tuple[float, ...]) -> Tensor:
    """Labels of one image: x1, y1, x2, y2, class and flag of each object."""
    return torch.tensor(objects, dtype=torch.float32)[None]


# ---- Objects -------------------------------------------------------------------------------------------------------


class TestObjects:
    def test_of_boxes_leave_empty_rows_out(self) -> None:
        labels = torch.cat([rows((1, 2, 5, 6, 2, 0), (0,) * 6, (0, 0, 9, 9, 1, 1)), torch.zeros(1, 3, 6)])
        first, second = objects.of_boxes(labels)
        assert first["boxes"].tolist() == [[1, 2, 5, 6], [0, 0, 9, 9]]
        assert (first["labels"].tolist(), first["crowd"].tolist()) == ([2, 1], [False, True])
        assert first["labels"].dtype == torch.int64
        assert len(second["boxes"]) == 0

    def test_crowds_do_not_train(self) -> None:
        (found,) = objects.trained(objects.of_boxes(rows((1, 2, 5, 6, 2, 0), (0, 0, 9, 9, 1, 1))))
        assert found.keys() == {"boxes", "labels"}
        assert found["labels"].tolist() == [2]

    @given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 4))
    @settings(max_examples=25)
    def test_of_instances_have_tight_boxes(self, seed: int, n: int) -> None:
        rng = np.random.default_rng(seed)
        image = np.zeros((12, 10), np.int32)
        for number in range(1, n + 1):
            y, x = rng.integers(0, 10), rng.integers(0, 8)
            image[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = OBJECTS * rng.integers(1, 4) + number
        (found,) = objects.of_instances(torch.from_numpy(image)[None])
        values = sorted(set(image[image > 0].tolist()))
        assert found["labels"].tolist() == [v // OBJECTS for v in values]
        for value, box, mask in zip(values, found["boxes"].tolist(), found["masks"], strict=True):
            at = np.argwhere(image == value)
            (top, left), (bottom, right) = at.min(0), at.max(0) + 1
            assert box == [left, top, right, bottom]
            assert np.array_equal(mask.numpy(), image == value)

    def test_a_crowd_has_no_number(self) -> None:
        image = torch.zeros(1, 4, 4, dtype=torch.int32)
        image[0, 0, 0], image[0, 2:, 2:] = 2 * OBJECTS, OBJECTS + 1
        (found,) = objects.of_instances(image)
        assert found["crowd"].tolist() == [False, True]


# ---- The average precision -----------------------------------------------------------------------------------------


def scored(name: str, outputs: Any, labels: Tensor, classes: int = 3, sizes: tuple[float, float] = (8, 16)) -> Any:
    meter = TASKS[name].meter(CPU, ("background", *"abcdefg"[: classes - 1]), sizes)
    meter.add(outputs, labels)
    return meter.scores(ALONE)


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> dict[str, Tensor]:
    order = np.argsort(-np.array(scores), kind="stable")
    pick = {"boxes": np.reshape(boxes, (-1, 4)), "labels": np.array(labels, int), "scores": np.array(scores)}
    return {name: torch.from_numpy(values[order]).to(torch.int64 if name == "labels" else torch.float32)
            for name, values in pick.items()}  # fmt: skip


class TestPrecision:
    LABELS = rows((0, 0, 10, 10, 1, 0), (20, 20, 30, 30, 2, 0))

    def test_of_the_truth_is_whole(self) -> None:
        scores = scored("detect", [found([[0, 0, 10, 10], [20, 20, 30, 30]], [1, 2], [0.9, 0.8])], self.LABELS)
        assert scores[:4] == pytest.approx((0, 100, 100, 100))

    def test_of_nothing_is_zero(self) -> None:
        scores = scored("detect", [found([], [], [])], self.LABELS)
        assert scores[:4] == (1, 0, 0, 0)

    def test_a_wrong_class_or_place_finds_nothing(self) -> None:
        outputs = [found([[0, 0, 10, 10], [12, 12, 18, 18]], [2, 2], [0.9, 0.8])]
        assert scored("detect", outputs, self.LABELS).box_ap50 == 0

    def test_by_hand(self) -> None:
        """A wrong box that scores higher halves the precision; half of the classes are found at one threshold only."""
        labels = rows((0, 0, 10, 10, 1, 0), (20, 20, 30, 30, 2, 0))
        # Class 1: a false one first, then the true one. Class 2: an overlap of 8/10 = 0.8, right up to 0.8.
        outputs = [found([[40, 40, 50, 50], [0, 0, 10, 10], [20, 20, 30, 28]], [1, 1, 2], [0.9, 0.8, 0.7])]
        scores = scored("detect", outputs, labels)
        assert scores.box_ap50 == pytest.approx((50 + 100) / 2)
        assert scores.box_ap75 == pytest.approx((50 + 100) / 2)
        assert scores.box_ap == pytest.approx((50 + 100 * 7 / 10) / 2)

    def test_a_crowd_is_neither_right_nor_wrong(self) -> None:
        labels = rows((0, 0, 10, 10, 1, 0), (20, 20, 60, 60, 1, 1))
        outputs = [found([[0, 0, 10, 10], [25, 25, 35, 35]], [1, 1], [0.5, 0.9])]
        assert scored("detect", outputs, labels).box_ap == pytest.approx(100)

    @pytest.mark.parametrize("labels", [rows((0,) * 6), rows((20, 20, 60, 60, 1, 1))], ids=["none", "a crowd"])
    def test_of_a_split_without_an_object_is_one_line(self, labels: Tensor) -> None:
        with pytest.raises(UserError, match=r"^`data`: none of the 1 images of the split has an object to find"):
            scored("detect", [found([[0, 0, 10, 10]], [1], [0.9])], labels)

    def test_by_size(self) -> None:
        labels = rows((0, 0, 4, 4, 1, 0), (10, 10, 20, 20, 1, 0), (30, 30, 60, 60, 1, 0))
        outputs = [found([[0, 0, 4, 4], [30, 30, 60, 60]], [1, 1], [0.9, 0.8])]
        scores = scored("detect", outputs, labels)
        assert (scores.box_small, scores.box_medium, scores.box_large) == pytest.approx((100, 0, 100))
        only = scored("detect", outputs, labels[:, :1])
        assert math.isnan(only.box_large)

    @given(seed=st.integers(0, 2**32 - 1))
    @settings(max_examples=15)
    def test_is_the_counted_one(self, seed: int) -> None:
        """AP50 of one class against a count of our own."""
        rng = np.random.default_rng(seed)
        truths, outputs = [], []
        for _ in range(4):
            corners = rng.integers(0, 30, (3, 2)).astype(float)
            truth = np.concatenate([corners, corners + rng.integers(4, 20, (3, 2))], 1)
            near = truth[rng.integers(0, 3, 5)] + rng.integers(-3, 4, (5, 4))
            near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
            truths.append(truth)
            outputs.append(found(near.tolist(), [1] * 5, (rng.permutation(100)[:5] / 100).tolist()))
        labels = np.concatenate([np.stack(truths), np.ones((4, 3, 1)), np.zeros((4, 3, 1))], 2)
        scores = scored("detect", outputs, torch.from_numpy(labels).float(), classes=2)
        assert scores.box_ap50 == pytest.approx(100 * counted(outputs, truths), abs=0.5)

    def test_of_masks_is_by_pixels(self) -> None:
        """Two masks with equal boxes: a full square, and its lower triangle."""
        labels = torch.zeros(1, 16, 16, dtype=torch.int32)
        labels[0, 2:12, 2:12] = OBJECTS + 1
        box = [[2.0, 2, 12, 12]]
        masks = torch.zeros(1, 1, 16, 16)
        masks[0, 0, 2:12, 2:12] = torch.ones(10, 10).tril()
        scores = scored("instances", [found(box, [1], [0.9]) | {"masks": masks}], labels, classes=2)
        assert scores.box_ap == pytest.approx(100)
        assert scores.mask_ap50 == pytest.approx(100)  # an overlap of 0.55
        assert scores.mask_ap == pytest.approx(20)
        assert scores.loss == pytest.approx(0.8)


def counted(outputs: list[dict[str, Tensor]], truths: list[np.ndarray]) -> float:
    """AP at an overlap of 0.5, interpolated at 101 recalls, with the greedy matching of COCO."""
    entries, total = [], sum(map(len, truths))
    for i, image in enumerate(outputs):
        free = list(range(len(truths[i])))
        for box, score in zip(image["boxes"].tolist(), image["scores"].tolist(), strict=True):
            overlaps = [(iou(box, truths[i][j]), j) for j in free]
            best = max(overlaps, key=lambda pair: (pair[0], pair[1]), default=(0.0, -1))
            hit = best[0] >= 0.5
            if hit:
                free.remove(best[1])
            entries.append((score, hit))
    entries.sort(key=lambda entry: -entry[0])
    hits = np.cumsum([hit for _, hit in entries])
    recall, precision = hits / total, hits / np.arange(1, len(hits) + 1)
    return float(np.mean([max(precision[recall >= r - 1e-12], default=0.0) for r in np.linspace(0, 1, 101)]))


def iou(a: Any, b: Any) -> float:
    wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    inter = max(wide, 0) * max(high, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


# ---- Trained -------------------------------------------------------------------------------------------------------


def crates(task: Any, n: int = 8, size: int = SIZE) -> Data:
    """Return images with a bright square of one of two colours."""
    rng = np.random.default_rng(0)
    images, maps = np.full((n, 3, size, size), 40, np.uint8), np.zeros((n, size, size), np.int32)
    boxes = np.zeros((n, 1, 6), np.float32)
    for i in range(n):
        (y, x), side, label = rng.integers(0, size - 16, 2), int(rng.integers(8, 16)), int(rng.integers(1, 3))
        images[i, label, y : y + side, x : x + side] = 220
        maps[i, y : y + side, x : x + side] = OBJECTS * label + 1
        boxes[i, 0] = x, y, x + side, y + side, label, 0
    split = Split(images, boxes if task.target == "boxes" else maps)
    return Data("crates", ("background", "a", "b"), split, split, (0.2,) * 3, (0.2,) * 3, task.target, (10, 20))


def trainer(task: Any, config: Config, n: int = 8) -> Trainer:
    data = crates(task, n)
    torch.manual_seed(0)
    return Trainer(create(fitted_arch(SMALL, data, task)), data, config, task=task)


def test_published_networks_get_the_published_head() -> None:
    arch = res2net.named("res2net50_26w_4s")
    assert TASKS["detect"].head(arch, 800) == FasterRcnn()
    assert TASKS["instances"].head(arch, 800) == MaskRcnn()
    assert TASKS["detect"].head(SMALL, 128).proposals == 64


@pytest.mark.slow
@every_task
def test_it_overfits_a_few_images(task: Any) -> None:
    wide = Arch((Stage(1, 8, 16, 1, 2, 2), Stage(1, 16, 32, 1, 2, 2)), "strided", 8, num_classes=3)
    data = crates(task, 4)
    torch.manual_seed(0)
    changes = {"schedule": "linear", "warmup": 10, "weight_decay": 1e-4, "crop_padding": 0, "flip": False}
    config = Config(epochs=150, batch_size=4, lr=0.03, device="cpu", precision="fp32", **changes)
    found = Trainer(create(fitted_arch(wide, data, task)), data, config, task=task)
    best = max(getattr(found.epoch().val, f"{task.metrics[0].name}50") for _ in range(config.epochs))
    assert best > 90  # of four objects, so a single one of them is 25 % of a class or more


def test_proposals_are_sampled_by_the_seed_and_the_step() -> None:
    def drawn(seed: int, step: int) -> int:
        TASKS["detect"].targets(torch.zeros(1, 3, 8, 8), rows((1, 2, 5, 6, 2, 0)), 8, replace(QUICK, seed=seed), step)
        return int(torch.randint(2**62, ()))

    assert len({drawn(seed, step) for seed in (0, 1, 2**32 - 1) for step in (0, 1)}) == 6
    assert drawn(1, 1) == drawn(1, 1)


@every_task
def test_a_resumed_training_is_the_same_bit_by_bit(task: Any) -> None:
    whole, first, second = (trainer(task, QUICK) for _ in range(3))
    epochs = [whole.epoch(), whole.epoch()]
    steps = iter([False, True])
    assert first.epoch(stop=lambda: next(steps)) is None
    second.load_state_dict(first.state_dict())
    again = [second.epoch(), second.epoch()]
    assert [e.train_loss for e in again] == [e.train_loss for e in epochs]
    for name, values in whole.model.state_dict().items():
        assert torch.equal(values, second.model.state_dict()[name]), name


class TestFrozenNorms:
    CONFIG = replace(QUICK, frozen_norms=True)

    def test_keep_weights_and_statistics(self) -> None:
        found = trainer(TASKS["detect"], self.CONFIG)
        before = {n: v.clone() for n, v in found.model.state_dict().items() if ".bn" in n or n.startswith("bn")}
        found.epoch()
        after = found.model.state_dict()
        assert before
        assert all(torch.equal(after[name], values) for name, values in before.items())

    def test_stay_frozen_where_several_gpus_replace_them(self) -> None:
        found = trainer(TASKS["detect"], self.CONFIG)
        nn.SyncBatchNorm.convert_sync_batchnorm(found.model)  # as `Group.wrap` does
        seen: list[nn.Module] = []
        found.on_step = lambda: seen.extend(m for m in found.model.modules() if isinstance(m, nn.SyncBatchNorm))
        found.epoch()
        assert seen
        assert not any(norm.training for norm in seen)

    def test_a_grown_block_still_learns(self) -> None:
        data = crates(TASKS["detect"])
        small = fitted_arch(SMALL, data, TASKS["detect"])
        large = replace(small, stages=(replace(small.stages[0], depth=3), small.stages[1]))
        torch.manual_seed(0)
        model = grow(create(small), large, seed=0)
        new = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
        found = Trainer(model, data, self.CONFIG, task=TASKS["detect"])
        found.epoch()
        assert new
        assert all(found.model.get_submodule(name).weight.any() for name in new)

    def test_initial_weights_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["res2net50_26w_4s", "--task", "detect", "--data", BLOCKS, "--recipe", "rcnn"]
        assert fit.main([*command, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "--recipe: rcnn freezes the batch norms" in error
        assert error.count("\n") == 1


@pytest.fixture(scope="module", params=["detect", "instances"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a network that finds objects."""
    return trained_folder(tmp_path_factory.mktemp("model"), SMALL, BLOCKS, request.param)


class TestFolder:
    def test_holds_the_head_and_the_scores(self, trained: Path) -> None:
        model, training = res2net.load(trained), json.loads((trained / "training.json").read_text())
        with torch.no_grad():
            objects = model(torch.zeros(2, 3, 32, 24))
        assert len(objects) == 2
        assert {"boxes", "labels", "scores"} <= objects[0].keys()
        task = TASKS[training["task"]]
        assert training["data"]["classes"][0] == "background"
        assert 0 <= training[f"test_{task.metrics[0].name}"] <= 100
        assert f"| {task.metrics[1].label}, test split |" in (trained / "README.md").read_text()

    def test_is_evaluated_with_pictures(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        training = evaluated_with_pictures(trained, BLOCKS, tmp_path / "sheet.png")
        score = TASKS[training["task"]].metrics[0]
        assert f"{score.label} {training[f'test_{score.name}']:.2f} %" in capsys.readouterr().out


def test_shared_weights_are_refused() -> None:
    for evaluator in ("supernet", "inherit"):
        with pytest.raises(UserError, match=f"^`evaluator`: {evaluator} cannot score `task` detect: .*accepted: grow"):
            Settings(task="detect", data="scenes", evaluator=evaluator)


def test_a_missing_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vision_private, "find_spec", lambda name: None)
    command = ["res2net50_26w_4s", "--task", "detect", "--data", BLOCKS, "--out", str(tmp_path / "out")]
    assert fit.main(command) == 2
    error = capsys.readouterr().err
    assert "--task: detect needs torchvision; run pip install 'res2net-search[detection]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
