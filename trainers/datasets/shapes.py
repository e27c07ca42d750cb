"""A generated data set, so that a search can be tried with no download: ten shapes, small to large, over clutter.

One object of 4 to 28 pixels stands in each 32 x 32 image, turned, placed and coloured at random, among blobs and
pieces of lines that look like parts of one. Sizes are even on a logarithmic scale, and no class depends on size,
place, colour, turn or mirroring, so a network needs fine and coarse receptive fields at once: what Res2Net's scale
is about.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# The values below were set so that, after ten epochs of 8,000 images, a linear classifier knows next to nothing, and
# Res2Nets of 0.5, 5 and 20 MMACs score about 65, 85 and 91 % on the validation split.
SIZE = 32  # pixels along a side
DIAMETERS = (4.0, 28.0)  # pixels, of the circle around an object
BACKGROUND = (0.0, 0.45)  # range of the background in each colour, where 1 is white
DISTRACTORS = 4  # line pieces and blobs in each image
PIECES = (0.0, 0.7)  # their range in each colour
OPACITY = 0.6  # of distractors; the object is opaque
CONTRAST = 0.3  # least difference in brightness, the mean of the colours, of an object from what it covers
CLOUDS = 0.12  # greatest amplitude of the background's noise at each of its scales, of a colour's range
STRIPES = 0.06  # standard deviation of its stripes' amplitude
GRAIN = 0.12  # standard deviation of the noise on each pixel
CHUNK = 64  # images drawn at once: bounds the memory, and keeps a chunk's planes in the cache

# Images and seed of the two sets. They are fixed, so that scores of any two runs are of the same images.
TRAIN_POOL = (10_000, 190401)
TEST_SET = (2_000, 169)

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [N, 3, 32, 32], labels int64 [N]


def train_pool() -> Arrays:
    """The images that training and validation are cut from."""
    return generate(*TRAIN_POOL)


def test_set() -> Arrays:
    """The images that only a final score may see."""
    return generate(*TEST_SET)


def generate(n: int, seed: int) -> Arrays:
    """`n` images and their class numbers, the classes as even as `n` allows; the same for the same arguments."""
    labels = np.random.default_rng([seed, 0]).permutation(np.arange(n, dtype=np.int64) % len(CLASSES))
    images = np.empty((n, 3, SIZE, SIZE), np.uint8)
    for number, start in enumerate(range(0, n, CHUNK), 1):
        rows = slice(start, start + CHUNK)
        images[rows] = _draw(labels[rows], np.random.default_rng([seed, number]))
    return images, labels


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One chunk of images, back to front: texture, distractors, object, sensor noise."""
    canvas = _texture(len(labels), rng)
    for _ in range(DISTRACTORS):
        _paint(canvas, _line_pieces(len(labels), rng), _uniform(rng, *PIECES, (len(labels), 3)), OPACITY)
    cover = _objects(labels, rng)
    _paint(canvas, cover, _contrasting(canvas, cover, rng))
    canvas += GRAIN * rng.standard_normal(canvas.shape, np.float32)
    return (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8).reshape(-1, 3, SIZE, SIZE)


# Images are planes of SIZE * SIZE pixels here: [N, 3, 1024] for colours, [N, 1024] for how much of a pixel is covered.


def _uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    return low + (high - low) * rng.random(shape, np.float32)


def _log_uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    return np.exp(_uniform(rng, np.log(low), np.log(high), shape))


def _interpolation(cells: int) -> np.ndarray:
    """Linear weights [cells, 32] that stretch a row of values over an image's side."""
    at = np.linspace(0, cells - 1, SIZE)
    return np.maximum(0, 1 - np.abs(at - np.arange(cells)[:, None])).astype(np.float32)


STRETCH = [_interpolation(cells) for cells in (2, 4, 9)]  # of the noise's grids: gradients, clouds, patches
PIXELS = np.arange(SIZE, dtype=np.float32) + 0.5  # their centres along a side


