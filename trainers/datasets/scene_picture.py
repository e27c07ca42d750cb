"""Draw `scenes`: texture, clutter and objects of dull colours around one hue, and a vivid object of another hue."""

from __future__ import annotations

import math

import numpy as np

from trainers.datasets.drawing import coverage, length, log_uniform, uniform
from trainers.datasets.scene_objects import SIZE, Object, rotated

# The values below make the data set hard enough to rank networks. After 12 epochs of 2,500 images, Res2Nets of 7 and 35
# MMACs name the class of the salient object in 27 and 51 % of the test images.
# Lengths are pixels of an image of 128 x 128. They scale with the image.
STROKES = (0.75, 28.0, 6.0)  # clutter: least half-length and thickness, greatest half-length, greatest thickness
STRIPE_PERIODS = (6.0, 40.0)  # range of the period of the background's stripes
MIN_PERIOD = 3.0  # pixels of any image

# Brightness is the mean of a colour's channels, in 0..1. Tint is the largest distance of a channel from that mean.
BACKGROUND = (0.2, 0.7)  # range of the background's brightness
CLOUDS = 0.1  # largest standard deviation of the brightness of the background's noise, at each scale of `CELLS`
CELLS = (2, 5, 9, 33)  # points along a side of the background's noise; each scale divides the intervals of the last one
STRIPES = 0.05  # standard deviation of the amplitude of the background's stripes
CLUTTER = 16  # line pieces and blobs in each image
CLUTTER_BRIGHTNESS = (0.0, 1.0)
OPACITY = 0.5  # opacity of the clutter; the objects are opaque
DULL_BRIGHTNESS, VIVID_BRIGHTNESS = (0.05, 0.95), (0.3, 0.7)  # objects; a vivid colour needs room for its tint
CONTRAST = 0.2  # intended difference in brightness between an object and its surroundings
CANDIDATES = 16  # random values of brightness to choose from
DULL_TINT = (0.02, 0.1)  # range of the largest tint in an image, apart from the salient object
VIVID_TINT = (0.3, 0.42)  # range of the salient object's tint
DULL_HUES = math.radians(50)  # largest difference from the image's hue
VIVID_HUES = math.radians(60)  # largest difference from the opposite hue
GRAIN = 0.1  # standard deviation of the noise on each pixel


def draw(rng: np.random.Generator, objects: list[Object], instances: np.ndarray, salient: int) -> np.ndarray:
    """Draw an image uint8 [3, S, S] from back to front: texture, clutter, objects, sensor noise."""
    size = len(instances)
    hue = rng.uniform(0, 2 * math.pi)
    dull = rng.uniform(*DULL_TINT)
    canvas = _texture(rng, hue, dull, size)
    _add_clutter(rng, hue, dull, canvas)
    known: list[float] = []  # brightness of the objects drawn so far
    for slot, placed in enumerate(objects):
        if slot == salient:
            turn, spread, tint, brightness = math.pi, VIVID_HUES, rng.uniform(*VIVID_TINT), VIVID_BRIGHTNESS
        else:
            turn, spread, tint, brightness = 0.0, DULL_HUES, rng.uniform(0, dull), DULL_BRIGHTNESS
        seen = canvas[:, placed.window[0], placed.window[1]]
        own = instances[placed.window]
        near = np.flatnonzero(np.bincount(own.ravel(), minlength=slot + 1)[1 : slot + 1])
        around = [known[other] for other in near]
        if np.any(ground := own == 0):
            around.append(float(seen.mean(axis=0)[ground].mean()))
        known.append(_contrasting(rng, brightness, around))
        direction = _direction(hue + turn + rng.uniform(-spread, spread))
        _paint(seen, placed.cover, known[-1] + tint * direction)
    canvas += np.float32(GRAIN) * rng.standard_normal(canvas.shape, np.float32)
    canvas *= 255
    canvas += 0.5  # rounds, because the conversion to integers truncates
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def _direction(hue: float) -> np.ndarray:
    """Return the change of a colour by a tint of 1, [3]. Its mean is 0, so a tint does not change the brightness."""
    return np.cos(hue - np.arange(3, dtype=np.float32) * np.float32(2 * np.pi / 3))


