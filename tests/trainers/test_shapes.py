"""The generated images repeat, their classes are even, and no rotation, mirroring or size confuses two classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.datasets import shapes

GRID = np.linspace(-1.5, 1.5, 121, dtype=np.float32)
V, U = np.meshgrid(GRID, GRID, indexing="ij")


def inside(name: str, angle: float = 0.0, mirror: bool = False) -> np.ndarray:
    """Return the grid points that a rotated, mirrored shape covers; the 0.01 leaves out points on an edge."""
    u, v = U * np.cos(angle) + V * np.sin(angle), V * np.cos(angle) - U * np.sin(angle)
    return shapes.SHAPES[name](-u if mirror else u, v) < -0.01


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two sets of points."""
    return (a & b).sum() / (a | b).sum()


@given(n=st.integers(0, 150), seed=st.integers(0, 2**63))
@settings(max_examples=10, deadline=None)
def test_images_repeat_and_classes_are_even(n: int, seed: int) -> None:
    images, labels = shapes.generate(n, seed)
    assert (images.dtype, images.shape) == (np.uint8, (n, 3, 32, 32))
    assert (labels.dtype, labels.shape) == (np.int64, (n,))
    counts = np.bincount(labels, minlength=len(shapes.CLASSES))
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1
    again, same_labels = shapes.generate(n, seed)
    assert np.array_equal(images, again)
    assert np.array_equal(labels, same_labels)


def test_another_seed_gives_other_images() -> None:
    seen = {image.tobytes() for seed in range(4) for image in shapes.generate(100, seed)[0]}
    assert len(seen) == 400


def test_train_pool_and_test_set_are_of_different_seeds() -> None:
    assert shapes.TRAIN_POOL[1] != shapes.TEST_SET[1]


def test_labels_are_shuffled() -> None:
    labels = shapes.generate(1000, 0)[1]
    assert len(set(labels[:100])) == 10
    assert np.any(np.diff(labels[:100]) != np.diff(labels[100:200]))


def test_an_object_stands_out() -> None:
    images, _ = shapes.generate(300, 3)
    brightness = images.mean(axis=1).reshape(300, -1) / 255
    # Half of the contrast, because the smallest objects cover few pixels fully, and those have grain.
    assert np.all(brightness.max(axis=1) - np.median(brightness, axis=1) > shapes.CONTRAST / 2)


def test_a_bright_enough_colour_always_exists() -> None:
    covered = shapes.BACKGROUND[1] + shapes.OPACITY * (shapes.PIECES[1] - shapes.BACKGROUND[1])  # the brightest cover
    assert covered + shapes.CONTRAST <= 1


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_a_shape_fills_its_circle_and_no_more(name: str) -> None:
    radius = np.hypot(U, V)[inside(name)]
    assert 0.8 < radius.max() <= 1
    assert 0.1 < inside(name).sum() / (np.hypot(U, V) < 1).sum() < 0.9


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_a_mirrored_shape_is_a_turned_one(name: str) -> None:
    mirrored = inside(name, mirror=True)
    assert max(overlap(mirrored, inside(name, angle)) for angle in np.arange(8) * np.pi / 4) > 0.97


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_no_two_shapes_are_alike_in_any_turn(name: str) -> None:
    turns = [inside(name, angle) for angle in np.arange(0, 2 * np.pi, np.pi / 12)]
    for other in shapes.CLASSES[: shapes.CLASSES.index(name)]:
        assert max(overlap(turn, inside(other)) for turn in turns) < 0.85


def test_raw_pixels_do_not_tell_the_classes() -> None:
    images, labels = shapes.generate(2500, 11)
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255 - 0.5
    train, val = slice(0, 2000), slice(2000, None)
    # Ridge regression onto the classes, in the dual form: 2000 images are fewer than 3072 pixels.
    kernel = pixels[train] @ pixels[train].T + 100 * np.eye(2000, dtype=np.float32)
    dual = np.linalg.solve(kernel, np.eye(10, dtype=np.float32)[labels[train]] - 0.1)
    right = (pixels[val] @ pixels[train].T @ dual).argmax(axis=1) == labels[val]
    assert right.mean() < 0.45
