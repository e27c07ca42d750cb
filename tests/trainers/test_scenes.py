"""The generated scenes repeat, every annotation agrees with the instance map, and small to large objects all occur."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from res2net.errors import UserError
from trainers import datasets
from trainers.datasets import files, scene_objects, scenes
from trainers.datasets.base import partners
from trainers.datasets.drawing import CLASSES
from trainers.datasets.scenes import SceneArrays, Scenes, crops, generate, size_of

ANY_SCENES = given(n=st.integers(0, 6), seed=st.integers(0, 2**63), size=st.integers(32, 150))
FEW = settings(max_examples=15)


@pytest.fixture(scope="module")
def many() -> SceneArrays:
    return generate(400, 5)


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the training and test sets small."""
    monkeypatch.setattr(scenes, "TRAIN_POOL", (40, scenes.TRAIN_POOL[1]))
    monkeypatch.setattr(scenes, "TEST_SET", (10, scenes.TEST_SET[1]))


def used(found: SceneArrays) -> list[tuple[int, int]]:
    """Return the image and the slot of every object."""
    return [(int(i), int(slot)) for i, slot in np.argwhere(found.classes)]


def owned(found: SceneArrays, i: int, slot: int) -> np.ndarray:
    """Return the pixels of an object, bool [S, S]."""
    return found.instances[i] == slot + 1


@ANY_SCENES
@FEW
def test_arrays_have_the_promised_form(n: int, seed: int, size: int) -> None:
    found = generate(n, seed, size)
    forms = {name: (value.dtype.name, value.shape) for name, value in found._asdict().items()}
    assert forms == {
        "images": ("uint8", (n, 3, size, size)),
        "instances": ("uint8", (n, size, size)),
        "classes": ("uint8", (n, 7)),
        "boxes": ("float32", (n, 7, 4)),
        "points": ("float32", (n, 7, 5, 3)),
        "salient": ("int64", (n,)),
    }
    for again, array in zip(generate(n, seed, size), found, strict=True):
        assert np.array_equal(again, array)


@ANY_SCENES
@FEW
def test_objects_fill_the_first_slots_and_are_visible(n: int, seed: int, size: int) -> None:
    found = generate(n, seed, size)
    for i in range(n):
        count = np.count_nonzero(found.classes[i])
        assert 1 <= count <= 7
        assert found.classes[i].max() <= len(CLASSES)
        pixels = np.bincount(found.instances[i].ravel(), minlength=8)[1:]
        assert np.all(found.classes[i, :count] > 0)
        assert np.all(pixels[:count] >= scene_objects.MIN_PIXELS)
        assert not found.classes[i, count:].any()
        assert not pixels[count:].any()
        assert not found.boxes[i, count:].any()
        assert not found.points[i, count:].any()
        assert 0 <= found.salient[i] < count


@ANY_SCENES
@FEW
def test_boxes_are_tight_around_the_visible_pixels(n: int, seed: int, size: int) -> None:
    found = generate(n, seed, size)
    for i, slot in used(found):
        rows, columns = np.nonzero(owned(found, i, slot))
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert tuple(found.boxes[i, slot]) == box


