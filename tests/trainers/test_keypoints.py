"""Key points: they move with their images, heat maps give them back, and AP and PCK are the counted ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from model_folders import evaluated_with_pictures, trained_folder
from torch import Tensor

import res2net
from res2net import Arch, Stage, UserError, create
from res2net.heads import Deconv
from trainers import fit
from trainers.datasets.base import partners
from trainers.datasets.data import Data, Split, load
from trainers.ddp import ALONE
from trainers.images import Images
from trainers.recipes import Config
from trainers.start import fitted_arch
from trainers.targets import mirrored
from trainers.tasks import TASKS, heatmaps, oks
from trainers.tasks.keypoints import Scores
from trainers.train import Trainer

KEYPOINTS = TASKS["keypoints"]
CPU = torch.device("cpu")
BLOCKS = "example_data:Blocks"
SMALL = Arch((Stage(1, 2, 4, 2, 3, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4, num_classes=4)
QUICK = Config(device="cpu", precision="fp32")
NAMES = ("nose", "left_eye", "right_eye", "tail")
COCO = tuple(oks.COCO_SIGMAS)


# ---- Mirrored and cropped ------------------------------------------------------------------------------------------


class TestPartners:
    def test_left_and_right_change_places(self) -> None:
        assert partners(NAMES) == (0, 2, 1, 3)
        assert partners(COCO) == (0, *(i for a in range(1, 17, 2) for i in (a + 1, a)))
        assert partners(("top_left", "top_right", "left", "left wing", "upright", "right")) == (1, 0, 5, 3, 4, 2)
        assert partners(()) == ()

    @given(st.lists(st.lists(st.sampled_from(["left", "right", "a", "l", "righ", "t"])).map("".join), unique=True))
    def test_twice_is_once_more_the_same(self, names: list[str]) -> None:
        order = partners(names)
        assert [order[i] for i in order] == list(range(len(names)))


@given(st.integers(0, 999), st.integers(8, 64))
def test_mirrored_twice_are_the_points_themselves(seed: int, size: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    points = torch.cat([size * torch.rand(3, 4, 2, generator=rng), torch.randint(3, (3, 4, 1), generator=rng)], 2)
    order = torch.tensor(partners(NAMES))
    once = mirrored(points, order, size)
    torch.testing.assert_close(mirrored(once, order, size), points)
    assert torch.equal(once[:, 0, 1:], points[:, 0, 1:])
    assert torch.equal(once[:, 1, 1:], points[:, 2, 1:])


def coded(n: int, size: int, seed: int) -> Data:
    """Return images in which only key points are bright: 50 times the number of the key point, from 1."""
    rng = np.random.default_rng(seed)
    images, labels = np.zeros((n, 1, size, size), np.uint8), np.ones((n, len(NAMES) + 1, 3), np.float32)
    for image, label in zip(images, labels, strict=True):
        cells = rng.permutation(size * size)[: len(NAMES)]
        seen = rng.integers(0, 3, len(NAMES))
        label[:-1] = np.stack([cells % size + 0.5, cells // size + 0.5, seen], 1)
        image[0, cells // size, cells % size] = np.where(seen > 0, 50 * np.arange(1, len(NAMES) + 1), 0)
    return Data("coded", NAMES, Split(images, labels), Split(images, labels), (0.0,), (1.0,), "points")


@given(
    n=st.integers(1, 4), size=st.integers(4, 9), padding=st.integers(0, 3), flip=st.booleans(), seed=st.integers(0, 99)
)
def test_points_move_with_their_images(n: int, size: int, padding: int, flip: bool, seed: int) -> None:
    data = coded(n, size, seed)
    images = Images(data.train, data, CPU, padding)
    for x, y in images.epoch(torch.Generator().manual_seed(seed), [slice(0, n)], flip=flip):
        assert (y.dtype, y.shape) == (torch.float32, (n, 5, 3))
        assert torch.all(y[:, -1] == 1)
        numbers = (x[:, 0] * 255 / 50).round().long()
        for image, points in zip(numbers, y[:, :-1], strict=True):
            seen = points[:, 2] > 0
            assert not points[~seen].any()
            assert int((image > 0).sum()) == int(seen.sum())  # each bright pixel has its point, and no other has one
            found = image[points[seen, 1].long(), points[seen, 0].long()] - 1
            own = torch.arange(4)[seen]
            assert torch.equal(found, own) or (flip and torch.equal(found, torch.tensor([0, 2, 1, 3])[own]))
    plain = next(Images(data.train, data, CPU).batches(n))[1]
    assert torch.equal(plain, torch.from_numpy(data.train.labels))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: p.astype(np.float64), r"float64 \[64, 5, 3\]; accepted: float32 \[64, 5, 3\]"),
        (lambda p: p[:, 1:], r"float32 \[64, 4, 3\]; accepted: float32 \[64, 5, 3\]"),
        (lambda p: p * np.float32(np.nan), "NaN or infinity"),
        (lambda p: p * np.float32([1, 1, 1.5]), "visibility 3; accepted: 0, 1, 2"),
        (lambda p: p * np.float32([1, 0, 1]), r"last row \[.*, 0.0, 1.0\]; accepted: areas"),
    ],
)
def test_unusable_points_are_refused(monkeypatch: pytest.MonkeyPatch, change: object, text: str) -> None:
    import example_data

    whole = example_data.Blocks.train
    monkeypatch.setattr(
        example_data.Blocks, "train", lambda self: replace(whole(self), labels=change(whole(self).labels))
    )
    with pytest.raises(UserError, match=text):
        load(BLOCKS, target="points")


def test_names_must_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    import example_data

    monkeypatch.setattr(example_data.Blocks, "classes", lambda self: ("a", "b", "a", "c"))
    with pytest.raises(UserError, match="key points of blocks are a, b, a, c; accepted: different names"):
        load(BLOCKS, target="points")


# ---- Heat maps -----------------------------------------------------------------------------------------------------


class TestHeatMaps:
    @given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 9999))
    def test_give_the_points_back(self, width: int, height: int, seed: int) -> None:
        """To half a heat map pixel, and to a quarter away from the border."""
        size = 4 * torch.tensor([width, height])
        points = size * torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(seed))
        maps = heatmaps.draw(points, (height, width))
        assert maps.shape == (2, 5, height, width)
        assert maps.max() <= 1
        found, top = heatmaps.peaks(maps)
        assert torch.equal(top, maps.amax((2, 3)))
        assert ((found - points).abs() <= 2.001).all()
        inside = (points > 4) & (points < size - 4)
        assert ((found - points).abs()[inside] <= 1.001).all()

    def test_an_exact_peak_stays(self) -> None:
        maps = heatmaps.draw(torch.tensor([[[10.0, 22.0]]]), (8, 8))
        assert maps[0, 0, 5, 2] == 1
        assert torch.equal(heatmaps.peaks(maps)[0], torch.tensor([[[10.0, 22.0]]]))

    def test_a_quarter_towards_the_higher_neighbour(self) -> None:
        maps = torch.zeros(1, 1, 5, 5)
        maps[0, 0, 2, 1:4] = torch.tensor([0.3, 1.0, 0.5])
        maps[0, 0, 1, 2] = 0.2
        assert torch.equal(heatmaps.peaks(maps)[0], 4 * torch.tensor([[[2.75, 2.25]]]))

    def test_the_spread_is_in_proportion(self) -> None:
        assert [heatmaps.sigma_of(n) for n in (16, 32, 64, 96)] == [1, 1, 2, 3]
        maps = heatmaps.draw(torch.tensor([[[130.0, 130.0]]]), (64, 64))
        assert maps[0, 0, 32, 34].item() == pytest.approx(math.exp(-0.5))


# ---- Scores --------------------------------------------------------------------------------------------------------


def labelled(truth: np.ndarray, areas: np.ndarray, boxes: np.ndarray, scale: float = 1.0) -> Tensor:
    """Return labels: points [N, K, 3], areas of the objects and of their boxes [N]."""
    last = np.stack([areas, boxes, np.full(len(areas), scale)], 1)[:, None]
    return torch.from_numpy(np.concatenate([truth, last], 1)).float()


def heats(points: np.ndarray, height: np.ndarray, size: int = 16) -> Tensor:
    """Return heat maps whose peaks are at the pixels of points, [N, K, 2] in pixels of the image, of heights [N]."""
    maps = torch.zeros(*points.shape[:2], size, size)
    column, row = (torch.from_numpy(points[..., i] // 4).long() for i in (0, 1))
    n, k = torch.meshgrid(*(torch.arange(c) for c in points.shape[:2]), indexing="ij")
    maps[n, k, row, column] = torch.from_numpy(height).float()[:, None]
    return maps


def scored(outputs: Tensor, labels: Tensor, names: tuple[str, ...] = ()) -> Scores:
    meter = KEYPOINTS.meter(CPU, names)
    meter.add(outputs, labels)
    return meter.scores(ALONE)


def counted_ap(similarity: np.ndarray, confidence: np.ndarray) -> list[float]:
    """Return the AP at each threshold, with one prediction for each object: COCO's 101 recalls, written out."""
    order = np.argsort(-confidence, kind="stable")
    found = []
    for threshold in np.linspace(0.5, 0.95, 10):
        hits = np.cumsum(similarity[order] >= threshold)
        precision, recall = hits / np.arange(1, len(hits) + 1), hits / len(hits)
        best = [
            max((p for p, r in zip(precision, recall, strict=True) if r >= t), default=0)
            for t in np.linspace(0, 1, 101)
        ]
        found.append(np.mean(best))
    return found


