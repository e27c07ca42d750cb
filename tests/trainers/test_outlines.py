"""Outlines of objects, as polygons or runs, become maps as COCO draws them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from object_trees import (
    owners,
    polygon,
    things,
)

from trainers.datasets import instances

CPU = torch.device("cpu")
SIZE = 64  # larger than every image of the trees
TARGETS = ("boxes", "instances")


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


def test_a_polygon_of_a_rectangle_has_its_pixels() -> None:
    """So that the trees may use either form."""
    thing = things(5, 60, 44)[0]
    found = instances._map([instances.outline(1001, [polygon(thing)], 44, 60)], 44, 60)
    assert np.array_equal(found == 1001, owners([thing], 60, 44) == 1)
