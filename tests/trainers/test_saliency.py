"""Salient objects: max-F and MAE are the counted ones, all maps are supervised, and networks are trained and scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from model_folders import evaluated_with_pictures, trained_folder
from torch import Tensor

import res2net
from res2net import Arch, Stage, UserError, create
from res2net.heads import Dss
from trainers import fit
from trainers.datasets.data import VOID, Data, Split, load
from trainers.ddp import ALONE
from trainers.images import Images
from trainers.recipes import Config
from trainers.start import fitted_arch
from trainers.tasks import TASKS
from trainers.tasks.saliency import Scores
from trainers.train import Trainer

SALIENCY = TASKS["saliency"]
CPU = torch.device("cpu")
BLOCKS = "example_data:Blocks"
SMALL = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4, num_classes=4)
QUICK = Config(device="cpu", precision="fp32")


def scored(likely: object, masks: object) -> Scores:
    """Return the scores of probabilities [N, H, W] in one batch."""
    meter = SALIENCY.meter(CPU)
    meter.add(torch.logit(torch.tensor(likely, dtype=torch.float64)[:, None]), torch.tensor(masks, dtype=torch.uint8))
    return meter.scores(ALONE)


class TestMetrics:
    def test_by_hand(self) -> None:
        """One of two salient pixels is found, and one of two other pixels is taken for one."""
        found = scored([[[1, 0], [1, 0]]], [[[1, 1], [0, 0]]])
        # Threshold 0 takes all pixels: precision 1/2, recall 1. All others: precision 1/2, recall 1/2.
        assert found.maxf == pytest.approx(100 * 1.3 * 0.5 / (0.3 * 0.5 + 1))
        assert found.mae == pytest.approx(0.5)

    def test_precision_and_recall_are_averaged_before_f(self) -> None:
        likely = [[[0.9, 0.6], [0.1, 0.1]], [[0.9, 0.1], [0.8, 0.1]]]
        masks = [[[1, 1], [0, 0]], [[0, 1], [1, 0]]]
        # 0.6 and more: precisions 1 and 1/2, recalls 1 and 1/2.
        assert scored(likely, masks).maxf == pytest.approx(100 * 1.3 * 0.75 * 0.75 / (0.3 * 0.75 + 0.75))
        assert scored(likely, masks).mae == pytest.approx((0.175 + (0.9 + 0.9 + 0.2 + 0.1) / 4) / 2, abs=1e-6)

    def test_a_perfect_prediction(self) -> None:
        masks = [[[1, 0], [0, 0]], [[1, 1], [1, 0]]]
        assert scored(masks, masks)[1:] == pytest.approx((100, 0))

    def test_an_image_without_a_salient_pixel_counts_for_the_error_alone(self) -> None:
        masks = [[[1, 0], [0, 0]], [[0, 0], [0, 0]]]
        found = scored([masks[0], [[1, 1], [0, 0]]], masks)
        assert found[1:] == pytest.approx((100, 0.25))

    def test_no_salient_pixel_at_all(self) -> None:
        found = scored([[[1, 0]]], [[[0, 0]]])
        assert np.isnan(found.maxf)
        assert found.mae == pytest.approx(0.5)

    def test_void_pixels_count_for_nothing(self) -> None:
        likely = np.random.default_rng(0).random((3, 4, 4))
        masks = (likely > 0.7).astype(np.uint8)
        masks[:, 0] = VOID
        changed = likely.copy()
        changed[:, 0] = 0.5
        assert scored(likely, masks) == scored(changed, masks)
        assert scored(likely, masks) == pytest.approx(scored(likely[:, 1:], masks[:, 1:]))

    def test_an_image_of_void_pixels_counts_for_nothing(self) -> None:
        likely, masks = np.full((2, 2, 2), 0.25), np.array([[[1, 0]] * 2, [[VOID] * 2] * 2])
        assert scored(likely, masks) == scored(likely[:1], masks[:1])

    @given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9999), st.booleans())
    def test_as_counted_one_by_one(self, n: int, size: int, seed: int, coarse: bool) -> None:
        rng = np.random.default_rng(seed)
        likely = rng.integers(0, 4, (n, size, size)) / 3 if coarse else rng.random((n, size, size))
        masks = rng.choice([0, 1, 1, VOID], (n, size, size))
        if not (masks != VOID).any():
            return
        precision, recall, errors = [], [], []
        for p, m in zip(likely, masks, strict=True):
            p, m = p[m != VOID], m[m != VOID]
            if len(m):
                errors.append(np.abs(p - m).mean())
            if m.any():
                guesses = [np.round(255 * p) >= t for t in range(256)]
                precision.append([(g & (m == 1)).sum() / max(1, g.sum()) for g in guesses])
                recall.append([(g & (m == 1)).sum() / (m == 1).sum() for g in guesses])
        found = scored(likely, masks)
        assert found.mae == pytest.approx(np.mean(errors), abs=1e-6)
        if not precision:
            assert np.isnan(found.maxf)
            return
        pairs = zip(np.mean(precision, 0), np.mean(recall, 0), strict=True)
        f = [1.3 * p * r / (0.3 * p + r) if p + r else 0 for p, r in pairs]
        assert found.maxf == pytest.approx(100 * max(f))


class TestLoss:
    def targets(self, n: int = 3) -> Tensor:
        return torch.from_numpy(np.random.default_rng(1).choice([0, 1, VOID], (n, 5, 5)).astype(np.uint8))

    def test_is_the_mean_over_the_maps_of_the_known_pixels(self) -> None:
        outputs, targets = torch.randn(3, 4, 5, 5), self.targets()
        known = targets != VOID
        by_map = [F.binary_cross_entropy_with_logits(outputs[:, i][known], targets[known].float()) for i in range(4)]
        assert SALIENCY.loss(outputs, targets, QUICK).item() == pytest.approx(torch.stack(by_map).mean().item())

    def test_of_nothing_known_is_zero(self) -> None:
        outputs = torch.randn(2, 1, 3, 3, requires_grad=True)
        loss = SALIENCY.loss(outputs, torch.full((2, 3, 3), VOID, dtype=torch.uint8), QUICK)
        loss.backward()
        assert loss.item() == 0
        assert not outputs.grad.any()

    @pytest.mark.parametrize(("own", "theirs"), [(4, 4), (4, 1), (1, 4), (1, 1)])
    def test_a_teacher_may_be_in_the_other_mode(self, own: int, theirs: int) -> None:
        outputs, teacher = torch.randn(2, own, 3, 3), torch.randn(2, theirs, 3, 3)
        wanted = teacher.sigmoid()[:, [min(i, theirs - 1) for i in range(own)]]
        expected = F.binary_cross_entropy_with_logits(outputs, wanted).item()
        assert SALIENCY.distilled(outputs, teacher).item() == pytest.approx(expected)


class TestData:
    @given(n=st.integers(1, 4), padding=st.integers(0, 3), flip=st.booleans())
    def test_masks_move_with_their_images(self, n: int, padding: int, flip: bool) -> None:
        masks = np.random.default_rng(n).integers(0, 2, (n, 8, 8), np.uint8)
        split = Split(np.repeat(255 * masks[:, None], 3, 1), masks)
        data = Data("coded", ("object",), split, split, (0.0,) * 3, (1.0,) * 3, "salient")
        for x, y in Images(split, data, CPU, padding).epoch(torch.Generator().manual_seed(n), [slice(0, n)], flip=flip):
            known = y != VOID
            assert torch.equal(x[:, 0][known], y[known].float())
            assert padding or known.all()

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            (
                "classes",
                ("background", "object"),
                "classes background, object; accepted for salient objects: one class",
            ),
            ("labels", 2, "masks of blocks hold class 2; accepted: 0 to 1, or 255 for none"),
        ],
    )
    def test_unusable_ones_are_refused(
        self, name: str, value: object, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import example_data

        whole = example_data.Blocks.train
        if name == "classes":
            monkeypatch.setattr(example_data.Blocks, "classes", lambda self: value)
        else:
            monkeypatch.setattr(
                example_data.Blocks, "train", lambda self: replace(whole(self), labels=value * whole(self).labels)
            )
        with pytest.raises(UserError, match=text):
            load(BLOCKS, target="salient")


def test_published_networks_get_the_published_head() -> None:
    assert SALIENCY.head(res2net.named("res2net50_26w_4s"), 400) == Dss(128)
    assert SALIENCY.head(SMALL, 16) == Dss(16)


def test_it_overfits_a_few_images() -> None:
    data = load(BLOCKS, target="salient", val_fraction=0, train_images=8)
    torch.manual_seed(0)
    wide = Arch((Stage(1, 8, 8, 1, 4, 2), Stage(1, 16, 16, 1, 4, 2)), "cifar", 8)
    config = Config(epochs=50, batch_size=8, lr=0.3, label_smoothing=0, crop_padding=0, device="cpu", precision="fp32")
    trainer = Trainer(create(fitted_arch(wide, data, SALIENCY)), replace(data, val=data.train), config, task=SALIENCY)
    last = [trainer.epoch() for _ in range(config.epochs)][-1]
    assert last.val.maxf > 95
    assert last.val.mae < 0.05


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a saliency network."""
    return trained_folder(tmp_path_factory.mktemp("model"), SMALL, BLOCKS, "saliency")


