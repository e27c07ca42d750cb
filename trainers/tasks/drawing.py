"""Labels drawn over images."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from trainers.datasets.base import VOID

OPACITY = 0.6  # opacity of a colour over the image
DOT = 0.02  # radius of a dot, as a share of the longer side of the image
GOLDEN = 0.618034  # the golden ratio, as the step between the hues of two classes, gives neighbours distant hues


def colours(count: int) -> np.ndarray:
    """Return a colour for each class, uint8 [count, 3]. Class 0, the background, is black."""
    hues = [(i * GOLDEN % 1, 0.85, 1.0) for i in range(count)]
    found = np.array([colorsys.hsv_to_rgb(*hue) for hue in hues])
    found[0] = 0
    return (255 * found).round().astype(np.uint8)


def painted(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return an image, uint8 [H, W, 3], with its labels, [H, W], in colours. Pixels without a class become grey."""
    out = image * (1 - OPACITY)
    known = labels != VOID
    palette = colours(int(labels[known].max(initial=0)) + 1)
    out[known] += OPACITY * palette[labels[known]]
    out[known & (labels == 0)] = image[known & (labels == 0)]
    out[~known] = 0.5 * image[~known] + 64
    return out.round().astype(np.uint8)


def dotted(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return an image, uint8 [H, W, 3], with a dot for each labelled key point. points: [K, 3], x, y, visibility."""
    rows, columns = (np.arange(n)[:, None] + 0.5 for n in image.shape[:2])
    radius = max(1.0, DOT * max(image.shape[:2]))
    out = image.copy()
    for (x, y, seen), colour in zip(points, colours(len(points) + 1)[1:], strict=True):
        if seen > 0:
            out[(rows - y) ** 2 + (columns.T - x) ** 2 <= radius**2] = colour
    return out


def boxed(image: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return an image, uint8 [H, W, 3], with the outlines of boxes in the colours of their classes. rows: [M, 6]."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    palette = colours(int(rows[:, 4].max(initial=0)) + 1)
    for x1, y1, x2, y2, label, crowd in rows.tolist():
        if label > 0 and not crowd:
            # In Pillow, the right and the lower edge belong to the outline.
            draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=tuple(palette[int(label)].tolist()))
    return np.asarray(canvas)
