"""Tables and plots of a search, made from the study's records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from res2net.files import write_atomic
from search.front import front, hypervolume, knee
from search.report.figures import label_counts, new_figure, png, tidy
from search.settings import Settings
from search.study.study import ESTIMATED, SCORED, STOPPED, Record
from search.units import format_count
from space import Space

COLUMNS = (
    "number",
    "state",
    "outcome",
    "front",
    "val_top1",
    "macs",
    "params",
    "activations",
    "epochs",
    "seconds",
    "arch",
)
IDLE = ("arch_json", "val_loss", "images_per_second", "session", "driver", "node")  # what is in the study alone
LAST = ("key", "retry_of", "repeat_of", "confirms", "reason", "note", "host")


def trials_frame(records: Sequence[Record], epochs: int) -> pd.DataFrame:
    """A row a trial: what became of it, accuracy (%), cost, parameters; `front` marks the networks of the front.

    Those are networks trained for the full budget, or, before there are any, those with a score by shared weights.
    """
    rows = []
    for r in records:
        attrs = {k: v for k, v in r.attrs.items() if k not in IDLE}
        rows.append(
            {"number": r.number, "state": r.state, "outcome": r.outcome, "val_top1": r.val_top1, **attrs, **r.params}
        )
    frame = pd.DataFrame(rows)
    for name in (*COLUMNS, *LAST):
        if name not in frame:
            frame[name] = None
    params = [c for c in frame.columns if c not in (*COLUMNS, *LAST)]
    frame["front"] = False
    full = frame[(frame.outcome == SCORED) & (frame.epochs == epochs)]
    if full.empty:  # as long as none was trained
        full = frame[frame.outcome == ESTIMATED]
    frame.loc[full.index[front(list(full.val_top1), list(full.macs))], "front"] = True
    for name in ("macs", "params", "activations", "epochs", "retry_of", "repeat_of", "confirms"):
        frame[name] = frame[name].astype("Int64")
    frame["val_top1"] = frame["val_top1"].astype(float)
    return frame[[*COLUMNS, *params, *LAST]]


def front_frame(trials: pd.DataFrame) -> pd.DataFrame:
    """The front, cheapest first, without columns that say nothing of it."""
    chosen = trials[trials.front].sort_values("macs").reset_index(drop=True)
    return chosen.drop(columns=["state", "outcome", "front", "retry_of", "repeat_of", "confirms", "reason", "note"])


def macs_range(space: Space, settings: Settings) -> tuple[int, int]:
    """MACs between which the hypervolume is taken: the space's cheapest, and the limit or its dearest."""
    if settings.match_macs:
        return round(0.9 * settings.match_macs), round(1.1 * settings.match_macs)
    low, high = space.cheapest("macs")[1].macs, space.dearest("macs")[1].macs
    return max(low, settings.min_macs or 0), min(high, settings.max_macs or high) + 1


def hypervolume_of(trials: pd.DataFrame, space: Space, settings: Settings) -> float:
    """The front's best accuracy (%) averaged over budgets of MACs (log scale): see `front.hypervolume`."""
    chosen = trials[trials.front]
    return hypervolume(list(chosen.val_top1), list(chosen.macs), *macs_range(space, settings))


def write(folder: Path, records: Sequence[Record], space: Space, settings: Settings) -> pd.DataFrame:
    """Write `trials.csv`, `pareto.csv`, `pareto.png`, `pareto.html` and, with a scheduler, `curves.png`.

    Returns the trials' frame.
    """
    trials = trials_frame(records, settings.epochs)
    write_atomic(folder / "trials.csv", trials.to_csv(index=False))
    write_atomic(folder / "pareto.csv", front_frame(trials).to_csv(index=False))
    trained = f"{settings.epochs} epochs a trial" + (", from shared weights" if settings.tunes else "")
    trained = trained if (trials.outcome == SCORED).any() else "no trial done yet"
    how = "scores by shared weights" if (trials.outcome == ESTIMATED)[trials.front].any() else trained
    title = f"{space.name} on {settings.data}: {how}, validation split"
    write_atomic(folder / "pareto.png", pareto_png(trials, title, settings))
    write_atomic(folder / "pareto.html", pareto_figure(trials, title, settings).to_html(include_plotlyjs=True))
    if settings.scheduler != "none":
        write_atomic(folder / "curves.png", curves_png(records, f"{space.name} on {settings.data}", settings))
    return trials


def mean_scale(trials: pd.DataFrame) -> pd.Series:
    """The scale of each network, averaged over its stages: what the points are coloured by."""
    names = [c for c in trials.columns if c == "scale" or c.startswith("scale_")]
    return trials[names].astype(float).mean(axis=1) if names else pd.Series(math.nan, index=trials.index)


