"""`trainers.fit`: a whole model folder or nothing, exact resumption, and one line for a mistake."""

import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import res2net
import trainers.datasets.data
from res2net import Arch, Stage, create
from res2net.options import from_options
from trainers import fit
from trainers.datasets.data import Data, Split
from trainers.evaluate import evaluate
from trainers.fit import FitConfig
from trainers.images import Images
from trainers.tasks.classification import Scores
from trainers.tasks.task import Task
from trainers.train import Epoch, Trainer

ARCH = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4, num_classes=3)
TRAIN, TEST = 24, 10
FILES = ["README.md", "arch.json", "log.csv", "model.safetensors", "tensorboard", "training.json"]
Run = Callable[..., int]


def pictures(n: int, channels: int, classes: int) -> Split:
    rng = np.random.default_rng(n)
    return Split(rng.integers(0, 256, (n, channels, 8, 8), np.uint8), np.arange(n) % classes)


class World:
    """A small data set in place of the real ones. A test sets its number of classes and colours."""

    def __init__(self) -> None:
        self.classes, self.channels, self.loaded = 3, 3, []

    def load(
        self, name: str, data_dir: object, *, seed: int, val_fraction: float, train_images: int | None, **_: object
    ) -> Data:
        self.loaded.append({"seed": seed, "val_fraction": val_fraction, "train_images": train_images})
        everything = pictures(TRAIN, self.channels, self.classes)
        cut = round(val_fraction * TRAIN)
        val, train = (Split(everything.images[s], everything.labels[s]) for s in (slice(cut), slice(cut, None)))
        names = tuple("abcdefgh"[: self.classes])
        return Data("tiny", names, train, val, (0.5,) * self.channels, (0.25,) * self.channels)

    def load_test(self, name: str, data_dir: object, **_: object) -> Split:
        return pictures(TEST, self.channels, self.classes)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(trainers.datasets.data, "load", world.load)
    monkeypatch.setattr(trainers.datasets.data, "load_test", world.load_test)
    return world


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model folder, as a search exports it."""
    torch.manual_seed(5)
    res2net.save(create(ARCH), tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in a temporary folder, with the cheapest training."""
    monkeypatch.chdir(tmp_path)
    quick = ("--epochs", "1", "--batch-size", "8", "--precision", "fp32", "--device", "cpu")
    return lambda *argv: fit.main([*quick, *map(str, argv)])


