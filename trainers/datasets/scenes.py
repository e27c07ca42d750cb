"""A generated data set for every task: several overlapping shapes over clutter, with masks, boxes and key points.

Each image shows 3 to 7 objects of the classes of `shapes`, log-uniform from 4 to 96 pixels at 128 x 128. Large objects
lie behind small ones. The objects and the clutter share dull colours around one hue. One object, the salient one, has a
vivid colour of a hue that nothing else in the image has. It has any place, and any diameter from 12 pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from res2net.errors import UserError
from trainers.datasets.base import BOX_MARGIN, OBJECTS, DataSet, Split
from trainers.datasets.drawing import CLASSES
from trainers.datasets.files import check_memory
from trainers.datasets.scene_objects import SIZE, SLOTS, Window, pick_salient, place
from trainers.datasets.scene_picture import draw

POINTS = ("centre", "top left", "top right", "bottom right", "bottom left")  # key points: places of an object's box
BOX_ERROR = 0.1  # error of the given boxes, for key points; `BOX_MARGIN` still keeps the whole object in the image
CROP_SIZE = 64  # pixels along a side of an image of one object, for key points
MIN_SIDE = 32  # pixels along a side; in smaller images, objects of 4 pixels would be large
SMALL, MEDIUM = 16, 40  # bounds between small, medium and large boxes, in pixels of an image of 128 x 128 (`size_of`)
# Bytes per pixel of an image with its map of instances, and of the map for a target.
BYTES, MAP_BYTES = 4, {"mask": 1, "salient": 1, "instances": 4}

# Number of images and seed. Both are fixed, so that any two runs are scored on the same images.
TRAIN_POOL = (2_500, 190_416)
TEST_SET = (1_000, 1_758)


class SceneArrays(NamedTuple):
    """Images and their annotations. N images of S x S pixels have up to M = 7 objects, in slots from back to front.

    An object owns the pixels that it covers by half or more and that no object in front of it owns. Unused slots are 0.
    """

    images: np.ndarray  # uint8 [N, 3, S, S]
    instances: np.ndarray  # uint8 [N, S, S]: 0 for the background, i + 1 for the object in slot i
    classes: np.ndarray  # uint8 [N, M]: 1 + the class number, 0 for an unused slot
    boxes: np.ndarray  # float32 [N, M, 4]: x1, y1, x2, y2 in pixels, x2 and y2 exclusive; tight around visible pixels
    # float32 [N, M, 5, 3]: x, y, visibility. The points are the centre of the box and its corners, clockwise from the
    # top left. Visibility: 2, or 1 where an object in front owns the point's pixel, or 0 for an unused slot.
    points: np.ndarray
    salient: np.ndarray  # int64 [N]: slot of the salient object


class Scenes(DataSet):
    """2,500 training and 1,000 test images of 128 x 128 pixels or any other size, generated from fixed seeds."""

    name = "scenes"
    val_fraction = 0.2
    resizable = True
    targets = ("class", "mask", "salient", "points", "boxes", "instances")

    def classes(self) -> tuple[str, ...]:
        """Return the names of the shapes. Masks, boxes and instances also have the background, as the first class.

        For points: return the names of the key points.
        """
        names = {"class": CLASSES, "salient": ("object",), "points": POINTS}
        return names.get(self.target, ("background", *CLASSES))

    def sizes(self) -> tuple[float, float]:
        """Return the bounds of `size_of` in pixels."""
        scale = (self.image_size or SIZE) / SIZE
        return SMALL * scale, MEDIUM * scale

    def train(self) -> Split:
        """Generate the training images."""
        return self._split(*TRAIN_POOL)

    def test(self) -> Split:
        """Generate the test images."""
        return self._split(*TEST_SET)

    def download(self) -> None:
        """Do nothing: the images need no files."""

    @classmethod
    def base(cls, image_size: int | None) -> str:
        """Return the search base `thin`, which trains fastest."""
        return "thin"

    @classmethod
    def check_image_size(cls, image_size: int) -> None:
        """Raise `UserError` for images that are too small for several objects."""
        if image_size < MIN_SIDE:
            raise UserError(
                f"`image_size`: {image_size} is too small for {cls.name}; accepted: at least {MIN_SIDE} pixels along a "
                f"side"
            )

    def _split(self, n: int, seed: int) -> Split:
        if self.image_size is not None:  # the arrays of the default sizes are small
            check_memory(n, self.image_size, BYTES + MAP_BYTES.get(self.target, 0), fixed=True)
        if self.target == "points":
            return crops(generate(n, seed), self.image_size or CROP_SIZE, seed)
        scenes = generate(n, seed, self.image_size or SIZE)
        return Split(scenes.images, _labels(scenes, self.target))


def _labels(scenes: SceneArrays, target: str) -> np.ndarray:
    """Return the labels for a target.

    class: int64 [N], class number of the salient object. mask: uint8 [N, S, S], 1 + the class number of the object that
    owns the pixel, 0 for the background. salient: uint8 [N, S, S], 1 on the salient object. boxes: float32 [N, M, 6].
    instances: int32 [N, S, S].
    """
    if target == "class":
        return scenes.classes[np.arange(len(scenes.salient)), scenes.salient].astype(np.int64) - 1
    if target == "mask":
        return _replaced(scenes.instances, scenes.classes)
    if target == "instances":
        numbers = np.arange(1, 1 + SLOTS, dtype=np.int32)
        return _replaced(scenes.instances, OBJECTS * scenes.classes.astype(np.int32) + numbers)
    if target == "boxes":
        flags = np.zeros_like(scenes.boxes[..., :1])
        return np.concatenate([scenes.boxes, scenes.classes[..., None].astype(np.float32), flags], axis=2)
    if target == "salient":
        return (scenes.instances == 1 + scenes.salient[:, None, None]).astype(np.uint8)
    raise AssertionError(target)


def _replaced(instances: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return maps [N, S, S] in which a pixel has its object's value. values: [N, M], by slot."""
    by_number = np.pad(values, ((0, 0), (1, 0)))
    maps = np.empty(instances.shape, values.dtype)
    for found, value, numbers in zip(maps, by_number, instances, strict=True):
        found[:] = value[numbers]
    return maps


