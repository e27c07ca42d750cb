"""Boxes and instances in memory: they move with their images, scenes give them, and unusable ones are one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import example_data
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streams import message, parts, rng, taken

from trainers.datasets import data, scenes
from trainers.datasets.base import COCO_SIZES, OBJECTS, Data, Split
from trainers.datasets.boxes import clipped, mirrored
from trainers.datasets.scenes import CLASSES, Scenes, generate
from trainers.images import Images
from trainers.targets import dtype_of, mover

CPU = torch.device("cpu")
BLOCKS = "example_data:Blocks"


def tight(pixels: torch.Tensor) -> list[int]:
    """Return the box around the pixels of a map [H, W] that are not 0."""
    rows, columns = pixels.any(1).nonzero()[:, 0].tolist(), pixels.any(0).nonzero()[:, 0].tolist()
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@given(
    n=st.integers(1, 4), size=st.integers(4, 12), padding=st.integers(0, 9), flip=st.booleans(), seed=st.integers(0, 99)
)
def test_boxes_move_like_their_pixels(n: int, size: int, padding: int, flip: bool, seed: int) -> None:
    """A box around the pixels that are left of a rectangle, if a quarter of them is left."""
    draw = np.random.default_rng(seed)
    ends = np.sort(
        np.stack([draw.permuted(np.tile(np.arange(size + 1), (n, 3, 1)), axis=2)[..., :2] for _ in "xy"], 3), 2
    )
    boxes = np.zeros((n, 4, 6), np.float32)  # the last row is empty
    boxes[:, :3, :4] = ends.reshape(n, 3, 4)
    boxes[:, :3, 4:] = np.stack([draw.integers(1, 9, (n, 3)), draw.integers(0, 2, (n, 3))], 2)
    maps = np.zeros((3, n, size, size), np.int32)
    for i, k in np.ndindex(n, 3):
        x1, y1, x2, y2, number = boxes[i, k, :5].astype(int)
        maps[k, i, y1:y2, x1:x2] = OBJECTS * number + k + 1
    any_images = Split(np.zeros((n, 1, size, size), np.uint8), boxes)
    found = Data("any", ("background", "a"), any_images, any_images, (0.0,), (1.0,), "boxes")
    index = torch.from_numpy(draw.integers(0, n, 6))
    offsets = torch.from_numpy(draw.integers(0, 2 * padding + 1, (2, 6)))
    flips = torch.from_numpy(draw.random(6) < 0.5) if flip else None
    moved = mover(torch.from_numpy(boxes), found, size, padding)(index, offsets, flips)
    assert (moved.dtype, moved.shape) == (torch.float32, (6, 4, 6))
    assert not moved[:, 3].any()
    for k in range(3):
        shown = mover(torch.from_numpy(maps[k]), replace(found, target="instances"), size, padding)(
            index, offsets, flips
        )
        assert (shown.dtype, shown.shape) == (torch.int32, (6, size, size))
        for row, pixels, i in zip(moved[:, k], shown, index.tolist(), strict=True):
            left, whole = int((pixels > 0).sum()), int((maps[k, i] > 0).sum())
            if left and 4 * left >= whole:
                assert row[:4].tolist() == tight(pixels)
                assert row[4:].tolist() == boxes[i, k, 4:].tolist()
                assert set(pixels.unique().tolist()) <= {0, OBJECTS * int(row[4]) + k + 1}
            else:
                assert not row.any()


@given(st.integers(0, 999), st.integers(8, 640))
def test_mirrored_twice_are_the_boxes_themselves(seed: int, size: int) -> None:
    boxes = size * torch.rand(3, 4, 6, generator=rng(seed))
    torch.testing.assert_close(mirrored(mirrored(boxes, size), size), boxes, atol=1e-3, rtol=0)
    assert torch.equal(mirrored(boxes, size)[..., [1, 3, 4, 5]], boxes[..., [1, 3, 4, 5]])


@pytest.mark.parametrize(
    ("box", "left"),
    [
        ((2, 3, 9, 8), (2, 3, 9, 8)),
        ((-3, 0, 1, 10), (0, 0, 1, 10)),  # a quarter of its area
        ((-3.1, 0, 1, 10), None),
        ((-0.5, 4, 0.9, 9), None),  # less than a pixel along a side
        ((9.2, 4, 9.9, 9), None),
        ((4, 9, 12, 11), (4, 9, 10, 10)),
        ((-5, -5, 30, 30), None),
        ((-5, -5, 12, 12), (0, 0, 10, 10)),
        ((10, 2, 14, 6), None),
        ((-30, -30, -20, -20), None),
    ],
)
def test_an_object_with_too_little_left_is_removed(box: tuple[float, ...], left: tuple[float, ...] | None) -> None:
    row = torch.tensor([[*box, 3.0, 1.0]])
    expected = [*left, 3, 1] if left else [0] * 6
    torch.testing.assert_close(clipped(row, 10, 10), torch.tensor([expected], dtype=torch.float32))
    assert not clipped(torch.tensor([[*box, 0.0, 0.0]]), 10, 10).any()  # an empty row stays one


def test_types_on_the_device() -> None:
    assert [dtype_of(target) for target in ("boxes", "instances")] == [torch.float32, torch.int32]


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "TRAIN_POOL", (20, scenes.TRAIN_POOL[1]))
    monkeypatch.setattr(scenes, "TEST_SET", (6, scenes.TEST_SET[1]))


@pytest.mark.usefixtures("few_scenes")
class TestScenes:
    def test_labels_are_those_of_the_arrays(self) -> None:
        found = generate(*scenes.TEST_SET, 48)
        boxes, maps = (Scenes(None, 48, target=target).test() for target in ("boxes", "instances"))
        assert np.array_equal(boxes.images, found.images)
        assert np.array_equal(maps.images, found.images)
        assert (boxes.labels.dtype, boxes.labels.shape) == (np.float32, (6, 7, 6))
        assert (maps.labels.dtype, maps.labels.shape) == (np.int32, (6, 48, 48))
        assert not boxes.labels[..., 5].any()
        assert np.array_equal(maps.labels % OBJECTS, found.instances)
        for i, slot in np.ndindex(6, 7):
            number = int(found.classes[i, slot])
            assert boxes.labels[i, slot, 4] == number
            pixels = maps.labels[i] == OBJECTS * number + slot + 1
            assert np.array_equal(pixels, (found.instances[i] == slot + 1) & (number > 0))
            expected = tight(torch.from_numpy(pixels)) if number else [0] * 4
            assert boxes.labels[i, slot, :4].tolist() == expected

    @pytest.mark.parametrize("target", ["boxes", "instances"])
    def test_loads_like_any_other(self, target: str) -> None:
        loaded = data.load("scenes", target=target, image_size=64)
        assert loaded.classes == ("background", *CLASSES) == data.classes_of("scenes", target=target)
        assert loaded.sizes == (8, 20) == Images(loaded.val, loaded, CPU).sizes
        assert (len(loaded.train), len(loaded.val)) == (16, 4)
        assert len(data.load_test("scenes", target=target, image_size=64)) == 6

    def test_boxes_and_instances_move_alike(self) -> None:
        both = []
        for target in ("boxes", "instances"):
            loaded = data.load("scenes", target=target, image_size=64, val_fraction=0)
            images = Images(loaded.train, loaded, CPU, padding=16)
            both.append(taken(images.epoch(rng(3), parts(20, 6))))
        assert torch.equal(both[0][0], both[1][0])
        kept = 0
        for boxes, shown in zip(both[0][1], both[1][1], strict=True):
            for k, row in enumerate(boxes):
                pixels = shown == OBJECTS * int(row[4]) + k + 1
                if row.any() and pixels.any():
                    kept += 1
                    inner = tight(pixels)
                    assert inner[0] >= row[0]
                    assert inner[1] >= row[1]
                    assert inner[2] <= row[2]
                    assert inner[3] <= row[3]
        assert kept > 50


def test_sizes_of_objects() -> None:
    assert data.load(BLOCKS).sizes == COCO_SIZES == (32, 96)
    assert data.sizes_of("scenes") == (16, 40)
    assert data.sizes_of("scenes", target="boxes", image_size=256) == (32, 80)
    assert data.sizes_of("example_data:Stripes") == COCO_SIZES


def _changed(place: tuple[object, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(labels: np.ndarray) -> np.ndarray:
        changed = labels.copy()
        changed[place] = value
        return changed

    return change


class TestUnusable:
    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (lambda b: b.astype(np.float64), "float64 [64, 2, 6]; accepted: float32 [64, objects, 6]"),
            (lambda b: b[..., :5], "float32 [64, 2, 5]; accepted: float32 [64, objects, 6]"),
            (lambda b: b[:, :0], "float32 [64, 0, 6]; accepted: float32 [64, objects, 6]"),
            (_changed((3, 0, 0), np.nan), "; accepted: numbers"),
            (_changed((3, 0, 4), 1.5), "1.5, 0.0]; accepted: class numbers from 1 to 3, and 0 for an empty row"),
            (_changed((3, 0, 4), 4), "4.0, 0.0]; accepted: class numbers from 1 to 3"),
            (_changed((3, 0, 4), -1), "-1.0, 0.0]; accepted: class numbers from 1 to 3"),
            (_changed((3, 0, 5), 2), "2.0]; accepted: a flag of 0 or 1"),
            (_changed((3, 1, 2), 2), "[0.0, 0.0, 2.0, 0.0, 0.0, 0.0]; accepted: zeros for an empty row"),
            (_changed((3, 0, 2), 17), "; accepted: x1 < x2 and y1 < y2, from 0 to 16"),
            (_changed((3, 0, 1), -1), "; accepted: x1 < x2 and y1 < y2, from 0 to 16"),
            (_changed((3, 0, 3), 0), "; accepted: x1 < x2 and y1 < y2, from 0 to 16"),
            (lambda b: b[:, ::-1], "; accepted: objects before empty rows"),
        ],
    )
    def test_boxes(self, monkeypatch: pytest.MonkeyPatch, change: Callable, text: str) -> None:
        self.check(monkeypatch, "boxes", change, text)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (lambda m: m.astype(np.int64), "int64 [64, 16, 16]; accepted: int32 [64, 16, 16]"),
            (lambda m: m[:, :8], "int32 [64, 8, 16]; accepted: int32 [64, 16, 16]"),
            (_changed((3, 0, 0), 7), "hold 7; accepted: 0, or 1000 * class number + object number, up to 3999"),
            (_changed((3, 0, 0), -1), "hold -1; accepted: 0, or"),
            (_changed((3, 0, 0), 4000), "hold 4000; accepted: 0, or"),
        ],
    )
    def test_instances(self, monkeypatch: pytest.MonkeyPatch, change: Callable, text: str) -> None:
        self.check(monkeypatch, "instances", change, text)

    @pytest.mark.parametrize("target", ["boxes", "instances"])
    def test_the_first_class_is_the_background(self, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
        assert data.load(BLOCKS, target=target).classes == ("background", "red", "green", "blue")
        monkeypatch.setattr(example_data.Blocks, "classes", lambda self: ("red", "green", "blue", "white"))
        text = message(lambda: data.load(BLOCKS, target=target))
        assert text == (
            "`data`: blocks has the classes red, green, blue, white; accepted for objects: background, then the classes"
        )

    def check(self, monkeypatch: pytest.MonkeyPatch, target: str, change: Callable, text: str) -> None:
        whole = example_data.Blocks.train
        monkeypatch.setattr(
            example_data.Blocks, "train", lambda self: replace(whole(self), labels=change(whole(self).labels))
        )
        found = message(lambda: data.load(BLOCKS, target=target))
        assert found.startswith(f"`data`: {target} of blocks ")
        assert text in found