def one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Check that stderr is one line that names the program and contains all the parts."""
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("python -m trainers.fit: error: ")
    for part in parts:
        assert part in err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestFolder:
    def test_holds_the_network_its_history_and_a_card(
        self, run: Run, world: World, source: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(source, "--out", "out", "--epochs", 2, "--val-fraction", 0.25) == 0
        out = Path("out")
        assert sorted(p.name for p in out.iterdir()) == FILES
        training = json.loads((out / "training.json").read_text())
        assert [e["epoch"] for e in training["history"]] == [1, 2]
        assert training["history"][-1]["val_top1"] == training["val_top1"]
        assert training["macs"] == res2net.cost(ARCH, 8).macs
        assert training["data"]["train_images"], training["data"]["val_images"] == (18, 6)
        assert training["config"]["epochs"] == 2
        assert {"versions", "hardware", "commit", "source"} <= training.keys()
        card = (out / "README.md").read_text()
        for text in (str(ARCH), f"{training['test_top1']:.2f} %", f"{training['macs']:,}", "18 images", "`tiny`"):
            assert text in card
        assert f"{training['val_top1']:.2f} % (6 images)" in card
        assert f"{training['test_top1']:.2f} % on the test split" in capsys.readouterr().out

    def test_trains_on_every_training_image(self, run: Run, world: World, source: Path) -> None:
        assert run(source, "--out", "out") == 0
        assert world.loaded == [{"seed": 0, "val_fraction": 0.0, "train_images": None}]
        training = json.loads(Path("out/training.json").read_text())
        assert training["data"]["train_images"] == TRAIN
        assert training["val_top1"] is None
        assert "val_top1" not in training["history"][0]
        assert "validation" not in Path("out/README.md").read_text()

    def test_loads_back_as_what_was_tested(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained = []
        monkeypatch.setattr(fit, "write", lambda model, *rest: (trained.append(model), write(model, *rest)))
        assert run(source, "--out", "out") == 0
        model = res2net.load("out")
        x = torch.randn(4, 3, 8, 8)
        with torch.no_grad():
            assert torch.equal(model(x), trained[0].eval().to(memory_format=torch.contiguous_format)(x))
        d = world.load("tiny", None, seed=0, val_fraction=0, train_images=None)
        top1 = evaluate(model, Images(world.load_test("tiny", None), d, torch.device("cpu")))[1]
        assert top1 == json.loads(Path("out/training.json").read_text())["test_top1"]

    def test_the_seed_decides_every_bit(self, run: Run, world: World, source: Path) -> None:
        for out, seed in (("a", 1), ("b", 1), ("c", 2)):
            assert run(source / "arch.json", "--out", out, "--seed", seed) == 0
        a, b, c = (Path(out, "model.safetensors").read_bytes() for out in "abc")
        assert a == b
        assert a != c

    def test_replaces_a_model_folder_as_a_whole(self, run: Run, world: World, source: Path) -> None:
        before = (source / "model.safetensors").read_bytes()
        assert run(source, "--out", source) == 0
        assert sorted(p.name for p in source.iterdir()) == FILES
        assert (source / "model.safetensors").read_bytes() != before

    def test_another_trained_network_is_not_overwritten(
        self, run: Run, world: World, source: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(source, "--out", "out") == 0
        before = contents(Path("out"))
        capsys.readouterr()
        assert run(source, "--out", "out", "--epochs", 2) == 2
        one_line(capsys, "--out: 'out' holds a trained network; accepted: another folder")
        assert contents(Path("out")) == before

    def test_files_that_the_user_adds_meanwhile_stay(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def adds(model: torch.nn.Module, arch: Arch, training: dict, images: int, task: Task, out: Path) -> None:
            (out / "notes").mkdir()
            (out / "notes/first.txt").write_text("a rate of 0.1 is best")
            (out / "epoch_1.pt").write_bytes((out / "checkpoint.pt").read_bytes())
            write(model, arch, training, images, task, out)

        monkeypatch.setattr(fit, "write", adds)
        assert run(source, "--out", "out") == 0
        assert sorted(p.name for p in Path("out").iterdir()) == sorted([*FILES, "notes", "epoch_1.pt"])
        assert Path("out/notes/first.txt").read_text() == "a rate of 0.1 is best"

    def test_makes_the_folders_above(self, run: Run, world: World, source: Path) -> None:
        assert run(source, "--out", "new/deeper/out") == 0
        assert res2net.load("new/deeper/out").arch == ARCH


write = fit.write


class TestArch:
    def weights_before(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, *argv: object
    ) -> tuple[res2net.Res2Net, dict[str, torch.Tensor]]:
        """Return the network and its weights before the first step."""
        seen = []

        def kept(trainer: Trainer, *_: object) -> None:
            seen.append((trainer.model, {k: v.clone() for k, v in trainer.model.state_dict().items()}))
            raise KeyboardInterrupt

        monkeypatch.setattr(fit, "run_epochs", kept)
        assert run(*argv, "--out", "out") == 130
        return seen[0]

    def test_a_name(self, run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        model, _ = self.weights_before(run, monkeypatch, "res2net50_26w_4s")
        assert model.arch == create("res2net50_26w_4s", num_classes=3).arch

    def test_an_arch_json_gets_the_classes_and_colours_of_the_data(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.classes, world.channels = 5, 1
        model, _ = self.weights_before(run, monkeypatch, source / "arch.json")
        assert (model.arch.num_classes, model.arch.in_channels) == (5, 1)
        assert model.arch.stages == ARCH.stages

    def test_a_folder_starts_from_its_weights(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, before = self.weights_before(run, monkeypatch, source)
        expected = res2net.load(source).state_dict()
        assert all(torch.equal(before[k], expected[k]) for k in expected)

    def test_a_classifier_of_other_classes_is_initialised(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.classes = 5
        model, before = self.weights_before(run, monkeypatch, source)
        assert before["fc.weight"].shape[0] == model.arch.num_classes == 5
        expected = res2net.load(source).state_dict()
        assert all(torch.equal(before[k], expected[k]) for k in expected if not k.startswith("fc."))
        assert "3 -> 5 classes" in capsys.readouterr().out.replace("\n", " ")

    def test_from_scratch_ignores_the_folder_s_weights(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.channels = 1
        model, before = self.weights_before(run, monkeypatch, source, "--from-scratch", "--seed", 3)
        torch.manual_seed(3)
        fresh = create(model.arch).state_dict()
        assert all(torch.equal(before[k], fresh[k]) for k in fresh)

    @pytest.mark.parametrize("from_scratch", [False, True])
    def test_zero_init_last_changes_only_initialised_weights(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch, from_scratch: bool
    ) -> None:
        Path("zero.yaml").write_text("zero_init_last: true\n")
        options = ["--from-scratch"] if from_scratch else []
        _, before = self.weights_before(run, monkeypatch, source, "--recipe", "zero.yaml", *options)
        last = [value for key, value in before.items() if key.endswith("bn3.weight")]
        assert {float(value.max()) for value in last} == {0.0 if from_scratch else 1.0}

    def test_a_folder_without_weights_is_trained_from_scratch(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (source / "model.safetensors").unlink()
        model, _ = self.weights_before(run, monkeypatch, source)
        assert model.arch == ARCH


class TestMistakes:
    @pytest.fixture(autouse=True)
    def nothing_is_written(self, tmp_path: Path, source: Path, request: pytest.FixtureRequest) -> Iterator[None]:
        yield
        left = {name.split("/")[0] for name in contents(tmp_path)} - {"source", "kept"}
        assert left == set()
        assert not (tmp_path / "out").exists()
        assert not any(p.name.startswith(".") for p in tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("argv", "parts"),
        [
            (["res2net50_26w4s"], ["did you mean 'res2net50_26w_4s'?"]),
            (["no/such/folder"], ["no/such/folder", "arch.json"]),
            (["res2net50_26w_4s", "--data", "cifar11"], ["--data", "cifar11", "cifar10"]),
            (["res2net50_26w_4s", "--data", "cifar10"], ["--data-dir"]),
            (["res2net50_26w_4s", "--data", "cifar10", "--data-dir", "nowhere"], ["--data-dir", "nowhere"]),
            (["res2net50_26w_4s", "--data", "cifar10", "--download"], ["--download", "--data-dir"]),
            (["res2net50_26w_4s", "--epochs", "0"], ["--epochs: 0"]),
            (["res2net50_26w_4s", "--epochs", "many"], ["--epochs", "many"]),
            (["res2net50_26w_4s", "--lr", "nan"], ["--lr: nan"]),
            (["res2net50_26w_4s", "--lr", "inf"], ["--lr: inf"]),
            (["res2net50_26w_4s", "--label-smoothing", "1"], ["--label-smoothing: 1.0"]),
            (["res2net50_26w_4s", "--workers", "0"], ["--workers: 0"]),
            (["res2net50_26w_4s", "--task", "detection"], ["--task", "'detection'", "classification"]),
            (["res2net50_26w_4s", "--precision", "fp8"], ["precision", "fp8", "auto, fp32, bf16"]),
            (["res2net50_26w_4s", "--device", "tpu"], ["--device", "tpu", "cuda"]),
            (["res2net50_26w_4s", "--val-fraction", "1"], ["--val-fraction", "1"]),
        ],
    )
    def test_are_one_line_that_names_the_option(
        self, run: Run, capsys: pytest.CaptureFixture[str], argv: list[str], parts: list[str]
    ) -> None:
        try:
            code = run(*argv, "--out", "out")
        except SystemExit as left:  # argparse's own
            code = left.code
        assert code == 2
        one_line(capsys, *parts)

    def test_a_training_loss_that_is_not_finite(
        self, run: Run, world: World, source: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(source, "--out", "out", "--lr", 1e30) == 2
        one_line(capsys, "--lr: 1e+30; training loss is nan in epoch 1 of 1")

    def test_weights_of_other_colours(
        self, run: Run, world: World, source: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world.channels = 1
        assert run(source, "--out", "out") == 2
        one_line(capsys, "3 colour channels, tiny has 1", "--from-scratch")

    def test_weights_that_cannot_be_read(
        self, run: Run, world: World, source: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (source / "model.safetensors").write_bytes(b"half")
        assert run(source, "--out", "out") == 2
        one_line(capsys, "model.safetensors", "not a readable safetensors file")

    @pytest.mark.parametrize("name", ["kept", "kept/notes.txt", "kept/notes.txt/below"])
    def test_an_out_that_is_no_model_folder(
        self, run: Run, world: World, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept/notes.txt").write_text("mine")
        assert run(source, "--out", name) == 2
        one_line(capsys, "--out", "notes.txt")
        assert world.loaded == []  # refused before the data is read
        assert contents(tmp_path / "kept") == {"notes.txt": b"mine"}

    def test_a_missing_test_split_is_found_before_the_training(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def missing(*_: object, **__: object) -> None:
            raise res2net.UserError("`data_dir`: no test.bin")

        monkeypatch.setattr(trainers.datasets.data, "load_test", missing)
        monkeypatch.setattr(fit, "run_epochs", lambda *_: pytest.fail("trained"))
        assert run(source, "--out", "out") == 2
        one_line(capsys, "--data-dir: no test.bin")


class TestPython:
    """`fit(config)` does the work of the command and returns a `Result`."""

    @pytest.fixture
    def config(self, world: World, source: Path, tmp_path: Path) -> FitConfig:
        quick = {"epochs": 2, "batch_size": 8, "precision": "fp32", "device": "cpu", "val_fraction": 0.25}
        return FitConfig(source, tmp_path / "out", **quick)

    def test_defaults_equal_those_of_the_command(self) -> None:
        args = fit.build_parser().parse_args(["NAME", "--out", "DIR"])
        assert from_options(FitConfig, args) == FitConfig("NAME", Path("DIR"))

    def test_returns_the_written_scores_and_prints_nothing(
        self, config: FitConfig, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = fit.fit(config)
        training = json.loads((config.out / "training.json").read_text())
        assert capsys.readouterr() == ("", "")
        assert (result.folder, result.interrupted, len(result.epochs)) == (config.out, False, 2)
        assert (result.test.top1, result.test.top5) == (training["test_top1"], training["test_top5"])
        assert result.val.top1 == training["val_top1"]
        assert result.seconds == sum(e["seconds"] for e in training["history"])
        assert not result.model.training
        state = res2net.load(config.out).state_dict()
        assert all(torch.equal(v, state[k]) for k, v in result.model.state_dict().items())

    def test_resuming_a_finished_training_returns_its_result(self, config: FitConfig) -> None:
        first = fit.fit(config)
        again = fit.fit(replace(config, resume=True))
        assert again.epochs == first.epochs
        assert again.test[1:] == first.test[1:]
        assert again.model.state_dict().keys() == first.model.state_dict().keys()

    def test_accepts_an_arch_value(self, config: FitConfig) -> None:
        assert fit.fit(replace(config, arch=ARCH, epochs=1)).model.arch == ARCH

    def test_an_interrupted_result_can_be_resumed(self, config: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(fit, "evaluate", interrupted)
            result = fit.fit(config)
        assert (result.interrupted, result.test, len(result.epochs)) == (True, None, 2)
        assert fit.fit(replace(config, resume=True)).epochs == result.epochs

    def test_a_mistake_names_the_field_and_writes_nothing(self, config: FitConfig) -> None:
        with pytest.raises(res2net.UserError, match=r"^`lr`: inf; accepted: a number above 0$"):
            fit.fit(replace(config, lr=math.inf))
        assert not config.out.exists()

    def test_runs_outside_the_main_thread(self, run: Run, world: World, source: Path) -> None:
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(run(source, "--out", "out")))
        thread.start()
        thread.join()
        assert codes == [0]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


class TestInterrupt:
    def test_in_the_first_epoch_leaves_the_folders_unchanged(
        self,
        run: Run,
        world: World,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("trainers.train.Trainer.epoch", interrupted)
        before = contents(tmp_path)
        for out in ("out", source):
            assert run(source, "--out", out) == 130
            assert capsys.readouterr().err.endswith("interrupted; nothing is lost: no epoch was done\n")
        assert contents(tmp_path) == before
        assert [p.name for p in tmp_path.iterdir()] == ["source"]

    @pytest.mark.parametrize("where", ["trainers.fit.evaluate", "trainers.write.card"])
    @pytest.mark.parametrize("out", ["out", "source"])
    def test_later_keeps_a_checkpoint_to_resume_from(
        self,
        run: Run,
        world: World,
        source: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        where: str,
        out: str,
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(where, interrupted)
            assert run(source / "arch.json", "--out", out) == 130
        assert capsys.readouterr().err.endswith("interrupted; the same command with --resume continues\n")
        assert run(source / "arch.json", "--out", out, "--resume") == 0
        assert sorted(p.name for p in Path(out).iterdir()) == FILES


class TestResume:
    """A stopped and resumed training equals one that never stopped, bit for bit."""

    RECIPES = ("fast", "modern", "paper-cifar")

    @pytest.mark.parametrize("recipe", RECIPES)
    @pytest.mark.parametrize("stop", [1, 2, 4])
    def test_is_exact(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, stop: int
    ) -> None:
        argv = (source, "--recipe", recipe, "--epochs", 5, "--val-fraction", 0.25)
        assert run(*argv, "--out", "whole") == 0
        epoch, done = Trainer.epoch, []

        def stopping(trainer: Trainer) -> Epoch:
            if len(done) == stop:
                raise KeyboardInterrupt
            done.append(epoch(trainer))
            return done[-1]

        with monkeypatch.context() as patched:
            patched.setattr("trainers.train.Trainer.epoch", stopping)
            assert run(*argv, "--out", "parts") == 130
        assert run(*argv, "--out", "parts", "--resume") == 0
        whole, parts = (json.loads(Path(name, "training.json").read_text())["history"] for name in ("whole", "parts"))
        timeless = [{k: v for k, v in e.items() if k not in ("seconds", "images_per_second")} for e in whole]
        assert [{k: e[k] for k in t} for e, t in zip(parts, timeless, strict=True)] == timeless
        a, b = (Path(name, "model.safetensors").read_bytes() for name in ("whole", "parts"))
        assert a == b
        rows = [line.split(",")[:4] for line in Path("parts", "log.csv").read_text().splitlines()]
        assert rows == [line.split(",")[:4] for line in Path("whole", "log.csv").read_text().splitlines()]

    def test_without_a_checkpoint_begins_and_of_a_finished_one_does_nothing(
        self, run: Run, world: World, source: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(source, "--out", "out", "--resume") == 0
        before = contents(Path("out"))
        capsys.readouterr()
        assert run(source, "--out", "out", "--resume") == 0
        assert "nothing is left to resume" in capsys.readouterr().out
        assert contents(Path("out")) == before

    @pytest.mark.parametrize(
        ("argv", "parts"),
        [
            (["source", "--lr", "0.2"], ["another recipe", "lr 0.1, not 0.2"]),
            (["source/arch.json"], ["another network: source, not source/arch.json"]),
        ],
    )
    def test_of_another_finished_training_is_refused(
        self,
        run: Run,
        world: World,
        source: Path,
        capsys: pytest.CaptureFixture[str],
        argv: list[str],
        parts: list[str],
    ) -> None:
        assert run("source", "--out", "out") == 0
        capsys.readouterr()
        assert run(*argv, "--out", "out", "--resume") == 2
        one_line(capsys, "--resume: 'out/training.json'", *parts)

    def test_of_a_network_that_was_not_trained_here_is_refused(
        self, run: Run, world: World, source: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (source / "training.json").write_text('{"trial": 3}')
        assert run("source/arch.json", "--out", "source", "--resume") == 2
        one_line(capsys, "--resume: 'source/training.json' is not of a training")

    @pytest.fixture
    def stopped(self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        with monkeypatch.context() as patched:
            patched.setattr(fit, "evaluate", interrupted)
            assert run(source, "--out", "out") == 130
        return Path("out")

    @pytest.mark.parametrize(
        ("argv", "parts"),
        [
            (["--lr", "0.2"], ["another recipe", "lr 0.1, not 0.2"]),
            (["--recipe", "modern"], ["another recipe", "mixup 0.0, not 0.2"]),
            (["--epochs", "2"], ["another recipe", "epochs 1, not 2"]),
            (["--val-fraction", "0.25"], ["another data set", "train 24, not 18"]),
        ],
    )
    def test_of_another_training_is_refused(
        self,
        run: Run,
        source: Path,
        stopped: Path,
        capsys: pytest.CaptureFixture[str],
        argv: list[str],
        parts: list[str],
    ) -> None:
        before = contents(stopped)
        capsys.readouterr()
        assert run(source, "--out", "out", "--resume", *argv) == 2
        one_line(capsys, "--resume: 'out/checkpoint.pt'", *parts)
        assert contents(stopped) == before

    def test_of_another_architecture_is_refused(
        self, run: Run, source: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = replace(ARCH, stem_channels=8)
        (tmp_path / "other.json").write_text(other.to_json())
        capsys.readouterr()
        assert run(tmp_path / "other.json", "--out", "out", "--resume") == 2
        one_line(capsys, "--resume", "another architecture")

    @pytest.mark.parametrize("kind", ["empty", "foreign", "truncated", "damaged", "another's"])
    def test_of_a_damaged_or_foreign_file_is_refused(
        self, run: Run, source: Path, stopped: Path, capsys: pytest.CaptureFixture[str], kind: str
    ) -> None:
        path, buffer = stopped / "checkpoint.pt", io.BytesIO()
        good = path.read_bytes()
        torch.save({"state_dict": {}}, buffer)
        middle = len(good) // 2
        contents = {
            "empty": b"",
            "foreign": b"half",
            "truncated": good[:middle],
            "damaged": good[:middle] + bytes(b ^ 255 for b in good[middle : middle + 64]) + good[middle + 64 :],
            "another's": buffer.getvalue(),
        }
        path.write_bytes(contents[kind])
        capsys.readouterr()
        assert run(source, "--out", "out", "--resume") == 2
        one_line(capsys, "--resume", "not a checkpoint of this program")

    def test_without_resume_a_stopped_training_is_not_overwritten(
        self, run: Run, source: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = contents(stopped)
        capsys.readouterr()
        assert run(source, "--out", "out") == 2
        one_line(capsys, "--out: 'out' holds a training that was stopped", "--resume")
        assert contents(stopped) == before

    def test_a_training_that_failed_leaves_nothing_to_resume(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("trainers.train.evaluate", lambda *_: Scores(math.nan, 0.0, 0.0))
            assert run(source, "--out", "out", "--val-fraction", 0.25) == 2
        assert not Path("out").exists()
        assert run(source, "--out", "out") == 0

    def test_a_training_without_a_test_score_is_kept(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(fit, "evaluate", lambda *_: Scores(math.nan, 0.0, 0.0))
            assert run(source, "--out", "out") == 2
        one_line(capsys, "test loss is nan", "--lr")
        assert run(source, "--out", "out", "--resume") == 0
        assert "resumed after epoch 1 of 1" in capsys.readouterr().out


class TestMemory:
    def test_too_little_of_it_is_answered_with_a_batch_size_that_fits(
        self, run: Run, world: World, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        backward = Trainer._backward

        def limited(trainer: Trainer, x: torch.Tensor, *rest: object) -> torch.Tensor:
            if len(x) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return backward(trainer, x, *rest)

        monkeypatch.setattr(Trainer, "_backward", limited)
        assert run(source, "--out", "out", "--batch-size", 16) == 2
        one_line(capsys, "--batch-size: 16; memory does not suffice for a step", "accepted: 4 ")
        assert not Path("out").exists()
        assert run(source, "--out", "out", "--batch-size", 4) == 0


class TestLog:
    def test_is_a_table_and_events(self, run: Run, world: World, source: Path) -> None:
        assert run(source, "--out", "out", "--epochs", 3, "--val-fraction", 0.25) == 0
        table = pd.read_csv("out/log.csv")
        assert list(table.epoch) == [1, 2, 3]
        history = json.loads(Path("out/training.json").read_text())["history"]
        assert table.train_loss.tolist() == pytest.approx([e["train_loss"] for e in history], rel=1e-5)
        assert table[["val_loss", "val_top1", "val_top5"]].notna().all(axis=None)
        (events,) = Path("out/tensorboard").iterdir()
        assert b"loss/train" in events.read_bytes()
        assert b"accuracy/val_top5" in events.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("data", ["shapes", "folder"])
def test_a_killed_and_resumed_training_equals_an_uninterrupted_one(
    data: str, run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice by SIGKILL; with images in memory, and with image files that threads decode."""
    argv = [str(source), "--data", data, "--recipe", "modern", "--epochs", "5", "--batch-size", "16", "--device", "cpu"]
    argv += ["--val-fraction", "0.1", "--precision", "fp32"]
    argv += ["--train-images", "300"] if data == "shapes" else ["--data-dir", str(photos(tmp_path / "photos"))]
    assert fit.main([*argv, "--out", "whole"]) == 0
    for stop in (1, 3):
        command = [sys.executable, "-m", "trainers.fit", *argv, "--out", "parts", "--resume"]
        # The same number of threads as here, because it changes the rounding; and the code of this checkout.
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        process = subprocess.Popen(command, env=env)
        table = Path("parts/log.csv")
        while process.poll() is None and not (table.exists() and len(table.read_text().splitlines()) > stop):
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert fit.main([*argv, "--out", "parts", "--resume"]) == 0
    whole, parts = (json.loads(Path(name, "training.json").read_text()) for name in ("whole", "parts"))
    for key in ("train_loss", "val_loss", "val_top1"):
        assert [e[key] for e in parts["history"]] == [e[key] for e in whole["history"]]
    a, b = (Path(name, "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert a == b
    assert (whole["test_top1"], whole["test_top5"]) == (parts["test_top1"], parts["test_top5"])


def photos(folder: Path) -> Path:
    """Three classes of photographs, of different sizes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 8)):
        for label in range(3):
            (folder / part / f"class{label}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (40 + i, 60, 3), np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / part / f"class{label}" / f"{i}.jpg")
    return folder


@pytest.mark.slow
def test_on_the_embedded_data(run: Run, capsys: pytest.CaptureFixture[str], source: Path) -> None:
    assert run(source, "--out", "out", "--train-images", 64) == 0
    training = json.loads(Path("out/training.json").read_text())
    assert training["data"]["name"] == "shapes"
    assert res2net.load("out").arch.num_classes == 10
