"""Draw class activation maps over their images: a picture of one image, and a sheet of several images and networks."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # matplotlib takes a second to import, so the functions below import it
    from matplotlib.figure import Figure

COLOURS, ALPHA = "jet", 0.5  # the usual colour map of Grad-CAM, from blue (0) to red (1), and its opacity
SIDE, CELL = 3.0, 1.8  # side of a single picture, side of a picture on the sheet, in inches
HEAD, LINE, GAP = 0.4, 0.16, 0.08  # inches: height of a column head, height of a title's line, space between pictures
DPI = 120  # pixels per inch; the picture of a larger image has more, so that no pixel is lost


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """An image as a network sees it, with its class activation map."""

    image: np.ndarray  # uint8 [H, W, 3]
    map: np.ndarray  # float [H, W], 0..1
    cells: tuple[int, int]  # height and width of the map before it was resized to the image
    title: str  # one or two lines


def overlay_png(overlay: Overlay) -> bytes:
    """Return the content of a PNG file: the image with its map, below its title."""
    top = _height(overlay.title)
    figure = _figure(SIDE, SIDE + top, max(DPI, math.ceil(max(overlay.map.shape) / SIDE)))
    _draw(figure, overlay, 0, 0, SIDE, overlay.title, shows_map=True)
    return _png(figure)


def sheet_png(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Overlay]]]) -> bytes:
    """Return the content of a PNG file with one row for each image: the image, then the map of each network.

    heads: the names of the networks.
    rows: the name of each image, and one overlay for each network.
    """
    return _png(sheet(heads, rows))


def sheet(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Overlay]]]) -> Figure:
    """Return the figure of `sheet_png`. Its axes are the pictures, row by row."""
    columns = 1 + len(heads)
    title = max(_height(overlay.title) for _, overlays in rows for overlay in overlays)
    width, height = GAP + columns * (CELL + GAP), HEAD + len(rows) * (CELL + title) + GAP
    figure = _figure(width, height)
    # State the size of the maps: a map of few cells is imprecise, and the enlarged picture hides how few they are.
    sizes = ["{} x {} maps".format(*overlay.cells) for overlay in rows[0][1]]
    for column, (head, note) in enumerate(zip(("image", *heads), ("", *sizes), strict=True)):
        centre = GAP + column * (CELL + GAP) + CELL / 2
        _text(figure, centre, height - HEAD / 2 + LINE / 2, _short(head, 24), 9, weight="bold")
        _text(figure, centre, height - HEAD / 2 - LINE / 2, note, 7)
    for row, (name, overlays) in enumerate(rows):
        bottom = height - HEAD - (row + 1) * (CELL + title)
        # Networks may read different sizes. The first column shows the image of the first network.
        _draw(figure, overlays[0], GAP, bottom, CELL, name, shows_map=False)
        for column, overlay in enumerate(overlays, 1):
            _draw(figure, overlay, GAP + column * (CELL + GAP), bottom, CELL, overlay.title, shows_map=True)
    return figure


def _figure(width: float, height: float, dpi: int = DPI) -> Figure:
    """Return an empty figure; its size is in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi)


def _height(title: str) -> float:
    """Return the height of a title in inches."""
    return (1.5 + title.count("\n")) * LINE


def _draw(
    figure: Figure, overlay: Overlay, left: float, bottom: float, side: float, title: str, shows_map: bool
) -> None:
    """Draw an image, its map and its title, at a place in inches."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    axes.set_axis_off()
    axes.imshow(overlay.image, interpolation="bilinear")
    if shows_map:
        axes.imshow(overlay.map, cmap=COLOURS, alpha=ALPHA, vmin=0, vmax=1, interpolation="bilinear")
    text = "\n".join(_short(line, round(side * 14)) for line in title.split("\n"))
    _text(figure, left + side / 2, bottom + side + _height(title) / 2, text, 8)


def _text(figure: Figure, x: float, y: float, text: str, size: float, weight: str = "normal") -> None:
    """Write a text around a point, in inches. Show dollar signs in names, instead of a formula."""
    width, height = figure.get_size_inches()
    style = {"ha": "center", "va": "center", "fontsize": size, "weight": weight, "linespacing": 1.1}
    figure.text(x / width, y / height, text, parse_math=False, **style)


def _short(text: str, most: int) -> str:
    """Return a text of at most `most` characters. The middle of a longer text becomes an ellipsis."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
