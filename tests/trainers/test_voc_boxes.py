"""Pascal VOC's boxes: the lists of each year, flags, and unusable annotations of one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from object_trees import size_of, things, voc_boxes_tree
from streams import message, parts, rng, stream, taken

from trainers.datasets import data
from trainers.datasets.voc import CLASSES, Voc
from trainers.images import source

CPU = torch.device("cpu")
SIZE = 64  # larger than every image of the trees


def boxes(root: Path, part: str = "train") -> torch.Tensor:
    return taken(stream(getattr(Voc(root, SIZE, target="boxes"), part)()).batches(4))[1]


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_boxes_tree(tmp_path_factory.mktemp("voc"), train=range(9), val=range(20, 23))


def test_rows_are_in_pixels_with_flags(voc: Path) -> None:
    for part, numbers in (("train", range(9)), ("test", range(20, 23))):
        found = boxes(voc, part)
        assert found.shape[1] == max(len(things(i, *size_of(i))) for i in numbers)
        for rows, i in zip(found, numbers, strict=True):
            objects = things(i, *size_of(i))
            flags = [int(not k and i % 2 == 0) for k in range(len(objects))]
            assert rows[: len(objects)].tolist() == [[*thing, flag] for thing, flag in zip(objects, flags, strict=True)]
            assert not rows[len(objects) :].any()


def test_loads_like_any_other(voc: Path) -> None:
    loaded = data.load("voc", voc, target="boxes", stream=True)
    assert (loaded.classes, loaded.image_size, loaded.sizes) == (CLASSES, 512, (32, 96))
    assert Voc(voc, target="boxes").note() == f"{voc}: training images of train.txt, boxes of Annotations"
    arrays, files = (data.load("voc", voc, target="boxes", image_size=40, stream=stream) for stream in (False, True))
    x, y = taken(source(arrays.train, arrays, CPU).batches(4))
    other, labels = taken(source(files.train, files, CPU).batches(3))
    torch.testing.assert_close(x, other)
    assert torch.equal(y, labels)
    x, y = taken(source(files.train, files, CPU).epoch(rng(), parts(len(files.train), 4)))
    assert (x.shape[1:], y.dtype) == ((3, 40, 40), torch.float32)


@pytest.mark.parametrize("place", ["VOCdevkit/VOC2007", "VOCdevkit/VOC2012", "."])
def test_the_test_list_counts_if_its_images_have_annotations(place: str, tmp_path: Path) -> None:
    lists = {"trainval": range(6), "train": range(4), "val": range(4, 6), "test": range(10, 13)}
    root = voc_boxes_tree(tmp_path / place, **lists)
    dataset = Voc(tmp_path, target="boxes")
    assert (len(dataset.train()), len(dataset.test())) == (6, 3)
    (root / "Annotations/000011.xml").unlink()
    assert (len(dataset.train()), len(dataset.test())) == (4, 2)


def _replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


class TestBroken:
    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (_replaced("<name>aeroplane", "<name>plane"), "object 1: left out, it cannot be read (the class 'plane'; "),
            (_replaced("<xmin>", "<xmin>a"), "object 1: left out, it cannot be read (the box a"),
            (_replaced("<xmin>", "<xmin>500"), "has no area"),
            (_replaced("bndbox", "box"), "mismatched tag"),
            (_replaced("<name>", "<name/><name>"), "the class ''"),
            (_replaced("<width>60", "<width>wide"), "the width 'wide' of the image; accepted: pixels, at least 1"),
            (_replaced("<height>", "<height>-"), "of the image; accepted: pixels, at least 1"),
            (lambda path: path.unlink(), "No such file"),
            (lambda path: path.write_text(""), "no element found"),
            (lambda path: path.write_bytes(b'<?xml version="1.0" encoding="none"?><annotation/>'), "left out"),
        ],
    )
    def test_it_is_named_and_left_out(
        self, spoil: Callable[[Path], object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        voc_boxes_tree(tmp_path, train=range(6), val=range(2))
        path = tmp_path / "Annotations/000000.xml"
        path.write_text(path.read_text().replace("bicycle", "aeroplane").replace("bird", "aeroplane"))
        spoil(path)
        found = boxes(tmp_path)
        line = capsys.readouterr().err
        assert line.startswith(f"{path}: ")
        assert line.count("\n") == 1
        assert says in line
        assert len(found) == (6 if ": object 1" in line else 5)

    def test_too_many_are_one_line(self, tmp_path: Path) -> None:
        voc_boxes_tree(tmp_path, train=range(20), val=range(2))
        for i in range(11):
            (tmp_path / f"Annotations/{i:06}.xml").unlink()
        text = message(lambda: data.load("voc", tmp_path, target="boxes"))
        assert text.startswith("`data_dir`: 11 of 20 annotations cannot be read, the last is ")
        assert text.endswith("000010.xml; accepted: at most 10")

    def test_no_object_at_all(self, tmp_path: Path) -> None:
        voc_boxes_tree(tmp_path, train=[0], val=[1])
        for i in range(2):
            (tmp_path / f"Annotations/{i:06}.xml").write_text(
                "<annotation><size><width>60</width><height>44</height></size></annotation>"
            )
        assert "holds no object of the listed images" in message(lambda: data.load("voc", tmp_path, target="boxes"))

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda root: (root / "ImageSets/Main/train.txt").unlink(), "No such file"),
            (
                lambda root: shutil.rmtree(root / "JPEGImages"),
                "and no VOCdevkit/VOC2007/JPEGImages/; accepted: a folder",
            ),
        ],
    )
    def test_a_bad_layout_is_one_line(self, spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
        spoil(voc_boxes_tree(tmp_path, train=range(3), val=range(2)))
        text = message(lambda: data.load("voc", tmp_path, target="boxes"))
        assert says in text
        assert "Annotations/, and ImageSets/Main/ with train.txt and val.txt" in text

    def test_no_folder(self) -> None:
        assert "`data_dir`: None" in message(lambda: data.load("voc", target="boxes"))


def test_masks_are_not_touched_by_boxes(voc: Path) -> None:
    assert np.array_equal(Voc(voc, target="boxes").classes(), CLASSES)
    assert "SegmentationClass" in message(lambda: Voc(voc, target="mask").train())