def crops(scenes: SceneArrays, size: int, seed: int, error: float = BOX_ERROR) -> Split:
    """Return one object of each scene for the target `points`, as `TARGETS` describes it.

    Each scene gives one object, so that no two images of a split show parts of the same scene.

    size: pixels along a side.
    error: the error of the given boxes, to imitate a detector. The centre is off by up to this share of the longer
        side, and the side is longer by up to three times this share. With exact boxes, the corners of all objects would
        lie at almost the same places.
    """
    n, used = len(scenes.images), scenes.classes > 0
    # The slots in use come first.
    rng = np.random.default_rng([seed, n])
    slots = np.floor(rng.random(n) * used.sum(1)).astype(np.int64)
    rows = np.arange(n)
    boxes, points = scenes.boxes[rows, slots], scenes.points[rows, slots]
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1)
    sides = BOX_MARGIN * longer * rng.uniform(1, 1 + 3 * error, n)
    shifts = longer[:, None] * rng.uniform(-error, error, (n, 2))
    corners = (boxes[:, :2] + boxes[:, 2:] - sides[:, None]) / 2 + shifts
    scale = size / sides
    labels = np.empty((n, len(POINTS) + 1, 3), np.float32)
    labels[:, :-1, :2] = (points[..., :2] - corners[:, None]) * scale[:, None, None]
    labels[:, :-1, 2] = points[..., 2]
    area = (scenes.instances == slots[:, None, None] + 1).sum((1, 2)) * scale**2
    labels[:, -1] = np.stack([area, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), scale], axis=1)
    images = np.stack([_cut(*found, size) for found in zip(scenes.images, corners, sides, strict=True)])
    return Split(images, labels)


def _cut(image: np.ndarray, corner: np.ndarray, side: float, size: int) -> np.ndarray:
    """Return a square of an image, uint8 [3, size, size], interpolated bilinearly. Edges continue outside the image."""
    x, y = np.clip(corner[:, None] + (np.arange(size) + 0.5) * (side / size) - 0.5, 0, image.shape[-1] - 1)
    left, top = (np.minimum(at.astype(np.intp), image.shape[-1] - 2) for at in (x, y))
    across, down = (x - left).astype(np.float32), (y - top).astype(np.float32)[:, None]
    rows = image[:, top] * (1 - down) + image[:, top + 1] * down
    return (rows[:, :, left] * (1 - across) + rows[:, :, left + 1] * across).round().astype(np.uint8)


def size_of(boxes: np.ndarray, image_size: int = SIZE) -> np.ndarray:
    """Return the size group of each box: 0 for small, 1 for medium, 2 for large.

    boxes: [..., 4], in pixels of an image of `image_size` pixels along a side. The size of a box is the square root of
    its area. At 128 pixels along a side, a small box is below 16 pixels and a medium box is below 40.
    """
    sides = np.sqrt((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))
    return np.digitize(sides, np.array((SMALL, MEDIUM)) * (image_size / SIZE))


def generate(n: int, seed: int, size: int = SIZE) -> SceneArrays:
    """Generate `n` images of `size` pixels along a side, 32 or more.

    The same arguments give the same arrays, in any process and with any number of threads.
    """
    images, instances = np.empty((n, 3, size, size), np.uint8), np.zeros((n, size, size), np.uint8)
    classes, boxes = np.zeros((n, SLOTS), np.uint8), np.zeros((n, SLOTS, 4), np.float32)
    salient = np.zeros(n, np.int64)
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        objects = place(rng, instances[i])
        salient[i] = pick_salient(rng, objects, size)
        images[i] = draw(rng, objects, instances[i], int(salient[i]))
        for slot, placed in enumerate(objects):
            classes[i, slot] = 1 + placed.label
            boxes[i, slot] = _box(instances[i], placed.window, slot)
    return SceneArrays(images, instances, classes, boxes, _points(instances, classes, boxes), salient)


def _box(instances: np.ndarray, window: Window, slot: int) -> tuple[int, int, int, int]:
    """Return the box around the pixels of a slot, as x1, y1, x2, y2."""
    own = instances[window] == slot + 1
    rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
    top, left = window[0].start, window[1].start
    return left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1


def _points(instances: np.ndarray, classes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the key points [N, M, 5, 3] of all objects."""
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    x = np.stack([(x1 + x2) / 2, x1, x2, x2, x1], axis=-1)
    y = np.stack([(y1 + y2) / 2, y1, y1, y2, y2], axis=-1)
    # A corner's pixel is the box's last one in the corner, because x2 and y2 lie outside of the box.
    column = np.minimum(x, np.maximum(x2 - 1, 0)[..., None]).astype(np.intp)
    row = np.minimum(y, np.maximum(y2 - 1, 0)[..., None]).astype(np.intp)
    owner = instances[np.arange(len(instances))[:, None, None], row, column]
    hidden = owner > 1 + np.arange(SLOTS)[:, None]
    visibility = np.where(classes[..., None] == 0, 0, np.where(hidden, 1, 2))
    return np.stack([x, y, visibility], axis=-1).astype(np.float32)
