"""`studies.tasks`: tiny runs, trivial answers by hand, a backbone that stays as it is, one read of the test split."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import trainers.datasets.data
from res2net.errors import UserError
from studies import tasks
from studies.task_answers import ANSWERS, Trivial, mean_box, mean_instance, mean_mask, mean_points
from studies.task_data import read_images, without_small
from studies.tasks import OVERFITTED, TEST, TRAINED, TRIVIAL, UNTRAINED, VALIDATION
from trainers.datasets import scenes
from trainers.datasets.base import VOID, Data, Split
from trainers.datasets.scenes import generate, size_of
from trainers.evaluate import evaluate
from trainers.images import source
from trainers.start import build_model
from trainers.tasks import TASKS, heatmaps

NAMES = [task.name for task in TASKS.values() if task.head_kind is not None]
QUICK = ("--image-size", "32", "--device", "cpu", "--threads", "1")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the training and test sets small: 32 training, 8 validation and 10 test images."""
    monkeypatch.setattr(scenes, "TRAIN_POOL", (40, scenes.TRAIN_POOL[1]))
    monkeypatch.setattr(scenes, "TEST_SET", (10, scenes.TEST_SET[1]))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the order of trained epochs and reads of the test split."""
    found: list[str] = []
    epoch, load = tasks.Trainer.epoch, trainers.datasets.data.load_test
    monkeypatch.setattr(tasks.Trainer, "epoch", lambda *a: (found.append("epoch"), epoch(*a))[1])
    monkeypatch.setattr(trainers.datasets.data, "load_test", lambda *a, **k: (found.append("test"), load(*a, **k))[1])
    return found


def need(name: str) -> None:
    """Skip the test if a package that the task needs is missing."""
    try:
        TASKS[name].check()
    except UserError as problem:
        pytest.skip(str(problem))


def options(*argv: str) -> argparse.Namespace:
    return tasks.build_parser().parse_args([*QUICK, "--out", "unused", *argv])


def data_of(target: str, labels: Any, classes: tuple[str, ...] = ("background", "a", "b"), size: int = 8) -> Data:
    """Return images without content and these labels, as training and as validation images."""
    labels = np.asarray(labels)
    part = Split(np.zeros((len(labels), 3, size, size), np.uint8), labels)
    return Data("by hand", classes, part, part, (0.5,) * 3, (0.5,) * 3, target)


# ---- Tiny runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_run(name: str, tmp_path: Path, reads: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    need(name)
    out = tmp_path / "out"
    assert tasks.main(["--task", name, "--epochs", "2", "--images", "8", *QUICK, "--out", str(out)]) == 0
    assert reads == ["epoch"] * 4 + ["test"]
    assert {p.name for p in out.iterdir()} == {"tasks.csv", "tasks.png", "about.json"}
    assert (out / "tasks.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(out / "tasks.csv")
    places = list(zip(table.answer, table.epoch, table.split, strict=True))
    assert places == [
        *((answer, epoch, VALIDATION) for answer in (TRAINED, UNTRAINED) for epoch in (1, 2)),
        (TRIVIAL, 0, VALIDATION),
        (TRAINED, 2, TEST),
        (UNTRAINED, 2, TEST),
        (TRIVIAL, 0, TEST),
    ]
    assert table[TASKS[name].metrics[0].name].between(0, 100).all()
    about = json.loads((out / "about.json").read_text())
    assert {"versions", "hardware", "commit"} < about.keys()
    assert about["options"]["train_images"] == "8"
    assert about["tasks"][name]["train_images"] == 8
    shown = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(shown) if line.startswith("task "))
    rows = shown[begin + 1 : begin + 8]
    labels = ["first epoch", "last epoch", UNTRAINED, TRIVIAL, "last epoch", UNTRAINED, TRIVIAL]
    assert [row[23:43].strip() for row in rows] == labels
    assert len({row.index(TASKS[name].metrics[-1].label, 43) for row in rows}) == 1  # columns line up


def test_overfitting_scores_the_trained_images_and_says_whether_its_aims_are_met(
    tmp_path: Path, reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--task", "segment", "--epochs", "1", "--overfit", "4", *QUICK, "--out", str(tmp_path)]
    assert tasks.main(argv) == 0
    assert reads == ["epoch"]  # no untrained backbone, and no test
    table = pd.read_csv(tmp_path / "tasks.csv")
    assert set(table.split) == {OVERFITTED}
    assert list(table.answer) == [TRAINED, TRIVIAL]
    assert "mIoU  90.00 % NOT met" in capsys.readouterr().out


def test_overfitting_neither_crops_nor_mirrors() -> None:
    args = options("--overfit", "4")
    config = tasks.config_of(TASKS["segment"], args)
    assert (config.padding, config.flip) == (0, False)
    data = read_images(TASKS["segment"], args)
    assert data.val is data.train
    assert len(data.train) == 4


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("segment", {"miou": 95.0, "pixels": 1.0}, "mIoU  90.00 % met"),
        ("saliency", {"maxf": 89.0, "mae": 0.04}, "max-F  90.00 % NOT met  MAE  0.050 met"),
        ("saliency", {"maxf": float("nan"), "mae": 0.06}, "max-F  90.00 % NOT met  MAE  0.050 NOT met"),
    ],
)
def test_aims(name: str, values: dict[str, float], text: str) -> None:
    assert tasks.aims(TASKS[name], values) == text


def test_a_used_folder_resumes(tmp_path: Path, reads: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Finished tasks stay, others are added, and results with other options are not mixed with them."""
    shared = ["--epochs", "1", "--images", "8", *QUICK, "--out", str(tmp_path)]
    assert tasks.main(["--task", "saliency", *shared]) == 0
    before = pd.read_csv(tmp_path / "tasks.csv")
    reads.clear()
    assert tasks.main(["--task", "segment", "--task", "saliency", *shared]) == 0
    assert reads == ["epoch"] * 2 + ["test"]
    table = pd.read_csv(tmp_path / "tasks.csv")
    assert set(table.task) == {"segment", "saliency"}
    after = table[table.task == "saliency"][before.columns]
    pd.testing.assert_frame_equal(after.reset_index(drop=True), before)
    capsys.readouterr()
    assert tasks.main(["--task", "segment", *shared, "--seed", "1"]) == 2
    assert "another seed; accepted: a new folder" in capsys.readouterr().err


