"""Segmentation: masks move with their images, the metric is the counted one, and a network with a head is trained,
scored, written and read as any other."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_folders import trained_folder
from PIL import Image

import res2net
from res2net import Arch, Stage, UserError, cost, create
from res2net.heads import DeepLab
from trainers import evaluate, fit
from trainers.datasets.data import VOID, Data, Split, load, load_test
from trainers.ddp import ALONE
from trainers.images import Images
from trainers.recipes import Config
from trainers.start import build_model, fitted_arch
from trainers.tasks import TASKS
from trainers.tasks.metrics import METRICS
from trainers.train import Trainer

SEGMENT = TASKS["segment"]
CPU = torch.device("cpu")
BLOCKS = "example_data:Blocks"
SMALL = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4, num_classes=4)


def coded(n: int, size: int, seed: int = 0) -> Data:
    """Return images whose brightness is 40 times the class of each pixel."""
    masks = np.random.default_rng(seed).integers(0, 4, (n, size, size), np.uint8)
    images = np.repeat(40 * masks[:, None], 3, 1)
    return Data("coded", tuple("abcd"), Split(images, masks), Split(images, masks), (0.0,) * 3, (1.0,) * 3, "mask")


@given(n=st.integers(1, 5), size=st.integers(4, 9), padding=st.integers(0, 3), flip=st.booleans())
def test_masks_are_cropped_and_mirrored_with_their_images(n: int, size: int, padding: int, flip: bool) -> None:
    data = coded(n, size)
    images = Images(data.train, data, CPU, padding)
    rng = torch.Generator().manual_seed(n)
    for x, y in images.epoch(rng, [slice(0, n)], flip=flip):
        assert (y.dtype, y.shape) == (torch.uint8, (n, size, size))
        known = y != VOID
        assert torch.equal((x[:, 0] * 255 / 40).round().to(torch.uint8)[known], y[known])
        assert torch.all(x[:, 0][~known] == 0)  # the padding has the mean colour
        assert padding or known.all()


@given(st.data())
def test_miou_is_the_counted_one(draw: st.DataObject) -> None:
    classes, size = draw.draw(st.integers(2, 4)), draw.draw(st.integers(1, 4))
    rng = np.random.default_rng(draw.draw(st.integers(0, 1000)))
    truth = rng.integers(0, classes, (3, size, size))
    truth[rng.random(truth.shape) < 0.2] = VOID
    logits = rng.standard_normal((3, classes, size, size)).astype(np.float32)
    if (truth == VOID).all():
        return
    meter = SEGMENT.meter(CPU, tuple("abcd"[:classes]))
    for i in range(3):
        meter.add(torch.from_numpy(logits[i : i + 1]), torch.from_numpy(truth[i : i + 1].astype(np.uint8)))
    scores, guess, known = meter.scores(ALONE), logits.argmax(1), truth != VOID
    shares = []
    for c in range(classes):
        either = sum(1 for t, g in zip(truth.ravel(), guess.ravel(), strict=True) if t != VOID and (t == c or g == c))
        both = sum(1 for t, g in zip(truth.ravel(), guess.ravel(), strict=True) if t == g == c)
        shares += [both / either] if either else []
    assert scores.miou == pytest.approx(100 * np.mean(shares))
    assert scores.pixels == pytest.approx(100 * (guess == truth)[known].mean())


def test_void_pixels_have_no_part_in_the_loss() -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    labels[:, :2] = VOID
    config = Config(label_smoothing=0.1)
    changed = logits.clone()
    changed[:, :, :2] += 7
    losses = [SEGMENT.loss(o, SEGMENT.targets(o, labels, 3, config, 0)[1], config) for o in (logits, changed)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("name", "size", "channels", "rates", "stride"),
    [("res2net50_26w_4s", 513, 256, (6, 12, 18), 16), ("res2net_dla60", 512, 128, (3, 6, 9), None)],
)
def test_published_networks_get_the_published_head(
    name: str, size: int, channels: int, rates: tuple[int, ...], stride: int | None
) -> None:
    head = SEGMENT.head(res2net.named(name), size)
    assert head == DeepLab(channels, channels * 3 // 16, rates, stride)


def test_the_cost_counts_backbone_and_head() -> None:
    arch = replace(SMALL, head=SEGMENT.head(SMALL, 16))
    model = create(arch)
    assert cost(arch, 16).params == sum(p.numel() for p in model.parameters())
    assert cost(arch, 16).macs > cost(SMALL, 16).macs


def test_a_data_set_without_masks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["res2net50_26w_4s", "--task", "segment", "--data", "shapes", "--out", str(tmp_path / "out")]
    assert fit.main(command) == 2
    error = capsys.readouterr().err
    assert "--data: shapes has no targets of the kind mask" in error
    assert "scenes" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda masks: masks.astype(np.int64), "int64"),
        (lambda masks: masks[:, 1:], "uint8"),
        (lambda masks: masks + 4, "hold class 4"),
    ],
)
def test_unusable_masks_are_refused(monkeypatch: pytest.MonkeyPatch, change: object, text: str) -> None:
    import example_data

    whole = example_data.Blocks.train

    def broken(self: object) -> Split:
        split = whole(self)
        return Split(split.images, change(split.labels))

    monkeypatch.setattr(example_data.Blocks, "train", broken)
    with pytest.raises(UserError, match=text):
        load(BLOCKS, target="mask")


def test_it_overfits_a_few_images() -> None:
    data = load(BLOCKS, target="mask", val_fraction=0, train_images=8)
    few = replace(data, val=data.train)
    torch.manual_seed(0)
    wide = Arch((Stage(1, 8, 8, 1, 4, 2), Stage(1, 16, 16, 1, 4, 2)), "cifar", 8, num_classes=4)
    model = create(fitted_arch(wide, data, SEGMENT))
    config = Config(epochs=50, batch_size=8, lr=0.3, label_smoothing=0, crop_padding=0, device="cpu", precision="fp32")
    trainer = Trainer(model, few, config, task=SEGMENT)
    last = [trainer.epoch() for _ in range(config.epochs)][-1]
    assert last.val.miou > 90


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a segmentation network."""
    return trained_folder(tmp_path_factory.mktemp("model"), SMALL, BLOCKS, "segment")