class TestFolder:
    def test_holds_the_head_and_the_scores(self, trained: Path) -> None:
        model, training = res2net.load(trained), json.loads((trained / "training.json").read_text())
        assert model(torch.zeros(2, 3, 16, 24)).shape == (2, 1, 16, 24)
        assert training["task"] == "saliency"
        assert 0 <= training["test_maxf"] <= 100
        assert 0 <= training["test_mae"] <= 1
        card = (trained / "README.md").read_text()
        assert f"| max-F, test split | {training['test_maxf']:.2f} % (n = 1, " in card
        assert f"| MAE, test split | {training['test_mae']:.3f} |" in card

    def test_is_evaluated_with_pictures(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        training = evaluated_with_pictures(trained, BLOCKS, tmp_path / "sheet.png")
        text = f"max-F {training['test_maxf']:.2f} %  MAE {training['test_mae']:.3f}  loss"
        assert text in capsys.readouterr().out

    def test_says_both_at_the_end(self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = [str(trained), "--data", BLOCKS, "--task", "saliency", "--epochs", "1", "--device", "cpu"]
        assert fit.main([*command, "--out", str(tmp_path / "more")]) == 0
        training = json.loads((tmp_path / "more" / "training.json").read_text())
        text = f"{training['test_maxf']:.2f} % on the test split, MAE {training['test_mae']:.3f} (blocks,"
        assert text in capsys.readouterr().out.replace("\n", " ")
