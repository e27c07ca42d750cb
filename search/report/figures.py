"""The plots of a search, and helpers that all plots share: figures without a screen, tidy axes, PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from search.ledger import Ledger
from search.measured import Measured
from search.objectives import LATENCY, Objective
from search.report.tables import drawn, mean_scale
from search.settings import Settings
from search.study.trials import SCORED, STOPPED, Record
from search.units import format_count, format_ms

if TYPE_CHECKING:  # matplotlib takes a second to import: it is imported where a plot is made
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ESTIMATE = "score by shared weights"  # the label in legends
PLATE: dict[str, Any] = {"framealpha": 0.85, "edgecolor": "none"}  # of a legend: lines may pass behind it
LEAST_SPAN = 2.0  # points of quality that a plot shows, in %


def new_figure(width: float = 8, height: float = 5, dpi: int = 150) -> Figure:
    """Return an empty figure; its size is in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label_counts(axis: Axis, write: Callable[[float], str] = format_count) -> None:
    """Label a logarithmic axis at 1, 2 and 5 of each decade, with texts such as 2.00M. write: makes the text."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: write(v)))
    axis.set_minor_formatter(NullFormatter())


def tidy(ax: Axes) -> None:
    """Draw a faint grid, and no frame above and to the right."""
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """Return the figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def pareto_figure(
    trials: pd.DataFrame, ledger: Ledger, title: str, settings: Settings, measured: Measured | None = None
) -> Figure:
    """Draw all scored networks, coloured by scale, with the front, the knee's name, and the limits.

    With several cost objectives, there is a panel for each of them. measured: measured values, for an additional panel.
    """
    objectives = settings.scope.costs
    count = len(objectives) + (measured is not None)
    figure = new_figure(8 if count == 1 else 6.5 * count)
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for ax, objective in zip(panels, objectives, strict=False):
        _draw_panel(figure, ax, objective, trials, ledger, settings)
    if measured is not None:
        _draw_measured(panels[-1], drawn(trials, ledger)[0], measured)
    _widen(panels[0])
    panels[0].set_ylabel(ledger.rules.quality.label)
    if count == 1:
        panels[0].set_title(title)
    else:
        figure.suptitle(title, fontsize="large")
    return figure


def _widen(ax: Axes) -> None:
    """Show at least `LEAST_SPAN` points of quality, so that nearly equal networks look nearly equal."""
    low, high = ax.get_ylim()
    if high - low < LEAST_SPAN:
        centre = (low + high) / 2
        ax.set_ylim(centre - LEAST_SPAN / 2, centre + LEAST_SPAN / 2)


def _draw_panel(
    figure: Figure, ax: Axes, objective: Objective, trials: pd.DataFrame, ledger: Ledger, settings: Settings
) -> None:
    """Draw the networks over one cost."""
    done, estimates = drawn(trials, ledger)
    if len(estimates):
        x = estimates[objective.name].astype(float)
        ax.scatter(x, estimates.quality, color="0.75", s=10, zorder=1, label=ESTIMATE)
    if len(done):
        _draw_points(figure, ax, done, objective)
        _draw_lineage(ax, done, objective)
        _draw_spreads(ax, done, objective)
        _draw_attainment(ax, ledger, objective)
        _mark_included(ax, done, objective)
        _draw_front(ax, done.loc[done.front].sort_values(by=objective.name), objective)
    for name, bound in settings.scope.limits.of(objective).bounds:
        ax.axvline(bound, color="0.3", ls="--", lw=1, label=f"{option(name)} {objective.format(bound)}")
    if objective.log:
        ax.set_xscale("log")
        label_counts(ax.xaxis, objective.format)
    ax.set_xlabel(objective.label)
    tidy(ax)
    if len(done):
        _name_knee(ax, ledger, objective)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower right", fontsize=9, **PLATE)  # the front rises, so this corner is free


