"""Drawing tools of the generated data sets: random values, soft edges, and ten shapes, which are the classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 values, uniform between two bounds."""
    return low + (high - low) * rng.random(shape, np.float32)


def log_uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 values, uniform between two bounds on a logarithmic scale."""
    return np.exp(uniform(rng, np.log(low), np.log(high), shape))


def length(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the lengths of vectors (u, v)."""
    return np.sqrt(u * u + v * v)  # several times faster than np.hypot, whose protection from overflow is not needed


def coverage(distance: np.ndarray) -> np.ndarray:
    """Return the covered share of each pixel, given the signed distance from the pixel to the object's edge.

    The share falls from 1 to 0 over one pixel, which anti-aliases the edge.
    """
    return np.clip(0.5 - distance, 0, 1)


# Each shape function returns the signed distance of points (u, v) to the edge of an object, negative inside. The object
# lies within the unit circle. `max` of two distances intersects two shapes, and `min` unites them. `abs(d) - t` makes a
# band of half-width t along an edge, and `abs(u)` mirrors. The distances are exact only near the edge, where
# anti-aliasing reads them.


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return length(u, v) - 0.9


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(length(u, v) - 0.75) - 0.2


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.7


def _frame(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.53) - 0.17


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Equilateral: three half-planes at distance 0.5 from the centre, with normals 120 degrees apart."""
    return np.maximum(-v, 0.5 * v + np.sqrt(0.75, dtype=np.float32) * np.abs(u)) - 0.5


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Two bars at a right angle; sorting |u| and |v| folds both arms onto one."""
    long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.maximum(long - 0.95, short - 0.25)


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.3)


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A disc without a smaller, shifted disc."""
    return np.maximum(length(u, v) - 0.95, 0.8 - length(u - 0.5, v))


def _pair(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Two discs, side by side."""
    return length(np.abs(u) - 0.58, v) - 0.4


def _angle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Two bars that meet at a right angle, an L."""
    u, v = u + 0.35, v + 0.35  # moves the corner off the centre, so that the L fits the unit circle
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
