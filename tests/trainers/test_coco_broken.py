"""Unusable annotations of COCO's format are named and left out; unusable files are one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mask_trees import write
from object_trees import (
    CATEGORIES,
    OFFICIAL,
    check_labels,
    coco_tree,
    edited,
    people_tree,
)
from PIL import Image
from streams import message, stream, taken

from trainers.datasets import coco_file, data, instances
from trainers.datasets.coco import Coco

CPU = torch.device("cpu")
SIZE = 64  # larger than every image of the trees
TARGETS = ("boxes", "instances")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_tree(tmp_path_factory.mktemp("coco"), train=12)


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
    ("instances", _set(0, segmentation=[[1, 2, 3, 4]]), "annotations[0]", "a polygon that is not 3 or more points"),
    ("instances", _set(0, segmentation=[["a"] * 6]), "annotations[0]", "a polygon that is not 3 or more points"),
    ("instances", _set(0, segmentation="a"), "annotations[0]", "a segmentation that is neither a list"),
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
    ("instances", _set(0, segmentation={"size": [44, 60], "counts": [10**30]}), "annotations[0]", "do not fill"),
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
                check_labels(labels, target, i)
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