def _draw_measured(ax: Axes, done: pd.DataFrame, measured: Measured) -> None:
    """Draw the front over measured latency. If the latency was an objective, also draw it over predicted latency."""
    front = measured.joined(done.loc[done.front]).dropna(subset=measured.shown)
    ax.scatter(front[measured.shown], front.quality, s=60, color="tab:red", zorder=3, label="measured")
    if LATENCY.name in front:
        predicted = front[LATENCY.name]
        ax.scatter(predicted, front.quality, s=60, facecolor="none", edgecolor="0.3", zorder=4, label="predicted")
        ax.hlines(front.quality, predicted, front[measured.shown], color="0.6", lw=1, zorder=2)
    ax.set_xscale("log")
    label_counts(ax.xaxis, format_ms)
    ax.set_xlabel(f"{measured.shown}, {measured.device} (ms)")
    tidy(ax)
    ax.legend(loc="lower right", fontsize=9, **PLATE)


def option(name: str) -> str:
    """Return the command's option for a setting, for labels in plots."""
    return f"--{name.replace('_', '-')}"


def _draw_points(figure: Figure, ax: Axes, done: pd.DataFrame, objective: Objective) -> None:
    style: dict[str, Any] = {"s": 34, "zorder": 3, "edgecolor": "white", "linewidth": 0.5}
    x, scale = done[objective.name].astype(float), mean_scale(done)
    known = scale.notna() & (scale.nunique() > 1)
    if known.any():
        dots = ax.scatter(x[known], done.quality[known], c=scale[known], cmap="viridis", **style)
        figure.colorbar(dots, ax=ax, label="scale (splits per block)", pad=0.01)
    ax.scatter(x[~known], done.quality[~known], color="tab:blue", **style)


def _draw_spreads(ax: Axes, done: pd.DataFrame, objective: Objective) -> None:
    """Draw the standard deviation over the seeds of networks that were trained again."""
    part = done.loc[done.val_sd.notna()]
    if len(part):
        x = part[objective.name].astype(float)
        ax.errorbar(x, part.quality, yerr=part.val_sd, fmt="none", ecolor="0.3", lw=1, capsize=3, zorder=3)


def _draw_attainment(ax: Axes, ledger: Ledger, objective: Objective) -> None:
    """Fill the range between the front that all seeds attain and the front that only one seed attains. Draw the median.

    These are the empirical attainment surfaces of the networks that were trained with all seeds.
    """
    seeds = max((len(r.seeds) for r in ledger.best), default=0)
    known = [r for r in ledger.best if len(r.seeds) == seeds]
    if seeds < 2:
        return
    import moocore
    import numpy as np

    points = np.array([(r.attrs[objective.name], -r.seeds[i]) for i in range(seeds) for r in known], dtype=float)
    sets = np.repeat(range(seeds), len(known))  # moocore wants the points of each set one after the other
    surfaces = moocore.eaf(points, sets, percentiles=[100 / seeds, 50, 100])
    costs = np.unique(points[:, 0])

    def steps(percentile: float) -> list[float]:
        part = surfaces[np.isclose(surfaces[:, 2], percentile)]
        return [max((-p[1] for p in part if p[0] <= cost), default=math.nan) for cost in costs]

    style: dict[str, Any] = {"color": "tab:red", "zorder": 1}
    label = f"attained by one to all of {seeds} seeds"
    ax.fill_between(costs, steps(100), steps(100 / seeds), step="post", alpha=0.15, lw=0, label=label, **style)
    ax.step(costs, steps(50), where="post", ls=":", lw=1, label="attained by half of them", **style)


def _mark_included(ax: Axes, done: pd.DataFrame, objective: Objective) -> None:
    """Mark the networks of `--include` with a star and their names."""
    for row in done.loc[done.included.notna()].to_dict("records"):
        place = (float(row[objective.name]), row["quality"])
        ax.scatter(*place, marker="*", s=130, color="tab:orange", edgecolor="white", linewidth=0.5, zorder=4)
        ax.annotate(Path(row["included"]).name, place, xytext=(6, -10), textcoords="offset points", fontsize=8)