def drawn(trials: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trials that the front is of, and the others with a score: what shared weights estimated, if any confirmed."""
    scored, estimated = (trials[trials.outcome == outcome] for outcome in (SCORED, ESTIMATED))
    return (scored, estimated) if len(scored) or estimated.empty else (estimated, scored)


def pareto_png(trials: pd.DataFrame, title: str, settings: Settings) -> bytes:
    """The front over all scored networks, coloured by scale; limits as dashed lines, the knee named."""
    figure = new_figure()
    ax = figure.add_subplot()
    done, estimates = drawn(trials)
    best = done[done.front].sort_values("macs")
    scale = mean_scale(done)
    if len(estimates):
        ax.scatter(
            estimates.macs.astype(float),
            estimates.val_top1,
            color="0.75",
            s=10,
            zorder=1,
            label="score by shared weights",
        )
    if len(done):
        macs, top1 = done.macs.astype(float), done.val_top1
        if scale.notna().all() and scale.nunique() > 1:
            dots = ax.scatter(macs, top1, c=scale, cmap="viridis", s=34, zorder=3, edgecolor="white", linewidth=0.5)
            figure.colorbar(dots, ax=ax, label="scale (splits a block)", pad=0.01)
        else:
            ax.scatter(macs, top1, color="tab:blue", s=34, zorder=3, edgecolor="white", linewidth=0.5)
        ax.step(best.macs.astype(float), best.val_top1, where="post", color="tab:red", lw=1.6, zorder=2)
        ax.scatter(
            best.macs.astype(float),
            best.val_top1,
            s=90,
            facecolor="none",
            edgecolor="tab:red",
            lw=1.4,
            zorder=4,
            label="front",
        )
        top = done.loc[done.index[knee(list(top1), list(done.macs))]]
        ax.annotate(
            f"knee: {top.arch}\n{top.val_top1:.1f} % at {format_count(top.macs)}",
            (float(top.macs), top.val_top1),
            xytext=(14, -34),
            textcoords="offset points",
            ha="left" if top.macs < math.sqrt(float(macs.min()) * float(macs.max())) else "right",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.8},
        )
    for label, limit in (("--max-macs", settings.max_macs), ("--min-macs", settings.min_macs)):
        if limit:
            ax.axvline(limit, color="0.3", ls="--", lw=1, label=f"{label} {format_count(limit)}")
    ax.set_xscale("log")
    label_counts(ax.xaxis)
    ax.set(xlabel="multiply-accumulates of one image", ylabel="top-1 accuracy on the validation split (%)", title=title)
    tidy(ax)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", frameon=False, fontsize=9)
    return png(figure)


def curves_png(records: Sequence[Record], title: str, settings: Settings) -> bytes:
    """Each trial's accuracy after each epoch, coloured by MACs: where the scheduler stopped which."""
    import numpy as np
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    figure = new_figure()
    ax = figure.add_subplot()
    shown = [r for r in records if r.outcome in (SCORED, STOPPED) and r.epochs]
    if shown:
        macs = np.array([r.macs for r in shown], float)
        colours = {"cmap": "viridis", "norm": LogNorm(macs.min(), max(macs.max(), macs.min() + 1))}
        lines = LineCollection(
            [sorted(r.epochs.items()) for r in shown], array=macs, linewidths=1, alpha=0.7, **colours
        )
        ax.add_collection(lines)
        for outcome, marker, size in ((STOPPED, "x", 22), (SCORED, "o", 26)):
            ends = [(max(r.epochs), r.epochs[max(r.epochs)], r.macs) for r in shown if r.outcome == outcome]
            if ends:
                x, y, price = zip(*ends, strict=True)
                label = {STOPPED: "stopped", SCORED: "full budget"}[outcome]
                ax.scatter(x, y, c=price, marker=marker, s=size, label=f"{label} ({len(ends)})", zorder=3, **colours)
        bar = figure.colorbar(lines, ax=ax, label="multiply-accumulates of one image", pad=0.01)
        label_counts(bar.ax.yaxis)
        ax.legend(loc="lower right", frameon=False, fontsize=9)
        ax.margins(0.03)
    title = f"{title}: {settings.scheduler}, eta {settings.eta}, rungs from epoch {settings.min_epochs}"
    ax.set(xlabel="epochs", ylabel="top-1 accuracy on the validation split (%)", title=title)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(ax)
    return png(figure)


def pareto_figure(trials: pd.DataFrame, title: str, settings: Settings):
    """The same as an interactive figure: hovering shows the network."""
    import plotly.graph_objects as go

    done, estimates = drawn(trials)
    figure = go.Figure()
    for name, part, style in (
        ("score by shared weights", estimates, {"mode": "markers", "marker": {"size": 6, "color": "#d5dbe1"}}),
        ("dominated", done[~done.front], {"mode": "markers", "marker": {"size": 8, "color": "#9aa5b1"}}),
        (
            "front",
            done[done.front].sort_values("macs"),
            {"mode": "lines+markers", "line": {"shape": "hv", "color": "#d62728"}, "marker": {"size": 11}},
        ),
    ):
        if part is estimates and part.empty:
            continue
        figure.add_scatter(
            x=part.macs.astype(float),
            y=part.val_top1,
            name=name,
            text=[_hover(row) for row in part.itertuples()],
            hovertemplate="%{text}<extra></extra>",
            **style,
        )
    for label, limit in (("--max-macs", settings.max_macs), ("--min-macs", settings.min_macs)):
        if limit:
            figure.add_vline(x=limit, line_dash="dash")
            # On a log axis, Plotly wants a shape's place as the number, but an annotation's as its logarithm.
            text = f"{label} {format_count(limit)}"
            figure.add_annotation(x=math.log10(limit), y=1, yref="paper", text=text, showarrow=False, xanchor="left")
    figure.update_xaxes(type="log", title="multiply-accumulates of one image")
    figure.update_yaxes(title="top-1 accuracy on the validation split (%)")
    figure.update_layout(title=title, template="plotly_white", legend={"orientation": "h", "y": 1.02, "x": 0})
    return figure


def _hover(row) -> str:
    return (
        f"<b>trial {row.number}: {row.val_top1:.2f} %</b><br>{row.arch}<br>{format_count(row.macs)} MACs, "
        f"{format_count(row.params)} params, {row.epochs} epochs, {row.seconds:.1f} s"
    )