@ANY_SCENES
@FEW
def test_points_are_the_centre_and_the_corners_of_the_box(n: int, seed: int, size: int) -> None:
    found = generate(n, seed, size)
    for i, slot in used(found):
        x1, y1, x2, y2 = found.boxes[i, slot].tolist()
        places = [((x1 + x2) / 2, (y1 + y2) / 2), (x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        for (x, y), point in zip(places, found.points[i, slot].tolist(), strict=True):
            assert point[:2] == [x, y]
            in_front = found.instances[i, int(min(y, y2 - 1)), int(min(x, x2 - 1))] > slot + 1
            assert point[2] == (1 if in_front else 2)


def test_an_image_depends_on_its_number_and_the_seed_only() -> None:
    more, fewer, other = generate(6, 3, 48), generate(4, 3, 48), generate(6, 4, 48)
    for a, b in zip(more, fewer, strict=True):
        assert np.array_equal(a[:4], b)
    assert len({image.tobytes() for found in (more, other) for image in found.images}) == 12


def test_another_process_draws_the_same() -> None:
    code = "import hashlib; from trainers.datasets.scenes import generate; "
    code += "print(hashlib.sha256(b''.join(array.tobytes() for array in generate(3, 1, 64))).hexdigest())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(array.tobytes() for array in generate(3, 1, 64)))
    assert done.stdout.strip() == here.hexdigest()


class TestMany:
    """What holds for many images of the usual size."""

    def test_three_to_seven_objects_of_every_class(self, many: SceneArrays) -> None:
        counts = np.count_nonzero(many.classes, axis=1)
        assert set(counts) == {3, 4, 5, 6, 7}
        shares = np.bincount(many.classes[many.classes > 0], minlength=11)[1:] / counts.sum()
        assert np.all((shares > 0.07) & (shares < 0.13))

    def test_objects_of_every_size(self, many: SceneArrays) -> None:
        sizes = size_of(many.boxes[many.classes > 0])
        small, medium, large = np.bincount(sizes, minlength=3) / len(sizes)
        assert 0.35 < small < 0.6
        assert 0.2 < medium < 0.4
        assert 0.1 < large < 0.3

    def test_objects_overlap(self, many: SceneArrays) -> None:
        touching = 0
        for i, slot in used(many):
            grown = np.pad(owned(many, i, slot), 1)
            grown = grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
            touching += bool(np.setdiff1d(many.instances[i][grown], (0, slot + 1)).size)
        assert 0.5 < touching / len(used(many)) < 0.9
        hidden = many.points[..., 2] == 1
        assert 0.02 < hidden.sum() / (many.points[..., 2] > 0).sum() < 0.3

    def test_the_salient_object_is_of_any_size_slot_and_class(self, many: SceneArrays) -> None:
        rows = np.arange(len(many.salient))
        boxes = many.boxes[rows, many.salient]
        assert np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).min() > 5
        sizes = size_of(boxes)
        assert np.all(np.bincount(sizes, minlength=3) / len(sizes) > 0.1)
        areas = np.stack([(many.instances == slot + 1).sum(axis=(1, 2)) for slot in range(7)], axis=1)
        assert 0.2 < np.mean(areas.argmax(axis=1) == many.salient) < 0.7
        assert len(np.unique(many.classes[rows, many.salient])) == len(CLASSES)

    def test_the_colour_tells_the_salient_object(self, many: SceneArrays) -> None:
        """The mean colour of the salient object, without its brightness, lies farthest from the mean of the image."""
        right = 0
        for i, slot in enumerate(many.salient.tolist()):
            colour = many.images[i] / 255 - (many.images[i] / 255).mean(axis=0)
            whole = np.median(colour, axis=(1, 2))
            slots = range(np.count_nonzero(many.classes[i]))
            means = [colour[:, owned(many, i, other)].mean(axis=1) for other in slots]
            right += int(np.argmax([np.linalg.norm(mean - whole) for mean in means])) == slot
        assert right / len(many.salient) > 0.95

    def test_brightness_does_not_tell_the_salient_object(self, many: SceneArrays) -> None:
        right = 0
        for i, slot in enumerate(many.salient.tolist()):
            grey = many.images[i].mean(axis=0)
            slots = range(np.count_nonzero(many.classes[i]))
            contrasts = [abs(grey[owned(many, i, other)].mean() - np.median(grey)) for other in slots]
            right += int(np.argmax(contrasts)) == slot
        assert right / len(many.salient) < 0.4


@pytest.mark.parametrize(("side", "group"), [(15.9, 0), (16, 1), (39.9, 1), (40, 2), (120, 2)])
def test_sizes_divide_at_16_and_40_pixels_of_128(side: float, group: int) -> None:
    box = np.array([[1, 2, 1 + side / 2, 2 + side * 2]])
    assert size_of(box).tolist() == [group]
    assert size_of(box * 2, 256).tolist() == [group]


def test_other_sizes_show_the_same_scale_of_objects() -> None:
    found = generate(200, 6, 64)
    sizes = size_of(found.boxes[found.classes > 0], 64)
    assert np.all(np.bincount(sizes, minlength=3) / len(sizes) > 0.1)
    assert generate(100, 7, 32).boxes.max() <= 32


def test_train_pool_and_test_set_are_of_different_seeds() -> None:
    assert scenes.TRAIN_POOL[1] != scenes.TEST_SET[1]
    assert scenes.TRAIN_POOL[0] == 2500
    assert scenes.TEST_SET[0] == 1000


@pytest.mark.usefixtures("few_images")
class TestDataSet:
    def test_loads_like_any_other(self) -> None:
        data = datasets.load("scenes", seed=1)
        assert (data.name, data.classes, data.image_size, data.in_channels) == ("scenes", CLASSES, 128, 3)
        assert (len(data.train), len(data.val)) == (32, 8)
        assert datasets.load("scenes", image_size=64).image_size == 64
        assert len(datasets.load_test("scenes")) == 10
        datasets.download("scenes", None)

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_labels_agree_with_the_objects(self, part: str) -> None:
        found = generate(*(scenes.TRAIN_POOL if part == "train" else scenes.TEST_SET), 40)
        splits = {target: getattr(Scenes(None, 40, target=target), part)() for target in ("class", "mask", "salient")}
        for split in splits.values():
            assert np.array_equal(split.images, found.images)
        salient = found.instances == found.salient[:, None, None] + 1
        assert splits["salient"].labels.dtype == np.uint8
        assert np.array_equal(splits["salient"].labels, salient)
        mask = splits["mask"].labels
        assert (mask.dtype, mask.shape) == (np.uint8, found.instances.shape)
        assert np.array_equal(mask == 0, found.instances == 0)
        for i, slot in used(found):
            assert np.all(mask[i][owned(found, i, slot)] == found.classes[i, slot])
        labels = splits["class"].labels
        assert labels.dtype == np.int64
        for i, label in enumerate(labels):
            assert np.all(mask[i][salient[i]] == label + 1)

    def test_classes_follow_the_target(self) -> None:
        assert Scenes().classes() == CLASSES
        assert Scenes(target="mask").classes() == ("background", *CLASSES)
        assert Scenes(target="salient").classes() == ("object",)
        assert partners(Scenes(target="points").classes()) == (0, 2, 1, 4, 3)

    def test_too_small_an_image_is_one_line(self) -> None:
        with pytest.raises(UserError) as caught:
            datasets.load("scenes", image_size=31)
        text = str(caught.value)
        assert text == "`image_size`: 31 is too small for scenes; accepted: at least 32 pixels along a side"
        assert datasets.load("scenes", image_size=32).image_size == 32

    @pytest.mark.parametrize(("target", "side"), [("class", 50), ("instances", 35), ("points", 50)])
    def test_more_than_the_memory_is_one_line(self, target: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "_free_memory", lambda: 2 * 40 * 4 * 50**2)
        with pytest.raises(UserError) as caught:
            datasets.load("scenes", image_size=8192, target=target)
        text = str(caught.value)
        assert text.startswith("`image_size`: 40 images of 8192 x 8192 need")
        assert text.endswith(f"GiB; accepted: `image_size` up to {side}")
        assert datasets.load("scenes", image_size=side, target=target).image_size == side


class TestPoints:
    def test_a_crop_shows_one_object_whole(self) -> None:
        found, size = generate(30, 3), 40
        cut = crops(found, size, 3, error=0)
        assert (cut.images.dtype, cut.images.shape) == (np.uint8, (30, 3, size, size))
        assert (cut.labels.dtype, cut.labels.shape) == (np.float32, (30, 6, 3))
        x, y = np.moveaxis(cut.labels[:, 1:5, :2], -1, 0)
        assert np.allclose((x.min(1) + x.max(1)) / 2, size / 2, atol=1e-3)  # the box is in the middle
        longer = np.maximum(x.max(1) - x.min(1), y.max(1) - y.min(1))
        assert np.allclose(longer, size / 1.25, atol=1e-3)
        assert np.all(cut.labels[:, -1] > 0)
        assert np.all(cut.labels[:, -1, 0] <= (x.max(1) - x.min(1)) * (y.max(1) - y.min(1)) * 1.001)

    def test_a_crop_of_the_whole_image_is_the_image(self) -> None:
        found = generate(2, 4, 32)
        whole = found._replace(
            classes=np.array([[1] + 6 * [0]] * 2, np.uint8),
            boxes=np.zeros_like(found.boxes),
            instances=np.ones_like(found.instances),
        )
        whole.boxes[:, 0] = 3.2, 3.2, 28.8, 28.8  # with the margin, the whole image
        assert np.array_equal(crops(whole, 32, 0, error=0).images, found.images)

    def test_given_boxes_are_off_but_show_the_whole_object(self) -> None:
        found, size = generate(200, 5, 32), 40
        x, y = np.moveaxis(crops(found, size, 3).labels[:, 1:5, :2], -1, 0)
        middle = np.stack([x.min(1) + x.max(1), y.min(1) + y.max(1)]) / 2 / size
        assert 0.03 < middle.std() < 0.06
        assert min(x.min(), y.min()) >= 0
        assert max(x.max(), y.max()) <= size