def _draw_lineage(ax: Axes, done: pd.DataFrame, objective: Objective) -> None:
    """Draw an arrow from each network to each network that grew from its weights."""
    points = zip(done[objective.name].astype(float), done.quality, strict=True)
    places = dict(zip(done.number, points, strict=True))
    grown = done.loc[done.parent.isin(list(places))]
    style = {"arrowstyle": "->", "color": "0.55", "lw": 0.9, "shrinkA": 5, "shrinkB": 5}
    for number, parent in zip(grown.number, grown.parent, strict=True):
        arrow = {**style, "connectionstyle": "arc3,rad=-0.25"}
        ax.annotate("", xy=places[number], xytext=places[parent], arrowprops=arrow, zorder=2)
    if len(grown):
        ax.plot([], [], color="0.55", lw=0.9, label="grown from")


def _draw_front(ax: Axes, best: pd.DataFrame, objective: Objective) -> None:
    """Ring the front's networks; draw the steps of the best accuracy within each budget of this cost."""
    x = best[objective.name].astype(float)
    ax.step(x, best.quality.cummax(), where="post", color="tab:red", lw=1.6, zorder=2)
    ax.scatter(x, best.quality, s=90, facecolor="none", edgecolor="tab:red", lw=1.4, zorder=4, label="front")


def _name_knee(ax: Axes, ledger: Ledger, objective: Objective) -> None:
    """Write the name of the knee beside its point. The axes must have their final limits: the text stays inside."""
    top = ledger.knee(ledger.candidates()[0])
    cost = top.attrs[objective.name]
    ax.autoscale_view()
    place = ax.transData.transform((float(cost), top.quality or 0.0))
    across, up = ax.transAxes.inverted().transform(place)
    ax.annotate(
        f"knee: {top.attrs['arch']}\n{top.quality:.1f} % at {objective.format(cost)} {objective.unit}",
        (float(cost), top.quality or 0.0),
        xytext=(14 if across < 0.5 else -14, 10 if up < 0.25 else -34),
        textcoords="offset points",
        ha="left" if across < 0.5 else "right",
        fontsize=8,
        arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.8},
    )


def curves_figure(records: Sequence[Record], ledger: Ledger, title: str, settings: Settings) -> Figure:
    """Draw each trial's accuracy after each epoch, coloured by cost. Crosses mark trials that the scheduler stopped."""
    import numpy as np
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    objective = settings.scope.cost
    figure = new_figure()
    ax = figure.add_subplot()
    shown = [r for r in records if r.outcome in (SCORED, STOPPED) and r.epochs]
    if shown:
        costs = np.array([ledger.cost(r) for r in shown], float)
        norm = (LogNorm if objective.log else Normalize)(costs.min(), costs.max())
        colours: dict[str, Any] = {"cmap": "viridis", "norm": norm}
        lines = LineCollection(
            [sorted(r.epochs.items()) for r in shown], array=costs, linewidths=1, alpha=0.7, **colours
        )
        ax.add_collection(lines)
        for outcome, marker, size, label in ((STOPPED, "x", 22, "stopped"), (SCORED, "o", 26, "full budget")):
            ends = [(max(r.epochs), r.epochs[max(r.epochs)], ledger.cost(r)) for r in shown if r.outcome == outcome]
            if ends:
                x, y, price = zip(*ends, strict=True)
                text = f"{label} ({len(ends)})"
                ax.scatter(x, y, c=price, marker=marker, s=size, label=text, zorder=3, **colours)
        bar = figure.colorbar(lines, ax=ax, label=objective.label, pad=0.01)
        if objective.log:
            label_counts(bar.ax.yaxis, objective.format)
        ax.legend(loc="lower right", fontsize=9, **PLATE)
        ax.margins(0.03)
    budget = settings.budget
    title = f"{title}: {budget.scheduler}, eta {budget.eta}, rungs from epoch {budget.min_epochs}"
    ax.set(xlabel="epochs", ylabel=ledger.rules.quality.label, title=title)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(ax)
    return figure
