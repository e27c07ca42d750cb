"""COCO's format: boxes and instances move with their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_trees import agreement, image_of, write
from object_trees import (
    CATEGORIES,
    check_labels,
    coco_tree,
    edited,
    entry,
    labels_of,
    owners,
    save,
    size_of,
    things,
)
from streams import message, parts, pixels_of, rng, stream, taken

from trainers.datasets import data
from trainers.datasets.base import OBJECTS
from trainers.datasets.coco import Coco
from trainers.datasets.files import MEAN, STD
from trainers.images import Images, source

CPU = torch.device("cpu")
SIZE = 64  # larger than every image of the trees
TARGETS = ("boxes", "instances")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_tree(tmp_path_factory.mktemp("coco"), train=12)


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
                check_labels(labels, target, i)

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
            check_labels(labels, "instances", i)


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