# ---- The untrained backbone ----------------------------------------------------------------------------------------


def test_the_untrained_backbone_stays_and_its_head_is_trained() -> None:
    task, args = TASKS["segment"], options("--epochs", "2", "--images", "8")
    data, config, arch = read_images(task, args), tasks.config_of(task, args), tasks.network(args)
    heads = {}
    for answer in (TRAINED, UNTRAINED):
        zero_last = answer == TRAINED  # a frozen block must not stay its shortcut
        first = build_model(arch, data, task, True, config.seed, zero_last)[0].state_dict()
        model, epochs = tasks.trained(task, arch, data, config, answer, lambda line: None)
        assert len(epochs) == 2
        weights = dict(model.named_parameters())
        changed = {name for name, weight in weights.items() if not torch.equal(weight, first[name])}
        heads[answer] = {name for name in weights if name.startswith("head.")}
        assert heads[answer] <= changed
        assert (changed == heads[answer]) == (answer == UNTRAINED)
        # Batch norms of the backbone keep their running statistics.
        assert not torch.equal(model.state_dict()["bn1.running_mean"], first["bn1.running_mean"])
    assert heads[TRAINED] == heads[UNTRAINED] != set()


# ---- Trivial answers -----------------------------------------------------------------------------------------------


def test_each_task_with_a_head_has_a_trivial_answer() -> None:
    assert set(NAMES) <= set(ANSWERS)


