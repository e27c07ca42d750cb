"""A generated data set: ten shapes, small to large, over clutter. It suits a first search, as it needs no download.

Each 32 x 32 image shows one object of 4 to 28 pixels at a random place, angle and colour. Blobs and line pieces around
the object look like parts of an object. The class does not depend on size, place, colour, angle or mirroring. Sizes are
uniform on a logarithmic scale. So a network needs fine and coarse receptive fields at once, which Res2Net's scales
provide.
"""

from __future__ import annotations

import numpy as np

from trainers.datasets.base import DataSet, Split
from trainers.datasets.drawing import CLASSES, SHAPES, coverage, length, log_uniform, uniform

# The values below make the data set hard enough to rank networks. After ten epochs of 8,000 images, a linear classifier
# is near chance, and Res2Nets of 0.5, 5 and 20 MMACs score about 65, 85 and 91 % on the validation split.
SIZE = 32  # pixels along a side
# Colours are in 0..1 per channel, where 1 is white.
DIAMETERS = (4.0, 28.0)  # range of the object's circumscribed circle, in pixels
BACKGROUND = (0.0, 0.45)  # range of the background's colours
DISTRACTORS = 4  # line pieces and blobs in each image
PIECES = (0.0, 0.7)  # range of the distractors' colours
OPACITY = 0.6  # opacity of the distractors; the object is opaque
CONTRAST = 0.3  # least difference in brightness (mean over channels) between an object and the pixels that it covers
CLOUDS = 0.12  # largest standard deviation of the background's noise, at each scale of `STRETCH`
STRIPES = 0.06  # standard deviation of the amplitude of the background's stripes
GRAIN = 0.12  # standard deviation of the noise on each pixel
CHUNK = 64  # images drawn at once: bounds the memory, and keeps the planes of a chunk in the processor's cache

# Number of images and seed. Both are fixed, so that any two runs are scored on the same images.
TRAIN_POOL = (10_000, 190401)
TEST_SET = (2_000, 169)

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, 3, 32, 32], labels int64 [N]


class Shapes(DataSet):
    """10,000 training and 2,000 test images of 32 x 32 pixels in 10 classes, generated from fixed seeds."""

    name = "shapes"
    val_fraction = 0.2  # 2,000 images: keeps the noise of a validation accuracy at about 1 %

    def classes(self) -> tuple[str, ...]:
        """Return the names of the shapes."""
        return CLASSES

    def train(self) -> Split:
        """Generate the training images."""
        return Split(*generate(*TRAIN_POOL))

    def test(self) -> Split:
        """Generate the test images."""
        return Split(*generate(*TEST_SET))

    def download(self) -> None:
        """Do nothing: the images need no files."""

    @classmethod
    def base(cls, image_size: int | None) -> str:
        """Return the search base `micro`, whose networks a CPU trains in seconds."""
        return "micro"


def generate(n: int, seed: int) -> Arrays:
    """Generate `n` images and their class numbers, with classes as even as `n` allows.

    The same arguments give the same images, in any process and with any number of threads.
    """
    labels = np.random.default_rng([seed, 0]).permutation(np.arange(n, dtype=np.int64) % len(CLASSES))
    images = np.empty((n, 3, SIZE, SIZE), np.uint8)
    # Use a new generator for each chunk, so that a chunk does not depend on the chunks before it.
    for number, start in enumerate(range(0, n, CHUNK), 1):
        rows = slice(start, start + CHUNK)
        images[rows] = _draw(labels[rows], np.random.default_rng([seed, number]))
    return images, labels


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one chunk of images, back to front: texture, distractors, object, sensor noise."""
    canvas = _texture(len(labels), rng)
    for _ in range(DISTRACTORS):
        _paint(canvas, _line_pieces(len(labels), rng), uniform(rng, *PIECES, (len(labels), 3)), OPACITY)
    cover = _objects(labels, rng)
    _paint(canvas, cover, _contrasting(canvas, cover, rng))
    canvas += GRAIN * rng.standard_normal(canvas.shape, np.float32)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8).reshape(-1, 3, SIZE, SIZE)


# Below, images are flat planes of SIZE * SIZE = 1024 pixels. A canvas [N, 3, 1024] holds colours. A cover [N, 1024]
# holds the share of each pixel, in 0..1, that an object covers. Distances are signed, in pixels, negative inside.


def _interpolation(cells: int) -> np.ndarray:
    """Return the weights [cells, 32] that interpolate a row of values linearly over the side of an image."""
    at = np.linspace(0, cells - 1, SIZE)
    return np.maximum(0, 1 - np.abs(at - np.arange(cells)[:, None])).astype(np.float32)


# Interpolation weights for noise at three scales: gradients, clouds, patches.
STRETCH = [_interpolation(cells) for cells in (2, 4, 9)]
PIXELS = np.arange(SIZE, dtype=np.float32) + 0.5  # centres of the pixels along a side


def _texture(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw backgrounds [N, 3, 1024]: noise of several scales, and stripes, around a random colour."""
    canvas = np.zeros((n, 3, SIZE, SIZE), np.float32)
    for weights in STRETCH:
        grid = rng.standard_normal((n, 3, len(weights), len(weights)), np.float32) * uniform(
            rng, 0, CLOUDS, (n, 1, 1, 1)
        )
        # Use einsum, not @: the threads of @ slow each other down when every core runs its own trial.
        canvas += np.einsum("ncip,iq->ncqp", np.einsum("ncij,jp->ncip", grid, weights), weights)
    canvas = canvas.reshape(n, 3, -1)
    across, _ = _rotated(uniform(rng, 0, SIZE, (2, n)), uniform(rng, 0, 2 * np.pi, (n,)))
    stripes = np.sin(across * (2 * np.pi / log_uniform(rng, 4, 16, (n, 1))))
    canvas += stripes[:, None] * (STRIPES * rng.standard_normal((n, 3, 1), np.float32))
    canvas += uniform(rng, *BACKGROUND, (n, 3, 1))
    return np.clip(canvas, *BACKGROUND, out=canvas)