def similarity_of(guess: np.ndarray, truth: np.ndarray, areas: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Return the object key point similarity [N], as COCO defines it."""
    squares = ((guess - truth[..., :2]) ** 2).sum(2)
    kinds = np.exp(-squares / (2 * areas[:, None] * (2 * sigmas) ** 2))
    seen = truth[..., 2] > 0
    return (kinds * seen).sum(1) / seen.sum(1)


class TestScores:
    def objects(self, n: int, k: int, seed: int) -> tuple[np.ndarray, ...]:
        """Return random predictions at pixels of heat maps, truth near them, areas and confidences."""
        rng = np.random.default_rng(seed)
        guess = 4 * rng.integers(0, 16, (n, k, 2)) + 2.0
        spread = rng.uniform(0, 6, (n, 1, 1))
        truth = np.concatenate([guess + spread * rng.standard_normal((n, k, 2)), rng.integers(0, 3, (n, k, 1))], 2)
        return guess, truth, rng.uniform(100, 2000, n), rng.permutation(n) / n + 0.1

    def test_by_hand(self) -> None:
        """Of three objects, the second most confident one is 4 pixels off, where its similarity is 0.61."""
        guess = np.array([[[10.0, 10.0]], [[30.0, 30.0]], [[50.0, 50.0]]])
        truth = np.concatenate([guess, np.full((3, 1, 1), 2.0)], 2)
        truth[1, 0, 0] += 4
        areas, boxes = np.full(3, 1600.0), np.array([400.0, 400.0, 1601.0])
        labels = labelled(truth, areas, boxes)
        assert similarity_of(guess, truth, areas, np.array([0.05]))[1] == pytest.approx(math.exp(-0.5))
        found = scored(heats(guess, np.array([0.9, 0.8, 0.7])), labels)
        # From 0.65 on: precision 1 up to the recall of 1/3, then 2/3 up to 2/3.
        wrong = (34 * 1 + 33 * 2 / 3) / 101
        assert found.ap50 == pytest.approx(100)
        assert found.ap75 == pytest.approx(100 * wrong)
        assert found.ap == pytest.approx(100 * (3 + 7 * wrong) / 10)
        assert found.pck == pytest.approx(100 * 2 / 3)  # a tenth of a side of 20 pixels is 2
        wide = scored(heats(guess, np.array([0.9, 0.8, 0.7])), labelled(truth, areas, boxes, 2.0))
        assert wide.pck == 100  # two pixels of the crop for one of the photograph: 4

    @given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 9999))
    def test_as_counted_one_by_one(self, n: int, k: int, seed: int) -> None:
        guess, truth, areas, confidence = self.objects(n, k, seed)
        seen = truth[..., 2] > 0
        assume(seen.any())
        labels = labelled(truth, areas, 2 * areas)
        truth = labels[:, :-1].double().numpy()  # rounded to single precision
        found = scored(heats(guess, confidence), labels)
        need = seen.any(1)
        similarity = similarity_of(guess[need], truth[need], areas[need], np.full(k, 0.05))
        assume(np.abs(similarity[:, None] - np.linspace(0.5, 0.95, 10)).min() > 1e-4)
        expected = counted_ap(similarity, confidence[need])
        assert found.ap == pytest.approx(100 * np.mean(expected))
        assert (found.ap50, found.ap75) == pytest.approx((100 * expected[0], 100 * expected[5]))
        near = np.linalg.norm(guess - truth[..., :2], axis=2) <= 0.1 * np.sqrt(2 * areas)[:, None]
        assert found.pck == pytest.approx(100 * near[seen].mean())

    def test_persons_have_the_constants_of_coco(self) -> None:
        guess, truth, areas, confidence = self.objects(20, 17, 0)
        truth[..., 2] = 2
        order = np.random.default_rng(0).permutation(17)
        names = tuple(COCO[i] for i in order)
        sigmas = np.array(list(oks.COCO_SIGMAS.values()))[order]
        labels = labelled(truth, areas, areas)
        expected = counted_ap(similarity_of(guess, truth, areas, sigmas), confidence)
        assert scored(heats(guess, confidence), labels, names).ap == pytest.approx(100 * np.mean(expected), rel=1e-3)
        other = counted_ap(similarity_of(guess, truth, areas, np.full(17, 0.05)), confidence)
        assert scored(heats(guess, confidence), labels).ap == pytest.approx(100 * np.mean(other), rel=1e-3)
        assert np.mean(other) != pytest.approx(np.mean(expected), rel=0.01)

    def test_coco_s_constants(self) -> None:
        pytest.importorskip(oks.PACKAGE)
        from faster_coco_eval import COCOeval_faster

        assert oks.sigmas_of(COCO, 17) == pytest.approx(COCOeval_faster(iouType="keypoints").params.kpt_oks_sigmas)
        assert oks.sigmas_of(COCO[:16], 16) == [0.05] * 16

    def test_the_confidence_is_the_mean_height(self) -> None:
        """A wrong object of low confidence does no harm to the precision before it."""
        guess = np.array([[[10.0, 10.0]], [[30.0, 30.0]]])
        truth = np.concatenate([guess, np.full((2, 1, 1), 2.0)], 2)
        truth[1, 0] += 20
        labels = labelled(truth, np.full(2, 400.0), np.full(2, 400.0))
        first, last = (scored(heats(guess, np.array(c)), labels).ap50 for c in ((0.9, 0.2), (0.2, 0.9)))
        assert (first, last) == pytest.approx((100 * 51 / 101, 100 * 51 / 101 / 2))

    def test_objects_without_a_labelled_point_count_for_nothing(self) -> None:
        guess, truth, areas, confidence = self.objects(6, 3, 1)
        truth[..., 2] = [[2], [1], [2], [0], [0], [0]]
        outputs, labels = heats(guess, confidence), labelled(truth, areas, areas)
        assert scored(outputs, labels) == pytest.approx(scored(outputs[:3], labels[:3]))
        nothing = scored(outputs[3:], labels[3:])
        assert nothing.loss == nothing.pck == 0
        assert all(math.isnan(value) for value in nothing[1:4])


class TestLoss:
    def test_of_an_empty_map_is_the_mean_square_of_the_true_one(self) -> None:
        labels = labelled(np.full((1, 1, 3), 130.0), np.ones(1), np.ones(1))
        loss = KEYPOINTS.loss(torch.zeros(1, 1, 64, 64), labels, QUICK).item()
        assert loss == pytest.approx(math.pi * 2**2 / 64**2, rel=1e-3)

    def test_unlabelled_points_have_no_part(self) -> None:
        truth = np.full((2, 3, 3), 20.0)
        truth[..., 2] = [[0, 1, 2], [2, 0, 0]]
        labels, outputs = labelled(truth, np.ones(2), np.ones(2)), torch.randn(2, 3, 8, 8)
        seen = labels[:, :-1, 2] > 0
        changed = torch.where(seen[..., None, None], outputs, outputs + 1)
        expected = KEYPOINTS.loss(outputs, labels, QUICK).item()
        assert KEYPOINTS.loss(changed, labels, QUICK).item() == expected
        alone = [
            KEYPOINTS.loss(outputs[i, k][None, None], labels[i, [k, -1]][None], QUICK).item() for i, k in seen.nonzero()
        ]
        assert expected == pytest.approx(np.mean(alone))

    def test_of_the_true_maps_is_zero(self) -> None:
        labels = labelled(np.full((2, 3, 3), 20.0), np.ones(2), np.ones(2))
        assert KEYPOINTS.loss(heatmaps.draw(labels[:, :-1], (8, 8)), labels, QUICK) == 0


# ---- Trained -------------------------------------------------------------------------------------------------------


def test_published_networks_get_the_published_head() -> None:
    assert KEYPOINTS.head(res2net.named("res2net50_26w_4s"), 256) == Deconv(256)
    assert KEYPOINTS.head(SMALL, 16) == Deconv(16)


def blobs(n: int, size: int) -> Data:
    """Return images with a coloured dot for each of three key points."""
    rng = np.random.default_rng(0)
    points = rng.uniform(4, size - 4, (n, 3, 2))
    grid = np.arange(size) + 0.5
    x, y = (np.exp(-((grid - points[..., i, None]) ** 2) / 8) for i in (0, 1))
    images = (255 * y[..., None] * x[..., None, :]).astype(np.uint8)
    labels = np.full((n, 4, 3), 2, np.float32)
    labels[:, :3, :2], labels[:, 3] = points, (size**2 / 4, size**2 / 4, 1)
    split = Split(images, labels)
    return Data("blobs", ("a", "b", "c"), split, split, (0.1,) * 3, (0.2,) * 3, "points")


def test_it_overfits_a_few_images() -> None:
    data = blobs(8, 32)
    torch.manual_seed(0)
    wide = Arch((Stage(1, 8, 8, 1, 4, 2), Stage(1, 16, 16, 1, 4, 2)), "strided", 8)
    config = Config(epochs=40, batch_size=8, lr=0.1, label_smoothing=0, crop_padding=0, device="cpu", precision="fp32")
    trainer = Trainer(create(fitted_arch(wide, data, KEYPOINTS)), data, config, task=KEYPOINTS)
    last = [trainer.epoch() for _ in range(config.epochs)][-1]
    assert last.val.ap50 > 90
    assert last.val.pck > 90


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a network for key points."""
    return trained_folder(tmp_path_factory.mktemp("model"), SMALL, BLOCKS, "keypoints")


class TestFolder:
    def test_holds_the_head_and_the_scores(self, trained: Path) -> None:
        model, training = res2net.load(trained), json.loads((trained / "training.json").read_text())
        assert model(torch.zeros(2, 3, 16, 24)).shape == (2, 4, 4, 6)
        assert training["task"] == "keypoints"
        assert training["data"]["classes"] == ["top_left", "top_right", "bottom_left", "bottom_right"]
        assert all(0 <= training[f"test_{m.name}"] <= 100 for m in KEYPOINTS.metrics)
        assert "| AP75, test split |" in (trained / "README.md").read_text()

    def test_is_evaluated_with_pictures(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        training = evaluated_with_pictures(trained, BLOCKS, tmp_path / "sheet.png")
        assert f"AP {training['test_ap']:.2f} %  AP50 {training['test_ap50']:.2f} %" in capsys.readouterr().out


def test_a_missing_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(oks, "find_spec", lambda name: None)
    command = ["res2net50_26w_4s", "--task", "keypoints", "--data", BLOCKS, "--out", str(tmp_path / "out")]
    assert fit.main(command) == 2
    error = capsys.readouterr().err
    assert "--task: keypoints needs faster-coco-eval; run pip install 'res2net-search[detection]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError):
        KEYPOINTS.meter(CPU)