def test_background_by_hand() -> None:
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[0, :4] = 1  # a quarter of all pixels
    data, task = data_of("mask", labels), TASKS["segment"]
    found = evaluate(Trivial(ANSWERS["segment"](data)), source(data.val, data, CPU), task=task)
    assert found.pixels == pytest.approx(75)
    assert found.miou == pytest.approx((75 + 0) / 2)  # class 2 neither occurs nor is predicted


def test_mean_mask_by_hand() -> None:
    labels = np.zeros((4, 8, 8), np.uint8)
    labels[:3, 0, 0] = 1
    labels[3, 0, 0] = VOID
    labels[:2, 0, 1] = 1
    likely = mean_mask(data_of("salient", labels, ("object",)))(5).sigmoid()
    assert likely.shape == (5, 1, 8, 8)
    assert likely[4, 0, 0].tolist() == pytest.approx([1, 0.5, *[0] * 6], abs=1e-5)
    data = data_of("salient", labels, ("object",))
    scores = evaluate(Trivial(mean_mask(data)), source(data.val, data, CPU), task=TASKS["saliency"])
    assert scores.mae == pytest.approx((3 * 0.5 / 64 + 0.5 / 63) / 4, abs=1e-5)  # one image has a void pixel


def test_mean_points_by_hand() -> None:
    labels = np.ones((3, 3, 3), np.float32)
    labels[:, 0] = [[6, 10, 2], [14, 22, 1], [30, 2, 0]]  # the last one is not labelled
    labels[:, 1] = [[1, 30, 2], [2, 30, 2], [3, 30, 2]]
    data = data_of("points", labels, ("p", "q"), size=32)
    maps = mean_points(data)(2)
    assert maps.shape == (2, 2, 8, 8)
    # The means are (10, 16) and (2, 30). A point is read to a quarter of a heat map's pixel of 4 pixels.
    assert heatmaps.peaks(maps)[0][1].flatten().tolist() == pytest.approx([10, 16, 2, 30], abs=1.001)


def test_mean_box_by_hand() -> None:
    labels = np.zeros((2, 3, 6), np.float32)
    labels[0, :2] = [[0, 0, 2, 4, 2, 0], [2, 2, 6, 8, 1, 0]]
    labels[1, :2] = [[4, 1, 7, 6, 2, 0], [0, 0, 8, 8, 1, 1]]  # the last one is a crowd
    found = mean_box(data_of("boxes", labels))(3)
    assert len(found) == 3
    assert found[2]["boxes"].tolist() == [[2, 1, 5, 6]]
    assert found[2]["labels"].tolist() == [2]
    assert found[2]["scores"].tolist() == [1]


def test_mean_instance_by_hand() -> None:
    labels = np.zeros((2, 8, 8), np.int32)
    labels[0, 2:6, 0:2] = 1001
    labels[0, 6:, 6:] = 2000  # a crowd
    labels[1, 4:8, 2:6] = 1001
    labels[1, 0, 0] = 2002
    found = mean_instance(data_of("instances", labels))(2)[1]
    assert found["boxes"].tolist() == [[pytest.approx(2 / 3), 2, 3, 5]]
    assert found["labels"].tolist() == [1]
    mask = torch.zeros(8, 8)
    mask[2:5, 1:3] = 1
    assert torch.equal(found["masks"], mask[None, None])


def test_boxes_and_maps_of_the_same_objects_have_the_same_answer() -> None:
    truth = generate(5, 3, 48)
    flags = np.zeros_like(truth.boxes[..., :1])
    rows = np.concatenate([truth.boxes, truth.classes[..., None].astype(np.float32), flags], 2)
    values = np.pad(1000 * truth.classes.astype(np.int32) + np.arange(1, 8), ((0, 0), (1, 0)))
    maps = np.stack([value[numbers] for value, numbers in zip(values, truth.instances, strict=True)])
    boxes = mean_box(data_of("boxes", rows, size=48))(1)[0]
    instance = mean_instance(data_of("instances", maps, size=48))(1)[0]
    torch.testing.assert_close(boxes["boxes"], instance["boxes"])
    assert torch.equal(boxes["labels"], instance["labels"])


