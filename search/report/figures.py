"""What all plots share: a figure that needs no screen, axes of counts, the picture as bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from search.units import format_count

if TYPE_CHECKING:  # imported where a plot is made: it takes a second
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


def new_figure(width: float = 8, height: float = 5, dpi: int = 150) -> Figure:
    """An empty figure, its size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label_counts(axis: Axis) -> None:
    """Ticks of a logarithmic axis of counts: 1, 2 and 5 of each decade, written as 2.00M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: format_count(v)))
    axis.set_minor_formatter(NullFormatter())


def tidy(ax: Axes) -> None:
    """A faint grid, and no frame above and to the right."""
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
