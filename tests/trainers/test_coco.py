"""COCO's format: boxes, instances and key points move with their images, and unusable annotations are left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mask_trees import agreement, write
from object_trees import (
    CATEGORIES,
    POINTS,
    coco_tree,
    entry,
    labels_of,
    owners,
    people_tree,
    polygon,
    save,
    size_of,
    things,
)
from PIL import Image
from streams import message, parts, rng, taken

from trainers.datasets import Files, coco_file, data, instances
from trainers.datasets.base import OBJECTS
from trainers.datasets.coco import Coco
from trainers.datasets.files import MEAN, STD
from trainers.datasets.points import square_view
from trainers.images import Images, source
from trainers.stream import Stream

CPU = torch.device("cpu")
SIZE = 64  # larger than every image of the trees
TARGETS = ("boxes", "instances")
OFFICIAL = "annotations/instances_train2017.json"


def stream(files: Files) -> Stream:
    return Stream(files, MEAN, STD, CPU, 2)


def pixels_of(x: torch.Tensor) -> np.ndarray:
    """Return the images of a batch, uint8 [B, H, W, 3]."""
    pixels = (x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_tree(tmp_path_factory.mktemp("coco"), train=12)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people_tree(tmp_path_factory.mktemp("people"), train=9)


def edited(root: Path, change: Callable[[dict[str, Any]], object], name: str = OFFICIAL) -> Path:
    """Change an annotation file."""
    content = json.loads((root / name).read_text())
    change(content)
    save(root / name, content)
    return root


class TestDataSet:
    @pytest.mark.parametrize("own", [False, True])
    def test_both_layouts_give_the_same(self, own: bool, tmp_path: Path) -> None:
        coco_tree(tmp_path, own=own)
        for target in TARGETS:
            loaded = data.load("coco", tmp_path, target=target, stream=True, val_fraction=0)
            assert loaded.classes == ("background", "red", "green", "blue") == data.classes_of("coco", tmp_path, target)
            assert (len(loaded.train), loaded.image_size, loaded.sizes) == (6, 640, (32, 96))
            assert loaded.train.paths == tuple(f"{i:06}.jpg" for i in range(6))
            assert len(data.load_test("coco", tmp_path, target=target, stream=True, classes=loaded.classes)) == 3
            _, y = taken(stream(Coco(tmp_path, SIZE, target=target).test()).batches(2))
            for labels, i in zip(y, range(100, 103), strict=True):
                check(labels, target, i)

    def test_a_part_alone(self, tmp_path: Path) -> None:
        coco_tree(tmp_path)
        (tmp_path / "annotations/instances_val2017.json").unlink()
        assert data.load("coco", tmp_path, target="boxes", stream=True).num_classes == 4
        text = message(lambda: data.load_test("coco", tmp_path, target="boxes"))
        assert "holds no annotations/instances_val2017.json and no annotations/val.json; accepted: a folder" in text

    def test_images_without_objects_are_kept(self, tmp_path: Path) -> None:
        def change(content: dict[str, Any]) -> None:
            content["annotations"] = [found for found in content["annotations"] if found["image_id"] != 1000 - 3]

        edited(coco_tree(tmp_path), change)
        for target in TARGETS:
            _, y = taken(stream(Coco(tmp_path, SIZE, target=target).train()).batches(2))
            assert len(y) == 6
            assert [bool(labels.any()) for labels in y] == [i != 3 for i in range(6)]

    def test_a_crowd_has_a_flag_and_no_number(self, tmp_path: Path) -> None:
        """It lies behind all objects."""

        def change(content: dict[str, Any]) -> None:
            width, height = size_of(3)
            whole = {"size": [height, width], "counts": [0, height * width]}
            crowd = {"id": 999, "image_id": 997, "category_id": 7, "bbox": [0, 0, width, height], "iscrowd": 1}
            content["annotations"].insert(0, crowd | {"segmentation": whole, "area": 1})

        edited(coco_tree(tmp_path), change)
        width, height = size_of(3)
        objects = things(3, width, height)
        _, y = taken(stream(Coco(tmp_path, SIZE, target="boxes").train()).batches(2))
        assert y[3, 0].tolist() == [0, 0, width, height, 2, 1]
        assert [row[:5] for row in y[3, 1 : 1 + len(objects)].tolist()] == [list(thing) for thing in objects]
        assert not y[3, 1:, 5].any()
        _, y = taken(stream(Coco(tmp_path, SIZE, target="instances").train()).batches(2))
        own = owners(objects, width, height)
        expected = np.where(own, OBJECTS * labels_of(objects, width, height).astype(int) + own, OBJECTS * 2)
        assert np.array_equal(y[3, :height, :width], expected)

    def test_boxes_that_stick_out_are_clipped(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def change(content: dict[str, Any]) -> None:
            for found in content["annotations"]:
                if found["image_id"] == 1000:
                    found["bbox"] = [-0.7, 3, 999, 5]

        edited(coco_tree(tmp_path), change)
        _, y = taken(stream(Coco(tmp_path, SIZE, target="boxes").train()).batches(2))
        assert y[0, 0, :4].tolist() == [0, 3, 60, 8]
        assert not capsys.readouterr().err

    def test_compressed_runs_are_read(self, tmp_path: Path) -> None:
        from faster_coco_eval.core import mask

        def change(content: dict[str, Any]) -> None:
            for found in content["annotations"]:
                i = 1000 - found["image_id"]
                width, height = size_of(i)
                given = found["segmentation"]
                drawn = mask.frPyObjects(given, height, width)
                text = (drawn[0] if isinstance(drawn, list) else drawn)["counts"]
                text = text if isinstance(text, str) else text.decode()
                found["segmentation"] = {"size": [height, width], "counts": text}

        edited(coco_tree(tmp_path), change)
        _, y = taken(stream(Coco(tmp_path, SIZE, target="instances").train()).batches(2))
        for labels, i in zip(y, range(6), strict=True):
            check(labels, "instances", i)


def check(labels: torch.Tensor, target: str, i: int) -> None:
    """Check the labels of image i of a tree, which is not resized."""
    width, height = size_of(i)
    objects = things(i, width, height)
    if target == "boxes":
        assert [row[:5] for row in labels.tolist()][: len(objects)] == [list(thing) for thing in objects]
        assert not labels[len(objects) :].any()
        assert not labels[:, 5].any()
    else:
        own = owners(objects, width, height)
        expected = np.where(own, OBJECTS * labels_of(objects, width, height).astype(int) + own, 0)
        assert np.array_equal(labels[:height, :width], expected)
        assert not labels[height:].any()
        assert not labels[:, width:].any()


class TestGeometry:
    @pytest.mark.parametrize("target", TARGETS)
    def test_arrays_and_streams_score_the_same(self, target: str, coco: Path) -> None:
        for size in (SIZE, 33):
            arrays = data.load("coco", coco, target=target, image_size=size)
            files = data.load("coco", coco, target=target, image_size=size, stream=True)
            assert (arrays.mean, arrays.std) == (MEAN, STD)
            for part in ("train", "val"):
                x, y = taken(source(getattr(arrays, part), arrays, CPU).batches(4))
                other, labels = taken(source(getattr(files, part), files, CPU).batches(5))
                torch.testing.assert_close(x, other)
                assert torch.equal(y, labels)
            data._check("coco", arrays.train, arrays.classes, target)

    def test_instances_stay_aligned_with_their_images(self, coco: Path) -> None:
        images = stream(Coco(coco, 48, target="instances").train())
        for seed in range(4):
            x, y = taken(images.epoch(rng(seed), parts(12, 5)))
            assert (y.dtype, y.shape) == (torch.int32, (12, 48, 48))
            # Beside an image, the colour is the mean, which stands for no class.
            assert agreement(pixels_of(x), (y // OBJECTS).numpy()) > 0.97
        reduced = stream(Coco(coco, 33, target="instances").train())
        x, y = taken(reduced.batches(5))
        assert agreement(pixels_of(x), (y // OBJECTS).numpy()) > 0.96

    def test_boxes_move_like_instances(self, coco: Path) -> None:
        kept = removed = 0
        for seed in range(6):
            both = [taken(stream(Coco(coco, 48, target=t).train()).epoch(rng(seed), parts(12, 5))) for t in TARGETS]
            assert torch.equal(both[0][0], both[1][0])
            for boxes, shown in zip(both[0][1], both[1][1], strict=True):
                for k, row in enumerate(boxes):
                    pixels = shown % OBJECTS == k + 1
                    if not row.any():
                        removed += 1
                        continue
                    assert 0 <= row[:4].min() <= row[:4].max() <= 48
                    assert (row[2:4] - row[:2]).min() >= 1
                    if pixels.any():
                        kept += 1
                        assert shown[pixels].unique().tolist() == [OBJECTS * int(row[4]) + k + 1]
                        rows, columns = np.nonzero(pixels.numpy())
                        inner = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                        # A pixel belongs to the object if its centre does.
                        assert row[0] - 0.51 <= inner[0]
                        assert row[1] - 0.51 <= inner[1]
                        assert row[2] + 0.51 >= inner[2]
                        assert row[3] + 0.51 >= inner[3]
        assert kept > 60
        assert removed > 10

    def test_boxes_of_whole_objects_are_tight(self, tmp_path: Path) -> None:
        """One object without another in front of it, at every scale."""
        width, height = 60, 44
        thing = things(0, width, height)[0]
        image = labels_of([thing], width, height)
        from mask_trees import image_of

        write(tmp_path / "train/a.png", image_of(image))
        photo = {"id": 1, "file_name": "a.png", "width": width, "height": height}
        save(
            tmp_path / "annotations/train.json",
            {"images": [photo], "annotations": [entry(1, 1, thing, width, height)], "categories": CATEGORIES},
        )
        for seed in range(30):
            both = [
                taken(stream(Coco(tmp_path, 200, target=t).train()).epoch(rng(seed), parts(1, 1)))[1][0]
                for t in TARGETS
            ]
            rows, columns = np.nonzero(both[1].numpy())
            inner = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(both[0][0, :4], inner, atol=0.51)

    @pytest.mark.parametrize("target", TARGETS)
    def test_arrays_train_on_moved_targets(self, target: str, coco: Path) -> None:
        loaded = data.load("coco", coco, target=target, image_size=SIZE, val_fraction=0)
        images = Images(loaded.train, loaded, CPU, padding=8)
        x, y = taken(images.epoch(rng(), parts(12, 4)))
        assert x.shape == (12, 3, SIZE, SIZE)
        if target == "instances":
            assert agreement(pixels_of(x), (y // OBJECTS).numpy()) > 0.97

    def test_rows_are_taken_with_their_objects(self, coco: Path) -> None:
        for target in TARGETS:
            files = Coco(coco, SIZE, target=target).train()
            index = np.array([4, 2])
            _, y = taken(stream(files.take(index)).batches(2))
            assert torch.equal(y, taken(stream(files).batches(5))[1][index])


class TestOutlines:
    @given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 999))
    def test_text_and_lists_of_runs_are_the_same(self, height: int, width: int, seed: int) -> None:
        from faster_coco_eval.core import mask

        inside = np.random.default_rng(seed).random((height, width)) < 0.4
        coded = mask.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"]
        text = coded if isinstance(coded, str) else coded.decode()
        found = instances.outline(1001, {"size": [height, width], "counts": text}, height, width)
        assert np.array_equal(instances._map([found], height, width) == 1001, inside)
        again = {"size": [height, width], "counts": (found.runs if found.runs is not None else np.empty(0)).tolist()}
        assert np.array_equal(
            instances._map([instances.outline(1001, again, height, width)], height, width) == 1001, inside
        )

    def test_a_polygon_is_drawn_as_coco_draws_it(self) -> None:
        from faster_coco_eval.core import mask

        draw = np.random.default_rng(0)
        for _ in range(20):
            given = [draw.uniform(-5, 45, 2 * n).tolist() for n in (3, 7)]
            found = instances._map([instances.outline(1001, given, 40, 30)], 40, 30)
            expected = mask.decode(mask.merge(mask.frPyObjects(given, 40, 30)))
            assert np.array_equal(found == 1001, expected == 1)

    def test_the_smaller_object_owns_the_pixel(self) -> None:
        given = [(2001, [0, 0, 4, 0, 4, 4, 0, 4]), (1002, [0, 0, 8, 0, 8, 8, 0, 8]), (3000, [0, 0, 2, 0, 2, 2, 0, 2])]
        found = instances._map([instances.outline(value, [points], 8, 8) for value, points in given], 8, 8)
        expected = np.full((8, 8), 1002)
        expected[:4, :4] = 2001
        assert np.array_equal(found, expected)  # a crowd, though small, lies behind


# ---- Key points ----------------------------------------------------------------------------------------------------


def colours_at(pixels: np.ndarray, points: torch.Tensor) -> list[int]:
    """Return, for each point [n, 2], the class whose colour its pixel has."""
    from mask_trees import COLOURS

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


# ---- Unusable annotations ------------------------------------------------------------------------------------------


def _set(i: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["annotations"][i].update(values)


def _photo(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["images"][0].update(values)


BROKEN = [
    ("boxes", _set(0, bbox=[70, 3, 5, 5]), "annotations[0]", "lies outside its image of 60 x 44"),
    ("boxes", _set(0, bbox=[7, 3, 0, 5]), "annotations[0]", "has no area"),
    ("boxes", _set(0, bbox=[7, 3, 5]), "annotations[0]", "the box [7, 3, 5]; accepted: 4 numbers"),
    ("boxes", _set(0, bbox=None), "annotations[0]", "the box None"),
    ("boxes", _set(0, bbox=[7, 3, float("nan"), 5]), "annotations[0]", "accepted: 4 numbers"),
    ("boxes", _set(0, bbox=[7, 3, 10**400, 5]), "annotations[0]", "left out"),
    ("boxes", _set(0, category_id=5), "annotations[0]", "category_id 5; accepted: the id of a category"),
    ("boxes", _set(0, image_id=5), "annotations[0]", "image_id 5; accepted: the id of an image"),
    ("boxes", _set(0, image_id="a"), "annotations[0]", "no image_id in {"),
    ("boxes", _set(0, iscrowd=2), "annotations[0]", "iscrowd 2; accepted: 0, 1"),
    ("boxes", lambda c: c["annotations"].append(7), "annotations[", "no image_id in 7"),
    ("instances", _set(0, segmentation=[]), "annotations[0]", "an empty segmentation"),
    ("instances", _set(0, segmentation=[[1, 2, 3, 4]]), "annotations[0]", "a polygon of other than 3 or more points"),
    ("instances", _set(0, segmentation=[["a"] * 6]), "annotations[0]", "a polygon of other than 3 or more points"),
    ("instances", _set(0, segmentation="a"), "annotations[0]", "a segmentation that is no list"),
    ("instances", _set(0, segmentation={"size": [4, 4], "counts": [16]}), "annotations[0]", "of an image of 60 x 44"),
    ("instances", _set(0, segmentation={"size": [44, 60], "counts": [16]}), "annotations[0]", "runs do not fill"),
    (
        "instances",
        _set(0, segmentation={"size": [44, 60], "counts": "\x01"}),
        "annotations[0]",
        "whose text holds no runs",
    ),
    (
        "instances",
        _set(0, segmentation={"size": [44, 60], "counts": "o"}),
        "annotations[0]",
        "whose text holds no runs",
    ),
    (
        "instances",
        _set(0, segmentation={"size": [44, 60], "counts": 13 * "o" + "0"}),
        "annotations[0]",
        "14 characters",
    ),
    (
        "instances",
        _set(0, segmentation={"size": [44, 60], "counts": 9 * "oooooooooo0"}),
        "annotations[0]",
        "do not fill",
    ),
    ("instances", _set(0, segmentation={"size": [44, 60], "counts": [10**30]}), "annotations[0]", "left out"),
    ("instances", _set(0, segmentation={"size": [44, 60], "counts": [-1, 2641]}), "annotations[0]", "do not fill"),
    ("instances", _set(0, segmentation={"size": [44, 60], "counts": ""}), "annotations[0]", "whose text holds no runs"),
    ("instances", _set(0, segmentation={"size": [44, 60], "counts": "\u20ac"}), "annotations[0]", "holds no runs"),
    ("instances", _set(0, segmentation={"size": [44, 60]}), "annotations[0]", "runs do not fill"),
    ("boxes", _photo(width=0), "images[0]", "accepted: file_name, and width and height in pixels"),
    ("boxes", _photo(file_name=None), "images[0]", "accepted: file_name"),
    ("boxes", _photo(id="x"), "images[0]", "no id in {"),
    ("boxes", _photo(id=999), "images[1]", "the id 999 of an earlier image"),
]
BROKEN_POINTS = [
    (_set(0, keypoints=[1, 2]), "the key points [1, 2]; accepted: 9 numbers"),
    (_set(0, keypoints=[1, 2, 3] * 3), "accepted: a visibility of 0, 1 or 2"),
    (_set(0, area=0), "the area 0; accepted: above 0"),
    (_set(0, area=None), "the area [None]; accepted: 1 numbers"),
    (_set(0, bbox=[200, 3, 5, 5]), "lies outside its image of 120 x 90"),
]


class TestBroken:
    @pytest.mark.parametrize(("target", "change", "where", "says"), BROKEN)
    def test_it_is_named_and_left_out(
        self, target: str, change: Callable, where: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        edited(coco_tree(tmp_path), change)
        files = Coco(tmp_path, SIZE, target=target).train()
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith(f"{tmp_path / OFFICIAL}: {where}")
        assert ": left out, it cannot be read (" in lines[0]
        assert says in lines[0]
        _, y = taken(stream(files).batches(4))
        sound = range(6) if len(files) == 6 else range(1, 6)
        for labels, i in zip(y, sound, strict=True):
            if i > 1:  # the faults are in the first two images
                check(labels, target, i)
        assert not capsys.readouterr().err
        Coco(tmp_path, SIZE, target=target).train()
        assert not capsys.readouterr().err  # named once

    @pytest.mark.parametrize(("change", "says"), BROKEN_POINTS)
    def test_key_points(self, change: Callable, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        edited(people_tree(tmp_path), change, "annotations/person_keypoints_train2017.json")
        assert len(Coco(tmp_path, target="points").train()) == 9
        assert says in capsys.readouterr().err

    def test_too_many_are_one_line(self, tmp_path: Path) -> None:
        def change(content: dict[str, Any]) -> None:
            for found in content["annotations"][:11]:
                found["category_id"] = 1

        edited(coco_tree(tmp_path, train=20), change)
        text = message(lambda: data.load("coco", tmp_path, target="boxes", stream=True))
        assert text.startswith("`data_dir`: 11 of ")
        assert " images and annotations cannot be read, the last is " in text
        assert text.endswith("annotations[10]; accepted: at most 10")

    def test_more_objects_than_numbers(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def change(content: dict[str, Any]) -> None:
            content["annotations"] = content["annotations"][:1] * 1001

        edited(coco_tree(tmp_path, train=1), change)
        assert len(Coco(tmp_path, SIZE, target="instances").train()) == 1
        assert capsys.readouterr().err.count("object 1000 of its image; accepted: up to 999") == 2

    @pytest.mark.parametrize("target", TARGETS)
    def test_annotations_of_another_size_than_the_file(
        self, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        coco_tree(tmp_path)
        write(tmp_path / "train2017/000000.jpg", Image.new("RGB", (30, 20)))
        (tmp_path / "train2017/000001.jpg").unlink()
        x, _ = taken(stream(Coco(tmp_path, SIZE, target=target).train()).batches(4))
        assert len(x) == 4
        err = capsys.readouterr().err
        assert "000000.jpg: left out, it cannot be read (30 x 20 pixels, but its annotations are of 60 x 44)" in err
        assert "000001.jpg: left out" in err

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{", "is no JSON ("),
            ("[" * 100000, "is no JSON ("),
            ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "is no JSON ("),
            ("[]", "lacks images, annotations, categories"),
            ('{"images": [], "annotations": {}, "categories": []}', "lacks annotations"),
            ('{"images": [], "annotations": [], "categories": []}', "holds no category"),
            ('{"images": [], "annotations": [], "categories": [3]}', "the category 3; accepted: a name, and an id"),
            (
                '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
                "the category {'id': 1, 'name': 'b'}; accepted: a name, and an id of its own",
            ),
            (json.dumps({"images": [], "annotations": [], "categories": CATEGORIES}), "no annotation of objects"),
        ],
    )
    def test_a_bad_file_is_one_line(self, text: str, says: str, tmp_path: Path) -> None:
        coco_tree(tmp_path, own=True)
        (tmp_path / "annotations/train.json").write_text(text)
        (tmp_path / "annotations/val.json").unlink()
        found = message(lambda: data.load("coco", tmp_path, target="boxes"))
        assert found.startswith(f"`data_dir`: {tmp_path}")
        assert says in found
        assert "accepted: " in found

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda root: shutil.rmtree(root / "annotations"), "holds no annotations/instances_train2017.json"),
            (lambda root: shutil.rmtree(root / "train2017"), "holds no train2017/"),
            (
                lambda root: edited(root, lambda c: c["categories"].append({"id": 1, "name": "a"})),
                "has other categories than instances_val2017.json; accepted: the same ids and names in both",
            ),
        ],
    )
    def test_a_bad_layout_is_one_line(self, spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
        spoil(coco_tree(tmp_path))
        text = message(lambda: data.load("coco", tmp_path, target="boxes"))
        assert text.startswith(f"`data_dir`: {tmp_path}")
        assert says in text
        assert "accepted: " in text

    def test_no_folder_and_no_such_targets(self, coco: Path, tmp_path: Path) -> None:
        assert "`data_dir`: None" in message(lambda: data.load("coco", target="boxes"))
        assert "is no folder" in message(lambda: data.load("coco", tmp_path / "none", target="boxes"))
        assert message(lambda: data.load("coco", coco)).startswith("`data`: coco has no targets of the kind class")
        assert "`download`" in message(lambda: data.download("coco", coco))
        assert "person_keypoints_train2017.json" in message(lambda: data.load("coco", coco, target="points"))

    def test_key_points_need_names(self, tmp_path: Path) -> None:
        coco_tree(tmp_path, own=True)
        text = message(lambda: data.load("coco", tmp_path, target="points"))
        assert "has 0 categories with key points; accepted: one, with a list of different names" in text

    def test_a_test_split_of_other_classes(self, coco: Path) -> None:
        text = message(lambda: data.load_test("coco", coco, target="boxes", classes=("background", "red")))
        assert "has other classes (4) than the trained network; accepted: the same 2" in text

    def test_outlines_need_their_package(self, coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(instances, "PACKAGE", "no_such_package")
        coco_file.read.cache_clear()
        text = message(lambda: data.load("coco", coco, target="instances"))
        assert text == "`data`: outlines need faster-coco-eval; run pip install 'res2net-search[detection]'"
        assert data.load("coco", coco, target="boxes", stream=True)


def test_a_polygon_of_a_rectangle_has_its_pixels() -> None:
    """So that the trees may use either form."""
    thing = things(5, 60, 44)[0]
    found = instances._map([instances.outline(1001, [polygon(thing)], 44, 60)], 44, 60)
    assert np.array_equal(found == 1001, owners([thing], 60, 44) == 1)
