"""Place the objects of `scenes`: choose their sizes, places and order, so that each object stays visible."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from trainers.datasets.drawing import CLASSES, SHAPES, coverage, log_uniform

SIZE = 128  # pixels along a side, by default
SLOTS = 7  # maximum number of objects in an image
LEAST_OBJECTS = 3
# Range of the diameters of the objects' circumscribed circles, and the minimum diameter of the salient object. The
# values are pixels of an image of 128 x 128. They scale with the image, down to the limits below.
DIAMETERS = (4.0, 96.0)
SALIENT_DIAMETER = 12.0
# Limits in pixels, for images of any size.
MIN_DIAMETER = 4.0
MIN_SALIENT_DIAMETER = 6.0
MIN_PIXELS = 4  # minimum number of visible pixels of an object; the smallest thin shapes have few more pixels

VISIBLE = 0.6  # minimum visible share of an object's pixels
NEIGHBOUR = 0.45  # share of the objects that are placed next to an earlier object instead of anywhere
TRIES = 20  # number of places to try for an object
SHRINK = 0.9  # factor of the diameter after a failed try

Window = tuple[slice, slice]  # rows and columns


class Object(NamedTuple):
    """An object. `cover`: the share of each pixel of its window, in 0..1, that the object covers unless hidden."""

    label: int  # class number
    diameter: float  # pixels
    window: Window
    cover: np.ndarray


def place(rng: np.random.Generator, instances: np.ndarray) -> list[Object]:
    """Place objects from back to front and write their numbers into `instances`, which must be 0.

    Large objects come first. A new object may hide only a part of each earlier object. If it would hide more, try a
    smaller object at another place. Leave out an object if all tries fail, which is rare. The largest object always
    finds a place, because there is no earlier object.
    """
    size = len(instances)
    count = int(rng.integers(LEAST_OBJECTS, SLOTS, endpoint=True))
    smallest, largest = max(DIAMETERS[0] * size / SIZE, MIN_DIAMETER), DIAMETERS[1] * size / SIZE
    diameters = log_uniform(rng, smallest, largest, (count,))
    diameters[0] = log_uniform(rng, _least_salient(size), largest, ())  # at least one object must be large enough
    labels = rng.integers(len(CLASSES), size=count).tolist()
    placed: list[Object] = []
    # For each slot: the number of visible pixels, and its minimum. Both are 0 for slots that are not used yet.
    visible, least = np.zeros(SLOTS, np.int64), np.zeros(SLOTS, np.int64)
    for diameter, label in zip(np.sort(diameters)[::-1].tolist(), labels, strict=True):
        for _ in range(TRIES):
            found = _try(rng, label, diameter, placed, size)
            under, mask = instances[found.window], found.cover >= 0.5
            pixels = np.count_nonzero(mask)
            left = visible - np.bincount(under[mask], minlength=SLOTS + 1)[1:]
            if pixels >= MIN_PIXELS and np.all(left >= least):
                slot = len(placed)
                under[mask] = slot + 1
                visible = left
                visible[slot] = pixels
                least[slot] = max(math.ceil(VISIBLE * pixels), MIN_PIXELS)
                placed.append(found)
                break
            diameter = max(diameter * SHRINK, smallest)
    return placed


def _least_salient(size: int) -> float:
    return max(SALIENT_DIAMETER * size / SIZE, MIN_SALIENT_DIAMETER)


def _try(rng: np.random.Generator, label: int, diameter: float, placed: list[Object], size: int) -> Object:
    """Return an object at a random angle and place, wholly inside the image: anywhere, or next to an earlier object."""
    side = math.ceil(diameter) + 2  # room for a soft edge and for a shift by half a pixel
    row, column = rng.uniform(0, size - side, 2)
    if placed and rng.random() < NEIGHBOUR:
        other = placed[rng.integers(len(placed))]
        distance = rng.uniform(0.4, 1.0) * (diameter + other.diameter) / 2
        direction = rng.uniform(0, 2 * math.pi)
        row = (other.window[0].start + other.window[0].stop - side) / 2 + distance * math.sin(direction)
        column = (other.window[1].start + other.window[1].stop - side) / 2 + distance * math.cos(direction)
    top, left = (min(max(round(start), 0), size - side) for start in (row, column))
    window = slice(top, top + side), slice(left, left + side)
    middle = side / 2 + rng.uniform(-0.5, 0.5, 2)
    u, v = rotated(window, top + middle[0], left + middle[1], rng.uniform(0, 2 * math.pi))
    radius = np.float32(diameter / 2)
    distance = SHAPES[CLASSES[label]](u / radius, v / radius) * radius  # the shapes lie within the unit circle
    return Object(label, diameter, window, coverage(distance))


def rotated(window: Window, y: float, x: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of a window's pixels, both float32 [rows, columns], in a frame at (x, y)."""
    rows = np.arange(window[0].start, window[0].stop, dtype=np.float32) + np.float32(0.5 - y)
    columns = np.arange(window[1].start, window[1].stop, dtype=np.float32) + np.float32(0.5 - x)
    cos, sin = math.cos(angle), math.sin(angle)
    return (rows * sin)[:, None] + columns * cos, (rows * cos)[:, None] - columns * sin


def pick_salient(rng: np.random.Generator, objects: list[Object], size: int) -> int:
    """Return the slot of a random object that is large enough. The first object always is large enough."""
    return int(rng.choice([slot for slot, o in enumerate(objects) if slot == 0 or o.diameter >= _least_salient(size)]))
