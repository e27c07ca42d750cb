"""The front as an interactive figure, for `pareto.html` and the dashboard. Hovering over a point names the network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from search.ledger import Ledger
from search.objectives import ACCURACY, PARAMS
from search.report.figures import ESTIMATE, option
from search.report.tables import drawn
from search.settings import Settings

if TYPE_CHECKING:  # plotly takes a second to import: it is imported where a figure is made
    import plotly.graph_objects as go


def interactive_front(trials: pd.DataFrame, ledger: Ledger, title: str, settings: Settings) -> go.Figure:
    """Return the figure of the front over all scored networks."""
    import plotly.graph_objects as go

    objective = settings.scope.cost
    done, estimates = drawn(trials, ledger)
    figure = go.Figure()
    parts: list[tuple[str, pd.DataFrame, dict[str, Any]]] = [
        ("dominated", done.loc[~done.front], {"mode": "markers", "marker": {"size": 8, "color": "#9aa5b1"}}),
        (
            "front",
            done.loc[done.front].sort_values(by=objective.name),
            {"mode": "lines+markers", "line": {"shape": "hv", "color": "#d62728"}, "marker": {"size": 11}},
        ),
    ]
    if len(estimates):
        parts.insert(0, (ESTIMATE, estimates, {"mode": "markers", "marker": {"size": 6, "color": "#d5dbe1"}}))
    for name, part, style in parts:
        style["marker"]["symbol"] = ["star" if isinstance(item, str) else "circle" for item in part.included]
        figure.add_scatter(
            x=part[objective.name].astype(float),
            y=part.val_top1,
            name=name,
            error_y={"type": "data", "array": part.val_sd.fillna(0), "visible": bool(part.val_sd.notna().any())},
            text=[_hover(row, settings) for row in part.to_dict("records")],
            hovertemplate="%{text}<extra></extra>",
            **style,
        )
    for name, bound in settings.scope.limits.of(objective).bounds:
        figure.add_vline(x=bound, line_dash="dash")
        # On a log axis, plotly places a shape by its value, but an annotation by the logarithm of the value.
        x = math.log10(bound) if objective.log else bound
        text = f"{option(name)} {objective.format(bound)}"
        figure.add_annotation(x=x, y=1, yref="paper", text=text, showarrow=False, xanchor="left")
    figure.update_xaxes(type="log" if objective.log else "linear", title=objective.label)
    figure.update_yaxes(title=ACCURACY.label)
    figure.update_layout(title=title, template="plotly_white", legend={"orientation": "h", "y": 1.02, "x": 0})
    return figure


def _hover(row: Mapping[str, Any], settings: Settings) -> str:
    objective = settings.scope.cost
    cost, params = objective.format(float(row[objective.name])), PARAMS.format(float(row[PARAMS.name]))
    spread = "" if math.isnan(row["val_sd"]) else f" +- {row['val_sd']:.2f} (n = {row['n']})"
    return (
        f"<b>trial {row['number']}: {row['val_top1']:.2f} %</b>{spread}<br>{row['arch']}<br>"
        f"{cost} {objective.unit}, {params} {PARAMS.unit}, "
        f"{row['epochs']} epochs, {row['seconds']:.1f} s"
        + (f"<br>included: {row['included']}" if isinstance(row["included"], str) else "")
    )