class TestFolder:
    def test_holds_the_head(self, trained: Path) -> None:
        model = res2net.load(trained)
        assert model.arch.head == SEGMENT.head(SMALL, 16)
        assert model(torch.zeros(2, 3, 16, 24)).shape == (2, 4, 16, 24)
        maps = res2net.load(trained, features_only=True)(torch.zeros(2, 3, 16, 16))
        assert [m.shape[1] for m in maps] == [8, 16]

    def test_records_the_task(self, trained: Path) -> None:
        training = json.loads((trained / "training.json").read_text())
        assert training["task"] == "segment"
        assert training["recipe"] == "dense"
        assert training["macs"] == cost(res2net.load(trained).arch, 16).macs
        assert 0 <= training["test_miou"] <= 100
        assert "mIoU" in (trained / "README.md").read_text()

    def test_is_evaluated_with_pictures(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        picture = tmp_path / "sheet.png"
        command = [str(trained), "--data", BLOCKS, "--device", "cpu", "--precision", "fp32", "--count", "3"]
        assert evaluate.main([*command, "--pictures", str(picture)]) == 0
        training = json.loads((trained / "training.json").read_text())
        said = re.search(r"mIoU ([\d.]+) %", capsys.readouterr().out)
        assert said is not None
        assert float(said[1]) == pytest.approx(training["test_miou"], abs=0.1)
        width, height = Image.open(picture).size
        assert width > 3 * 192
        assert height > 3 * 192

    def test_a_picture_needs_a_new_file_in_a_folder_that_may_be_written(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = [str(trained), "--data", BLOCKS, "--device", "cpu", "--pictures"]
        assert evaluate.main([*command, str(tmp_path / "none" / "sheet.png")]) == 2
        assert "--pictures: no folder" in capsys.readouterr().err
        assert evaluate.main([*command, str(tmp_path)]) == 2
        assert f"--pictures: {str(tmp_path)!r} is a folder; accepted: a file" in capsys.readouterr().err
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert evaluate.main([*command, str(tmp_path / "sheet.png")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "sheet.png' cannot be created in" in error

    def test_other_classes_are_refused(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert evaluate.main([str(trained), "--data", "shapes"]) == 2
        assert "has no targets of the kind mask" in capsys.readouterr().err

    def test_a_classifier_lends_its_backbone(self, trained: Path, tmp_path: Path) -> None:
        torch.manual_seed(3)
        res2net.save(classifier := create(SMALL), tmp_path / "model")
        data = load(BLOCKS, target="mask")
        model, arch, note = build_model(tmp_path / "model", data, SEGMENT, False, 0)
        assert "classifier of 4 classes -> deeplab of 4 classes" in note
        assert arch.head is not None
        assert torch.equal(model.layer1[0].conv1.weight, classifier.layer1[0].conv1.weight)

    def test_no_pictures_of_classes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        res2net.save(create(replace(SMALL, num_classes=10)), tmp_path / "model")
        assert evaluate.main([str(tmp_path / "model"), "--pictures", str(tmp_path / "sheet.png")]) == 2
        assert "--pictures: not for the task classification" in capsys.readouterr().err
        assert not (tmp_path / "sheet.png").exists()


def test_a_resumed_training_ends_alike(tmp_path: Path) -> None:
    data = load(BLOCKS, target="mask")
    config = Config(epochs=3, batch_size=8, lr=0.1, crop_padding=2, device="cpu", precision="fp32", seed=4)

    def trainer() -> Trainer:
        torch.manual_seed(1)
        return Trainer(create(fitted_arch(SMALL, data, SEGMENT)), data, config, task=SEGMENT)

    whole = trainer()
    epochs = [whole.epoch() for _ in range(3)]
    first, second = trainer(), trainer()
    first.epoch()
    second.load_state_dict(first.state_dict())
    assert [second.epoch().train_loss for _ in range(2)] == [e.train_loss for e in epochs[1:]]


def test_metrics_of_a_search() -> None:
    assert METRICS["miou"].key == "val_miou"
    assert METRICS["miou"].task is SEGMENT
    scores = SEGMENT.scores(1.0, 40.0, 90.0)
    assert (METRICS["miou"].of(scores), METRICS["pixels"].of(scores)) == (40.0, 90.0)
    assert load_test(BLOCKS, target="mask").labels.ndim == 3