def _rotated(centre: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of all pixels, each [N, 1024], in a rotated frame.

    centre: [2, N], origin of each frame, in pixels. angle: [N], in radians.
    """
    x, y = PIXELS - centre[0][:, None], PIXELS - centre[1][:, None]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    # Multiply rows and columns separately and add the products last: 32 products per side, not 1024 per plane.
    u = (y * sin)[:, :, None] + (x * cos)[:, None, :]
    v = (y * cos)[:, :, None] - (x * sin)[:, None, :]
    return u.reshape(len(angle), -1), v.reshape(len(angle), -1)


def _line_pieces(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the cover of one distractor per image: a stroke of random place, angle, length and thickness.

    A stroke is the set of points within `thickness` of a segment of length `2 * half_length`. A short stroke is a blob.
    """
    u, v = _rotated(uniform(rng, 0, SIZE, (2, n)), uniform(rng, 0, np.pi, (n,)))
    half_length = log_uniform(rng, 0.5, 7, (n, 1))
    thickness = log_uniform(rng, 0.5, 2, (n, 1))
    distance = length(np.maximum(np.abs(u) - half_length, 0), v) - thickness
    return coverage(distance)


def _objects(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the cover of one object per image, wholly inside the image."""
    n = len(labels)
    radius = log_uniform(rng, DIAMETERS[0] / 2, DIAMETERS[1] / 2, (n,))
    centre = radius + (SIZE - 2 * radius) * rng.random((2, n), np.float32)
    u, v = _rotated(centre, uniform(rng, 0, 2 * np.pi, (n,)))
    u, v = u / radius[:, None], v / radius[:, None]  # the shapes are defined within the unit circle
    distance = np.empty_like(u)
    for label, shape in enumerate(SHAPES.values()):
        rows = np.flatnonzero(labels == label)
        distance[rows] = shape(u[rows], v[rows])
    return coverage(distance * radius[:, None])  # back to pixels: `coverage` needs pixels to soften edges


def _paint(canvas: np.ndarray, cover: np.ndarray, colour: np.ndarray, opacity: float = 1.0) -> None:
    """Blend a colour [N, 3] into the canvas, in place."""
    canvas += (colour[:, :, None] - canvas) * (cover * opacity)[:, None]


def _contrasting(canvas: np.ndarray, cover: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random colour [N, 3] for each image.

    The colour is brighter than the mean of the pixels under the cover by at least `CONTRAST`.
    """
    n = len(canvas)
    covered = np.einsum("ncp,np->nc", canvas, cover) / cover.sum(axis=1, keepdims=True)
    # Take the first of eight candidates that is bright enough, or else white. White is always bright enough: the
    # brightest background under the brightest distractors is darker by at least `CONTRAST` (a test checks this).
    candidates = np.concatenate([uniform(rng, 0, 1, (n, 8, 3)), np.ones((n, 1, 3), np.float32)], axis=1)
    enough = candidates.mean(axis=2) >= covered.mean(axis=1, keepdims=True) + CONTRAST
    return candidates[np.arange(n), enough.argmax(axis=1)]
