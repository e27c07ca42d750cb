"""The front as an interactive figure, for `pareto.html` and the dashboard. Hovering over a point names the network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from search.ledger import Ledger
from search.measured import Measured
from search.objectives import LATENCY, PARAMS, Objective
from search.report.figures import ESTIMATE, option
from search.report.tables import drawn
from search.settings import Settings

if TYPE_CHECKING:  # plotly takes a second to import: it is imported where a figure is made
    import plotly.graph_objects as go


def interactive_front(
    trials: pd.DataFrame, ledger: Ledger, title: str, settings: Settings, measured: Measured | None = None
) -> go.Figure:
    """Return the figure of the front over all scored networks. measured: measured values, for an additional panel."""
    from plotly.subplots import make_subplots

    objectives = settings.scope.costs
    count = len(objectives) + (measured is not None)
    figure = make_subplots(1, count, shared_yaxes=True, horizontal_spacing=0.03)
    for column, objective in enumerate(objectives, 1):
        _add_panel(figure, column, objective, trials, ledger, settings)
    if measured is not None:
        _add_measured(figure, count, drawn(trials, ledger)[0], measured)
    figure.update_yaxes(title=ledger.rules.quality.label, col=1)
    figure.update_layout(title=title, template="plotly_white", legend={"orientation": "h", "y": 1.02, "x": 0})
    return figure


def _add_panel(
    figure: go.Figure, column: int, objective: Objective, trials: pd.DataFrame, ledger: Ledger, settings: Settings
) -> None:
    """Add the networks over one cost, as the panel with a number from 1."""
    done, estimates = drawn(trials, ledger)
    lines = "lines+markers" if len(settings.scope.costs) == 1 else "markers"
    parts: list[tuple[str, pd.DataFrame, dict[str, Any]]] = [
        ("dominated", done.loc[~done.front], {"mode": "markers", "marker": {"size": 8, "color": "#9aa5b1"}}),
        (
            "front",
            done.loc[done.front].sort_values(by=objective.name),
            {"mode": lines, "line": {"shape": "hv", "color": "#d62728"}, "marker": {"size": 11, "color": "#d62728"}},
        ),
    ]
    if len(estimates):
        parts.insert(0, (ESTIMATE, estimates, {"mode": "markers", "marker": {"size": 6, "color": "#d5dbe1"}}))
    for name, part, style in parts:
        style["marker"]["symbol"] = ["star" if isinstance(item, str) else "circle" for item in part.included]
        figure.add_scatter(
            x=part[objective.name].astype(float),
            y=part.quality,
            name=name,
            error_y={"type": "data", "array": part.val_sd.fillna(0), "visible": bool(part.val_sd.notna().any())},
            text=[_hover(row, settings) for row in part.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
            legendgroup=name,
            showlegend=column == 1,
            row=1,
            col=column,
            **style,
        )
    for name, bound in settings.scope.limits.of(objective).bounds:
        figure.add_vline(x=bound, line_dash="dash", row=1, col=column)  # type: ignore[arg-type]  # numbers are right
        # On a log axis, plotly places a shape by its value, but an annotation by the logarithm of the value.
        x = math.log10(bound) if objective.log else bound
        text = f"{option(name)} {objective.format(bound)}"
        axis = f"x{column}" if column > 1 else "x"
        figure.add_annotation(x=x, y=1, xref=axis, yref="paper", text=text, showarrow=False, xanchor="left")
    figure.update_xaxes(type="log" if objective.log else "linear", title=objective.label, col=column)


def _add_measured(figure: go.Figure, column: int, done: pd.DataFrame, measured: Measured) -> None:
    """Add the front over measured latency. If the latency was an objective, also add it over predicted latency."""
    front = measured.joined(done.loc[done.front]).dropna(subset=measured.shown)
    columns = {"measured": measured.shown} | ({"predicted": LATENCY.name} if LATENCY.name in front else {})
    for name, source in columns.items():
        figure.add_scatter(
            x=front[source],
            y=front.quality,
            name=name,
            mode="markers",
            marker={"size": 11, "symbol": "circle" if name == "measured" else "circle-open", "color": "#1f77b4"},
            text=[f"<b>trial {n}</b><br>{arch}" for n, arch in zip(front.number, front.arch, strict=True)],
            hovertemplate="%{text}<br>%{x:.4g} ms " + name + "<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(type="log", title=f"{measured.shown}, {measured.device} (ms)", col=column)


def _hover(row: Mapping[str, Any], settings: Settings) -> str:
    shown = dict.fromkeys((*settings.scope.costs, PARAMS))
    costs = ", ".join(f"{o.format(float(row[o.name]))} {o.unit}" for o in shown)
    spread = "" if math.isnan(row["val_sd"]) else f" +- {row['val_sd']:.2f} (n = {row['n']})"
    return (
        f"<b>trial {row['number']}: {row['quality']:.2f} %</b>{spread}<br>{row['arch']}<br>"
        f"{costs}, {row['epochs']} epochs, {row['seconds']:.1f} s"
        + (f"<br>included: {row['included']}" if isinstance(row["included"], str) else "")
    )