# ---- Objects from a size on ----------------------------------------------------------------------------------------


def test_pixels_of_small_objects_are_void() -> None:
    whole, part = (read_images(TASKS["segment"], options("--least", least)) for least in ("0", "10"))
    truth = generate(*scenes.TRAIN_POOL, 32)
    assert isinstance(whole.train, Split)
    assert isinstance(part.train, Split)
    images = {image.tobytes(): i for i, image in enumerate(truth.images)}
    for image, before, after in zip(part.train.images, whole.train.labels, part.train.labels, strict=True):
        i = images[image.tobytes()]
        for slot in np.flatnonzero(truth.classes[i]):
            x1, y1, x2, y2 = truth.boxes[i, slot]
            own = truth.instances[i] == slot + 1
            assert set(after[own]) == ({VOID} if (x2 - x1) * (y2 - y1) < 100 else set(before[own]))
        ground = truth.instances[i] == 0
        assert not after[ground].any()
    assert {0, VOID} < set(np.unique(part.train.labels))
    assert VOID in read_images(TASKS["segment"], options("--least", "10", "--overfit", "4")).val.labels


def test_at_128_pixels_small_objects_are_those_of_the_size_groups() -> None:
    truth = generate(20, 1)
    rows = np.concatenate([truth.boxes, truth.classes[..., None], np.zeros((20, 7, 1))], 2).astype(np.float32)
    found = without_small(Split(truth.images, rows), "boxes", scenes.SMALL, (20, 1)).labels
    assert np.array_equal(found[..., 5] == 1, (truth.classes > 0) & (size_of(truth.boxes) == 0))
    assert np.array_equal(found[..., :5], rows[..., :5])


def test_small_instances_are_crowds() -> None:
    labels = np.zeros((1, 8, 8), np.int32)
    labels[0, :4, :4] = 3001
    labels[0, 6:, 6:] = 2002
    part = Split(np.zeros((1, 3, 8, 8), np.uint8), labels)
    found = without_small(part, "instances", 3, (1, 0)).labels[0]
    assert np.array_equal(found, np.where(labels[0] == 2002, 2000, labels[0]))
    assert np.array_equal(labels, part.labels)  # the images of the caller stay
    with pytest.raises(UserError, match="`least`: 5; no object of scenes is as large"):
        without_small(replace(part), "instances", 5, (1, 0))


# ---- Mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--task", "classification"], "--task: unknown value 'classification'; accepted: segment"),
        (["--task", "segmet"], "did you mean 'segment'?"),
        (["--epochs", "0"], "--epochs: 0; accepted: at least 1"),
        (["--batch", "0"], "--batch: 0; accepted: at least 1"),
        (["--least", "-1"], "--least: -1; accepted: at least 0"),
        (["--overfit", "4", "--images", "8"], "--images: 8 with --overfit 4; accepted: one of them"),
        (["--arch", "res2net5"], "accepted"),
        (["--task", "segment", "--least", "64"], "--least: 64; no object of scenes is as large"),
        (["--task", "segment", "--images", "99"], "--images: 99; accepted: 1 to 32"),
        (["--task", "segment", "--overfit", "99"], "--overfit: 99; accepted: 1 to 32"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tasks.main([*QUICK, "--out", str(tmp_path / "out"), *argv]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1


def test_a_folder_of_another_study_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "about.json").write_text('{"options": {}}')
    assert tasks.main(["--task", "segment", *QUICK, "--out", str(tmp_path)]) == 2
    assert "not of this study" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert tasks.main(["--task", "segment", *QUICK, "--out", str(tmp_path / "file")]) == 2
    assert "accepted: a folder" in capsys.readouterr().err