def _paint(seen: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> None:
    """Blend a colour [3] into a part of the canvas, in place."""
    seen += (colour.astype(np.float32)[:, None, None] - seen) * cover


def _contrasting(rng: np.random.Generator, allowed: tuple[float, float], around: list[float]) -> float:
    """Return the first random brightness that differs from all brightnesses in `around` by at least `CONTRAST`.

    If no candidate does, return the candidate that differs most.
    """
    candidates = uniform(rng, *allowed, (CANDIDATES,))
    if not around:
        return float(candidates[0])
    nearest = np.abs(candidates[:, None] - np.array(around, np.float32)).min(axis=1)
    return float(candidates[np.minimum(nearest, CONTRAST).argmax()])


def _texture(rng: np.random.Generator, hue: float, dull: float, size: int) -> np.ndarray:
    """Draw a background float32 [3, S, S]: noise of several scales and stripes, around a random brightness and tint."""
    noise = np.zeros((2, CELLS[-1], CELLS[-1]), np.float32)
    for cells in CELLS:
        coarse = rng.standard_normal((2, cells, cells), np.float32) * uniform(rng, 0, CLOUDS, (2, 1, 1))
        # The points of a scale are also points of the next scale. So only the sum must be stretched to the image.
        noise += _stretched(coarse, CELLS[-1])
    brightness = np.clip(rng.uniform(*BACKGROUND) + noise[0], *BACKGROUND)
    tint = np.clip(rng.uniform(0, dull) + noise[1] / 2, 0, dull)
    canvas = _stretched(brightness + tint * _direction(hue)[:, None, None], size)
    period = max(float(log_uniform(rng, *STRIPE_PERIODS, ())) * size / SIZE, MIN_PERIOD)
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    at = np.arange(size) * (2 * math.pi / period)
    # The sine of a sum, by rows and columns, is several times faster than a sine for each pixel.
    rows, columns = at * math.sin(angle) + phase, at * math.cos(angle)
    stripes = np.outer(np.sin(rows), np.cos(columns)) + np.outer(np.cos(rows), np.sin(columns))
    canvas += (STRIPES * rng.standard_normal() * stripes).astype(np.float32)
    return canvas


def _stretched(grid: np.ndarray, size: int) -> np.ndarray:
    """Interpolate values [C, cells, cells] linearly over [C, size, size]."""
    at = np.linspace(0, grid.shape[-1] - 1, size)
    low = np.minimum(at.astype(np.intp), grid.shape[-1] - 2)
    share = (at - low).astype(np.float32)
    columns = grid[:, :, low] * (1 - share) + grid[:, :, low + 1] * share
    out = columns.take(low + 1, axis=1)
    start = columns.take(low, axis=1)
    out -= start
    out *= share[:, None]
    out += start
    return out


def _add_clutter(rng: np.random.Generator, hue: float, dull: float, canvas: np.ndarray) -> None:
    """Draw strokes of random place, angle, length and thickness, in place. A short stroke is a blob."""
    size = canvas.shape[-1]
    scale = size / SIZE
    least, longest, thickest = STROKES
    where = uniform(rng, 0, size, (CLUTTER, 2)).tolist()
    angles = uniform(rng, 0, np.pi, (CLUTTER,)).tolist()
    half_lengths = (scale * log_uniform(rng, least, longest, (CLUTTER,))).tolist()
    thicknesses = np.maximum(scale * log_uniform(rng, least, thickest, (CLUTTER,)), 0.5).tolist()
    hues = hue + uniform(rng, -DULL_HUES, DULL_HUES, (CLUTTER,))
    greys, tints = uniform(rng, *CLUTTER_BRIGHTNESS, (CLUTTER,)), uniform(rng, 0, dull, (CLUTTER,))
    for i in range(CLUTTER):
        (y, x), half_length, thickness = where[i], half_lengths[i], thicknesses[i]
        reach = half_length + thickness + 1
        top, left = max(int(y - reach), 0), max(int(x - reach), 0)
        window = slice(top, min(int(y + reach) + 1, size)), slice(left, min(int(x + reach) + 1, size))
        u, v = rotated(window, y, x, angles[i])
        distance = length(np.maximum(np.abs(u) - half_length, 0), v) - thickness
        colour = greys[i] + tints[i] * _direction(float(hues[i]))
        _paint(canvas[:, window[0], window[1]], coverage(distance) * np.float32(OPACITY), colour)
