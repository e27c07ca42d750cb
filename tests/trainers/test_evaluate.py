"""`trainers.evaluate`: it reproduces the scores of fit, and reports a mistake in one line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import res2net
import trainers.datasets.data
from res2net import Arch, Stage, create
from res2net.heads import KeypointRcnn
from res2net.options import from_options
from trainers import evaluate, fit
from trainers.datasets.data import Data, Split
from trainers.datasets.drawing import CLASSES
from trainers.evaluate import EvaluateConfig, evaluate_folder
from trainers.images import Images

ARCH = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4, num_classes=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    res2net.save(create(ARCH), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer test images of `shapes`."""
    whole = trainers.datasets.data.load_test

    def some(*args: object, **kwargs: object) -> Split:
        split = whole(*args, **kwargs)
        return Split(split.images[:100], split.labels[:100])

    monkeypatch.setattr(trainers.datasets.data, "load_test", some)


def says(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    out = capsys.readouterr().out
    found = re.search(r"top-1 +([\d.]+) %  top-5 +([\d.]+) %  loss ([\d.]+)  ([\d,]+) images/s", out)
    assert found, out
    return dict(zip(("top1", "top5", "loss", "rate"), (float(g.replace(",", "")) for g in found.groups()), strict=True))


def describe(folder: Path, **values: object) -> None:
    (folder / "training.json").write_text(json.dumps({"data": values}))


@pytest.mark.usefixtures("small")
class TestScores:
    def test_equal_those_of_the_network_image_by_image(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        describe(folder, mean=mean, std=std)
        assert evaluate.main([str(folder), "--device", "cpu", "--precision", "fp32"]) == 0
        said, model, test = says(capsys), res2net.load(folder), trainers.datasets.data.load_test("shapes")
        images = Images(test, Data("shapes", tuple("abcdefghij"), test, test, mean, std), torch.device("cpu"))
        first = among = 0
        with torch.no_grad():
            for x, y in images.batches(1):
                better = int((model(x)[0] > model(x)[0, y]).sum())
                first, among = first + (better == 0), among + (better < 5)
        assert said["top1"] == pytest.approx(first, abs=1.01)  # rounding may change the class of one image in a hundred
        assert said["top5"] == pytest.approx(among, abs=1.01)
        assert said["rate"] > 0

    @pytest.mark.slow
    def test_images_are_normalised_as_in_training(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        losses = []
        for mean in ((0.5,) * 3, (0.1,) * 3, None):
            if mean:
                describe(folder, mean=mean, std=(0.25,) * 3)
            else:
                (folder / "training.json").unlink()  # then the statistics of the data set's training images serve
            assert evaluate.main([str(folder), "--device", "cpu"]) == 0
            losses.append(says(capsys)["loss"])
        assert len(set(losses)) == 3


@pytest.mark.usefixtures("small")
class TestPython:
    @pytest.mark.slow
    def test_returns_the_scores_that_the_command_prints(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        scores = evaluate_folder(EvaluateConfig(folder, device="cpu", precision="fp32"))
        assert capsys.readouterr().out == ""
        assert evaluate.main([str(folder), "--device", "cpu", "--precision", "fp32"]) == 0
        said = says(capsys)
        assert (said["top1"], said["top5"]) == (pytest.approx(scores.top1, abs=0.01), pytest.approx(scores.top5))
        assert said["loss"] == pytest.approx(scores.loss, abs=1e-4)

    def test_defaults_equal_those_of_the_command(self) -> None:
        args = evaluate.build_parser().parse_args(["DIR"])
        assert from_options(EvaluateConfig, args) == EvaluateConfig(Path("DIR"))

    def test_a_mistake_names_the_field(self, folder: Path) -> None:
        with pytest.raises(res2net.UserError, match=r"^`precision`: unknown value 'fp16'"):
            evaluate_folder(EvaluateConfig(folder, precision="fp16"))


@pytest.mark.usefixtures("small")
class TestMistakes:
    @pytest.mark.parametrize(
        ("argv", "parts"),
        [
            (["none"], ["'none'", "is missing", "arch.json"]),
            (["model", "--data", "cifar"], ["--data", "'cifar'", "cifar10"]),
            (["model", "--data", "cifar10"], ["--data-dir"]),
            (["model", "--precision", "fp16"], ["--precision", "'fp16'", "bf16"]),
            (["model", "--device", "tpu"], ["--device", "'tpu'"]),
            (["model", "--image-size", "64"], ["--image-size", "folder"]),
            (["broken"], ["training.json", "not written by fit or export"]),
            (["three"], ["--data: shapes has 10 classes", "3"]),
            (["grey"], ["--data: shapes has 3 colour channels", "1"]),
        ],
    )
    def test_are_one_line(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        argv: list[str],
        parts: list[str],
    ) -> None:
        monkeypatch.chdir(folder.parent)
        res2net.save(create(replace(ARCH, num_classes=3)), "three")
        res2net.save(create(replace(ARCH, in_channels=1)), "grey")
        res2net.save(create(ARCH), "broken")
        Path("broken/training.json").write_text("[]")
        assert evaluate.main(argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("python -m trainers.evaluate: error: ")
        assert err.count("\n") == 1
        for part in parts:
            assert part in err


def test_a_head_without_a_task_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arch = replace(ARCH, num_classes=2, head=KeypointRcnn(8, 16, 4, 20, points=3))
    res2net.save(create(arch), tmp_path / "model")
    assert evaluate.main([str(tmp_path / "model")]) == 2
    err = capsys.readouterr().err
    assert "no task has the head keypoint_rcnn; accepted: a classifier, deeplab, " in err
    assert err.count("\n") == 1


class TestClasses:
    """The data set must have the classes of training, under the same numbers."""

    @pytest.fixture
    def pets(self, tmp_path: Path) -> Path:
        """A model folder of a network for cats and dogs."""
        res2net.save(create(replace(ARCH, num_classes=2)), tmp_path / "pets")
        known = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "image_size": 16, "classes": ["cat", "dog"]}
        describe(tmp_path / "pets", **known)
        return tmp_path / "pets"

    def photos(self, folder: Path, *names: str) -> list[str]:
        """Write a test split with two images of each class; return the options of the command."""
        for name in names:
            (folder / "val" / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (20, 16), (60 * i, 90, 30)).save(folder / "val" / name / f"{i}.png")
        return ["--data", "folder", "--data-dir", str(folder), "--device", "cpu"]

    def test_a_test_split_alone_is_enough(self, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert evaluate.main([str(pets), *self.photos(tmp_path / "photos", "cat", "dog")]) == 0
        assert "folder, 4 test images" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("names", "says"),
        [
            (("apple", "pear"), "class 0 of folder is 'apple' (of 2), in the network of {} it is 'cat' (of 2)"),
            (("cat", "dog", "eel"), "class 2 of folder is 'eel' (of 3), in the network of {} it is None (of 2)"),
        ],
    )
    def test_others_are_one_line(
        self, names: tuple[str, ...], says: str, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert evaluate.main([str(pets), *self.photos(tmp_path / "photos", *names)]) == 2
        err = capsys.readouterr().err
        assert f"--data: {says.format(repr(str(pets)))}; accepted: the data set" in err
        assert err.count("\n") == 1

    @pytest.mark.usefixtures("small")
    def test_a_generated_data_set_is_compared_too(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        known = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        describe(folder, classes=CLASSES, **known)
        assert evaluate.main([str(folder), "--device", "cpu"]) == 0
        describe(folder, classes=CLASSES[::-1], **known)
        assert evaluate.main([str(folder), "--device", "cpu"]) == 2
        assert f"class 0 of shapes is {CLASSES[0]!r}" in capsys.readouterr().err


@pytest.mark.slow
def test_reproduces_the_scores_of_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.chdir(tmp_path)
    Path("arch.json").write_text(ARCH.to_json())
    cpu = ["--device", "cpu", "--precision", "fp32"]
    assert fit.main(["arch.json", "--train-images", "500", "--epochs", "2", "--out", "out", *cpu]) == 0
    capsys.readouterr()
    assert evaluate.main(["out", *cpu]) == 0
    training, said = json.loads(Path("out/training.json").read_text()), says(capsys)
    assert said["top1"] == pytest.approx(training["test_top1"], abs=0.1)
    assert said["top5"] == pytest.approx(training["test_top5"], abs=0.1)
    assert np.isfinite(said["loss"])
