"""Trainings on image files with masks, from the command to the scores, and their exact resumption."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mask_trees import masks_tree, voc_tree

from res2net import Arch, Stage
from trainers import evaluate, fit
from trainers.datasets import data
from trainers.datasets.mask_folder import LAYOUTS
from trainers.recipes import recipe
from trainers.start import build_model
from trainers.tasks import TASKS
from trainers.train import Trainer

ARCH = Arch((Stage(1, 2, 4, 1, 2, 2), Stage(1, 4, 4, 1, 2, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4)
CPU = ["--device", "cpu", "--precision", "fp32"]
VOC = ["--task", "segment", "--data", "voc", "--data-dir", "voc", "--image-size", "32"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small data set and an architecture, as the current folder."""
    monkeypatch.chdir(tmp_path)
    voc_tree(tmp_path / "voc", train=9, augmented=3)
    Path("arch.json").write_text(ARCH.to_json())
    Path("in-memory.yaml").write_text("recipe: deeplab\ncrop: pad\n")
    Path("resized.yaml").write_text("recipe: deeplab\ncrop: resized\n")
    return tmp_path


@pytest.mark.parametrize(
    ("recipe_name", "crop"), [("deeplab", "scaled"), ("dense", "scaled"), ("in-memory.yaml", "pad")]
)
def test_fit_and_evaluate_agree(folder: Path, recipe_name: str, crop: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--recipe", recipe_name, "--epochs", "2", "--batch-size", "4", "--val-fraction", "0.25", "--out", "out"]
    assert fit.main(["arch.json", *VOC, *more, *CPU]) == 0
    said = capsys.readouterr().out
    assert "voc: training images of trainaug.txt, masks of SegmentationClassAug" in said
    training = json.loads(Path("out/training.json").read_text())
    assert training["data"]["classes"][-1] == "tvmonitor"
    assert (training["data"]["train_images"], training["data"]["val_images"]) == (9, 3)
    assert (training["data"]["crop"], training["data"]["image_size"]) == (crop, 32)
    assert math.isfinite(training["history"][-1]["train_loss"])
    assert evaluate.main(["out", "--data", "voc", "--data-dir", "voc", *CPU]) == 0
    said = capsys.readouterr().out
    assert "3 test images" in said
    assert f"mIoU {training['test_miou']:.2f} %" in said


def test_salient_objects_are_learned_from_one_set_and_scored_on_others(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks_tree(folder / "both", LAYOUTS[2].train, LAYOUTS[2].test, salient=True)
    masks_tree(folder / "other", None, LAYOUTS[3].test, n=4, salient=True)
    more = ["--task", "saliency", "--data", "masks", "--data-dir", "both", "--image-size", "32", "--recipe", "dss"]
    assert fit.main(["arch.json", *more, "--epochs", "1", "--batch-size", "3", "--out", "out", *CPU]) == 0
    training = json.loads(Path("out/training.json").read_text())
    assert training["data"]["classes"] == ["object"]
    capsys.readouterr()
    for data_dir, count in (("both", 6), ("other", 4)):
        where = ["--data", "masks", "--data-dir", data_dir, "--pictures", f"{data_dir}.png"]
        assert evaluate.main(["out", *where, *CPU]) == 0
        said = capsys.readouterr().out
        assert f"{count} test images" in said
        assert (f"max-F {training['test_maxf']:.2f} %" in said) == (data_dir == "both")
        assert Path(f"{data_dir}.png").is_file()


def test_a_resumed_training_ends_with_the_same_weights(folder: Path) -> None:
    voc = data.load("voc", "voc", target="mask", image_size=32, stream=True, val_fraction=0.25)
    task = TASKS["segment"]
    config = replace(recipe("deeplab", {"epochs": 2, "batch_size": 3}), device="cpu", precision="fp32")

    def trainer(workers: int) -> Trainer:
        return Trainer(build_model(ARCH, voc, task, False, 0)[0], voc, config, workers=workers, task=task)

    whole, first, second = trainer(1), trainer(2), trainer(3)
    for _ in range(2):
        whole.epoch()
    steps = []
    assert first.epoch(lambda: len(steps) == 2 or steps.append(0) is not None) is None
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.epoch()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[key]), key


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            [*VOC, "--recipe", "resized.yaml"],
            "`crop`: resized; voc has targets of the kind mask; accepted: auto, pad, scaled",
        ),
        (["--recipe", "deeplab"], "`crop`: scaled; shapes has no image files to crop; accepted: auto, pad"),
        (
            ["--data", "folder", "--data-dir", "voc", "--recipe", "deeplab"],
            "`crop`: scaled; folder has targets of the kind class; accepted: auto, pad, resized",
        ),
        (["--data", "voc", "--data-dir", "voc"], "--data: voc has no targets of the kind class"),
        ([*VOC, "--data-dir", "none"], "--data-dir: none is no folder"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main(["arch.json", *options, "--out", "out", *CPU]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert not Path("out").exists()
