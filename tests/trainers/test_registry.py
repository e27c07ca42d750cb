"""Data sets by name and by import path: what each knows, a user's own module, and mistakes of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import space
from res2net.errors import UserError
from trainers import datasets, evaluate, fit
from trainers.datasets import DataSet, Split
from trainers.datasets.data import form_of

OWN = "example_data:Stripes"


def message(call: Callable[[], object]) -> str:
    """Return the text of the `UserError` that a call raises; it must be one line."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [*datasets.names(), OWN])
class TestEveryDataSet:
    def test_knows_its_name_and_its_defaults(self, name: str) -> None:
        kind = datasets.get(name)
        assert issubclass(kind, DataSet)
        assert kind.name in (name, "stripes")
        assert 0 < kind.val_fraction < 1
        assert {kind.base(size) for size in (None, 16, 32, 224)} <= set(space.BASES)

    def test_refuses_a_size_that_it_cannot_give(self, name: str) -> None:
        kind = datasets.get(name)
        assert message(lambda: kind(image_size=2)).startswith("`image_size`: 2")
        if kind.resizable:
            assert kind(image_size=64).image_size == 64
        else:
            assert "has a size of its own" in message(lambda: kind(image_size=64))


def test_what_suits_each() -> None:
    assert datasets.names() == ("shapes", "scenes", "cifar10", "cifar100", "folder", "voc", "coco", "masks")
    of_32 = [datasets.get(name).base(32) for name in datasets.names()]
    assert of_32 == ["micro", "thin", *["cifar"] * 6]
    assert [datasets.get("folder").base(size) for size in (None, 127, 128)] == ["cifar", "cifar", "imagenet"]
    assert [name for name in datasets.names() if datasets.get(name).streamable] == ["folder", "voc", "coco", "masks"]


@pytest.mark.parametrize("target", datasets.get("scenes").targets)
@pytest.mark.parametrize("image_size", [None, 96])
def test_the_size_of_images_is_known_before_they_are_drawn(
    target: str, image_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.datasets.scenes.TRAIN_POOL", (4, 0))
    train = datasets.get("scenes")(image_size=image_size, target=target).train()
    assert form_of("scenes", None, target, image_size) == (train.image_size, train.in_channels)


class TestOwn:
    def test_is_loaded_like_any_other(self) -> None:
        data = datasets.load(OWN, seed=1)
        assert (data.name, data.num_classes, data.image_size, data.in_channels) == ("stripes", 2, 16, 1)
        assert (len(data.train), len(data.val), len(data.mean), len(data.std)) == (60, 20, 1, 1)
        assert len(datasets.load_test(OWN)) == 20
        assert datasets.classes_of(OWN) == ("across", "along")
        assert data.describe()["train_images"] == 60

    def test_cannot_be_downloaded_unless_it_says_how(self) -> None:
        text = message(lambda: datasets.download(OWN, "anywhere"))
        assert text == "`download`: stripes cannot be downloaded; accepted: `data_dir` with its files"

    def test_is_trained_and_evaluated(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        stages = [{"depth": 1, "planes": 4, "width": 4, "cardinality": 1, "scale": 2, "stride": 2}]
        arch = {"kind": "residual", "stages": stages, "stem": "cifar", "stem_channels": 4}
        (tmp_path / "arch.json").write_text(json.dumps(arch))
        out = tmp_path / "out"
        common = ["--data", OWN, "--device", "cpu", "--precision", "fp32"]
        options = [*common, "--epochs", "1", "--batch-size", "8", "--out", str(out)]
        assert fit.main([str(tmp_path / "arch.json"), *options]) == 0
        training = json.loads((out / "training.json").read_text())
        assert training["data"]["classes"] == ["across", "along"]
        assert len(training["data"]["mean"]) == 1
        assert json.loads((out / "arch.json").read_text())["in_channels"] == 1
        assert evaluate.main([str(out), *common]) == 0
        assert f"top-1 {training['test_top1']:.2f} %" in capsys.readouterr().out


class TestMistakes:
    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
        """Write a module with this code and return its name."""
        monkeypatch.syspath_prepend(tmp_path)

        def write(code: str) -> str:
            name = f"own_{abs(hash(code))}"
            (tmp_path / f"{name}.py").write_text(code)
            return name

        return write

    def test_an_unknown_name(self) -> None:
        text = message(lambda: datasets.get("shape"))
        assert text.startswith("`data`: unknown value 'shape'; did you mean 'shapes'? accepted: ")
        assert text.endswith("my_package.my_module:NAME")

    def test_a_module_that_does_not_exist(self) -> None:
        text = message(lambda: datasets.get("no_such.module:A"))
        assert "'no_such.module' does not import (ModuleNotFoundError: No module named 'no_such')" in text
        for path in (":A", ".data:A"):
            assert "does not import" in message(lambda path=path: datasets.get(path))

    def test_a_module_that_fails(self, module: Callable[[str], str]) -> None:
        name = module("raise RuntimeError('two\\nlines')")
        assert "does not import (RuntimeError: two lines)" in message(lambda: datasets.get(f"{name}:A"))

    def test_a_missing_class(self, module: Callable[[str], str]) -> None:
        name = module("B = 3")
        for wanted, said in (("A", "has no 'A'"), ("B", "'B' is no class"), ("", "has no ''")):
            assert said in message(lambda wanted=wanted: datasets.get(f"{name}:{wanted}"))

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            ("class A: pass", "lacks classes, name, test, train"),
            ("class A(D):\n    name = 'a'\n    def train(self): ...", "lacks classes, test"),
            ("class A(D):\n    classes = train = test = lambda self: None", "lacks name"),
            ("class A:\n    name = ''\n    classes = train = test = lambda self: None", "is no subclass of DataSet"),
        ],
    )
    def test_a_class_that_is_not_complete(self, body: str, says: str, module: Callable[[str], str]) -> None:
        name = module(f"from trainers.datasets import DataSet as D\n\n\n{body}\n")
        text = message(lambda: datasets.get(f"{name}:A"))
        assert says in text
        assert text.startswith(f"`data`: '{name}:A': class 'A' ")
        assert "accepted: " in text

    @pytest.mark.parametrize(
        ("split", "says"),
        [
            (
                Split(np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, np.int64)),
                "images of own are float32 [4, 1, 8, 8]",
            ),
            (Split(np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.int64)), "images of own are uint8 [4, 8, 8]"),
            (
                Split(np.zeros((4, 1, 8, 9), np.uint8), np.zeros(4, np.int64)),
                "accepted: uint8 [N, channels, size, size]",
            ),
            (Split(np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4, np.int32)), "labels of own are int32 [4]"),
            (Split(np.zeros((4, 1, 8, 8), np.uint8), np.zeros(3, np.int64)), "labels of own are int64 [3]"),
            (Split(np.zeros((4, 1, 8, 8), np.uint8), np.full(4, 2)), "labels of own are 2 to 2; accepted: 0 to 1"),
            (Split(np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0, np.int64)), "own has no images"),
        ],
    )
    def test_arrays_that_no_training_can_use(
        self, split: Split, says: str, module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("example_data.Stripes.train", lambda self: split)
        monkeypatch.setattr("example_data.Stripes.test", lambda self: split)
        monkeypatch.setattr("example_data.Stripes.name", "own")
        for load in (datasets.load, datasets.load_test):
            text = message(lambda load=load: load(OWN))
            assert says in text
            assert text.startswith("`data`: ")