def _texture(n: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of several scales and stripes, in colours of the image's own."""
    canvas = np.zeros((n, 3, SIZE, SIZE), np.float32)
    for weights in STRETCH:
        grid = rng.standard_normal((n, 3, len(weights), len(weights)), np.float32) * _uniform(
            rng, 0, CLOUDS, (n, 1, 1, 1)
        )
        # einsum rather than @, whose threads cost more than they give where every core has a trial of its own.
        canvas += np.einsum("ncip,iq->ncqp", np.einsum("ncij,jp->ncip", grid, weights), weights)
    canvas = canvas.reshape(n, 3, -1)
    across, _ = _turned(_uniform(rng, 0, SIZE, (2, n)), _uniform(rng, 0, 2 * np.pi, (n,)))
    stripes = np.sin(across * (2 * np.pi / _log_uniform(rng, 4, 16, (n, 1))))
    canvas += stripes[:, None] * (STRIPES * rng.standard_normal((n, 3, 1), np.float32))
    canvas += _uniform(rng, *BACKGROUND, (n, 3, 1))
    return np.clip(canvas, *BACKGROUND, out=canvas)


def _turned(centre: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels' coordinates [N, 1024] about a centre (2 x N), along axes turned by an angle."""
    x, y = PIXELS - centre[0][:, None], PIXELS - centre[1][:, None]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    # A row's and a column's share are added only at the end: SIZE times fewer products.
    along = (y * sin)[:, :, None] + (x * cos)[:, None, :]
    aside = (y * cos)[:, :, None] - (x * sin)[:, None, :]
    return along.reshape(len(angle), -1), aside.reshape(len(angle), -1)


def _line_pieces(n: int, rng: np.random.Generator) -> np.ndarray:
    """Cover of one line piece an image, from a blob to a long stroke."""
    u, v = _turned(_uniform(rng, 0, SIZE, (2, n)), _uniform(rng, 0, np.pi, (n,)))
    half_length = _log_uniform(rng, 0.5, 7, (n, 1))
    thickness = _log_uniform(rng, 0.5, 2, (n, 1))
    distance = _length(np.maximum(np.abs(u) - half_length, 0), v) - thickness
    return _cover(distance)


def _objects(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cover of each image's object, wholly inside the image."""
    n = len(labels)
    radius = _log_uniform(rng, DIAMETERS[0] / 2, DIAMETERS[1] / 2, (n,))
    centre = radius + (SIZE - 2 * radius) * rng.random((2, n), np.float32)
    u, v = _turned(centre, _uniform(rng, 0, 2 * np.pi, (n,)))
    u, v = u / radius[:, None], v / radius[:, None]
    distance = np.empty_like(u)
    for label, shape in enumerate(SHAPES.values()):
        rows = np.flatnonzero(labels == label)
        distance[rows] = shape(u[rows], v[rows])
    return _cover(distance * radius[:, None])


def _cover(distance: np.ndarray) -> np.ndarray:
    """How much of each pixel lies inside an edge that far away (in pixels, negative inside): anti-aliasing."""
    return np.clip(0.5 - distance, 0, 1)


def _paint(canvas: np.ndarray, cover: np.ndarray, colour: np.ndarray, opacity: float = 1.0) -> None:
    """Blend a colour (N x 3) into the canvas, in place."""
    canvas += (colour[:, :, None] - canvas) * (cover * opacity)[:, None]


def _contrasting(canvas: np.ndarray, cover: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour for each image, brighter than the mean of what the object covers by at least `CONTRAST`."""
    n = len(canvas)
    covered = np.einsum("ncp,np->nc", canvas, cover) / cover.sum(axis=1, keepdims=True)
    # White comes last, and is always bright enough.
    candidates = np.concatenate([_uniform(rng, 0, 1, (n, 8, 3)), np.ones((n, 1, 3), np.float32)], axis=1)
    enough = candidates.mean(axis=2) >= covered.mean(axis=1, keepdims=True) + CONTRAST
    return candidates[np.arange(n), enough.argmax(axis=1)]


def _length(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v)  # several times as fast as np.hypot, whose care for overflow is not needed


# The shapes: distance of points (u, v) from the edge, negative inside, for an object within the unit circle.
# Close to exact near the edge is enough, since only the pixel about the edge is blended.


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _length(u, v) - 0.9


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(_length(u, v) - 0.75) - 0.2


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.7


def _frame(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.53) - 0.17


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(-v, 0.5 * v + np.sqrt(0.75, dtype=np.float32) * np.abs(u)) - 0.5


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.maximum(long - 0.95, short - 0.25)


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.3)


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(_length(u, v) - 0.95, 0.8 - _length(u - 0.5, v))


def _pair(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _length(np.abs(u) - 0.58, v) - 0.4


def _angle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Two strokes that meet at a right angle, an L."""
    u, v = u + 0.35, v + 0.35
    return np.minimum(
        np.maximum(np.abs(u - 0.4) - 0.65, np.abs(v) - 0.25), np.maximum(np.abs(v - 0.4) - 0.65, np.abs(u) - 0.25)
    )


Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
SHAPES: dict[str, Shape] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "frame": _frame,
    "triangle": _triangle,
    "cross": _cross,
    "bar": _bar,
    "crescent": _crescent,
    "pair": _pair,
    "angle": _angle,
}
CLASSES = tuple(SHAPES)
