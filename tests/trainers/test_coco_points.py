"""Key points of COCO's format: an image for each person, in memory and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mask_trees import COLOURS
from object_trees import (
    POINTS,
    edited,
    people_tree,
)
from streams import parts, pixels_of, rng, stream, taken

from res2net import Arch, Stage
from trainers import evaluate, fit
from trainers.datasets import data
from trainers.datasets.coco import Coco
from trainers.datasets.points import square_view
from trainers.images import source

CPU = torch.device("cpu")
SIZE = 64  # larger than every image of the trees
TARGETS = ("boxes", "instances")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people_tree(tmp_path_factory.mktemp("people"), train=9)


def colours_at(pixels: np.ndarray, points: torch.Tensor) -> list[int]:
    """Return, for each point [n, 2], the class whose colour its pixel has."""
    x, y = points.long().clamp(0, pixels.shape[0] - 1).T.numpy()
    return np.abs(pixels[y, x][:, None].astype(int) - COLOURS).sum(-1).argmin(1).tolist()


class TestPoints:
    def test_an_image_is_the_square_around_a_person(self, people: Path) -> None:
        loaded = data.load("coco", people, target="points", stream=True, val_fraction=0)
        assert (loaded.classes, loaded.image_size, len(loaded.train)) == (POINTS, 256, 18)
        assert len(data.load_test("coco", people, target="points", stream=True)) == 4
        content = json.loads((people / "annotations/person_keypoints_train2017.json").read_text())
        x, y = taken(stream(loaded.train).batches(4))
        data._check("coco", data.Split(np.zeros((18, 3, 256, 256), np.uint8), y.numpy()), POINTS, "points")
        for pixels, label, person in zip(pixels_of(x), y, content["annotations"], strict=True):
            left, top, w, h = person["bbox"]
            scale = 256 / (1.25 * h)
            truth = torch.tensor(person["keypoints"]).view(3, 3).float()
            middle = torch.tensor([left + w / 2, top + h / 2])
            seen = truth[:, 2] > 0
            expected = (truth[:, :2] - middle) * scale + 128
            torch.testing.assert_close(label[:-1][seen][:, :2], expected[seen], atol=1e-2, rtol=0)
            assert torch.equal(label[:-1, 2], truth[:, 2])
            assert not label[:-1][~seen].any()
            torch.testing.assert_close(label[-1], torch.tensor([w * h / 2 * scale**2, w * h, scale]), rtol=1e-4, atol=0)
            assert colours_at(pixels, label[:-1][seen][:, :2]) == (torch.arange(1, 4)[seen]).tolist()

    def test_arrays_and_streams_score_the_same(self, people: Path) -> None:
        arrays = data.load("coco", people, target="points", image_size=80)
        files = data.load("coco", people, target="points", image_size=80, stream=True)
        for part in ("train", "val"):
            x, y = taken(source(getattr(arrays, part), arrays, CPU).batches(4))
            other, labels = taken(source(getattr(files, part), files, CPU).batches(5))
            torch.testing.assert_close(x, other)
            assert torch.equal(y, labels)

    def test_points_move_with_random_squares(self, people: Path) -> None:
        images = stream(Coco(people, 96, target="points").train())
        scales, swapped, lost = set(), 0, 0
        for seed in range(6):
            x, y = taken(images.epoch(rng(seed), parts(18, 5)))
            for pixels, label in zip(pixels_of(x), y, strict=True):
                seen = label[:-1, 2] > 0
                lost += int((~seen).sum())
                assert not label[:-1][~seen].any()
                assert ((label[:-1, :2] >= 0) & (label[:-1, :2] <= 96)).all()
                own = torch.arange(3)[seen]
                found = [colour - 1 for colour in colours_at(pixels, label[:-1][seen][:, :2])]
                other = torch.tensor([0, 2, 1])[own].tolist()
                assert found in (own.tolist(), other)
                swapped += found != own.tolist()
                scales.add(round(float(label[-1, 2]), 3))
        assert 20 < swapped < 80
        assert len(scales) > 50

    @given(
        st.floats(0, 300),
        st.floats(0, 200),
        st.floats(2, 900),
        st.integers(8, 300),
        st.none() | st.integers(0, 2**63 - 1),
    )
    def test_a_view_shows_the_part_of_the_square_in_the_image(
        self, x: float, y: float, side: float, size: int, seed: int | None
    ) -> None:
        view = square_view(x, y, side, size, True, seed, 300, 200)
        (h, w), (row, column) = view.resized, view.at
        assert row >= 0
        assert column >= 0
        assert h >= 1
        assert w >= 1
        assert row + h <= size
        assert column + w <= size
        assert 0 <= view.left < view.left + view.width <= 300 + 1e-9
        assert 0 <= view.top < view.top + view.height <= 200 + 1e-9
        if seed is None and min(h, w) > 1:
            step = side / size
            assert view.exact
            assert view.width / w == pytest.approx(step, rel=1e-3)
            assert view.height / h == pytest.approx(step, rel=1e-3)
            assert view.left - column * step == pytest.approx(x - side / 2, abs=1e-3 * side)
            # Less than a pixel of the canvas is missing along an edge.
            assert column * step <= max(0, side / 2 - x) + step * 1.01
            assert (column + w) * step >= min(side, 300 - x + side / 2) - step * 1.01

    def test_who_has_no_labelled_point_is_no_entry(self, tmp_path: Path) -> None:
        def change(content: dict[str, Any]) -> None:
            first, second, third, *_ = content["annotations"]
            first["keypoints"] = [0] * 9
            second["iscrowd"] = 1
            third["category_id"] = 2  # without key points

        edited(people_tree(tmp_path), change, "annotations/person_keypoints_train2017.json")
        assert len(Coco(tmp_path, target="points").train()) == 7


@pytest.mark.parametrize(("recipe", "crop"), [("points", "scaled"), ("pad.yaml", "pad")])
def test_key_points_are_trained_and_evaluated(
    recipe: str,
    crop: str,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arch = Arch((Stage(1, 2, 4, 1, 2, 2), Stage(1, 4, 4, 1, 2, 2)), stem="cifar", stem_channels=4)
    Path("arch.json").write_text(arch.to_json())
    Path("pad.yaml").write_text("recipe: points\ncrop: pad\n")
    shared = ["--data", "coco", "--data-dir", str(people), "--device", "cpu", "--precision", "fp32"]
    options = ["--task", "keypoints", "--recipe", recipe, "--epochs", "1", "--batch-size", "4", "--image-size", "32"]
    assert fit.main(["arch.json", *shared, *options, "--out", "out"]) == 0
    training = json.loads(Path("out/training.json").read_text())
    assert training["data"]["classes"] == list(POINTS)
    assert (training["data"]["crop"], training["data"]["train_images"]) == (crop, 18)
    capsys.readouterr()
    assert evaluate.main(["out", *shared]) == 0
    said = capsys.readouterr().out
    assert "4 test images" in said
    assert f"AP {training['test_ap']:.2f} %" in said
