"""The tables of a search, made from the study's records and the ledger."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from search.ledger import Ledger
from search.objectives import ACCURACY, COSTS, MACS, Objective
from search.settings import Settings
from search.study.trials import AGAIN, SCORED, Record
from space import Space

# Columns of the trials' table: COLUMNS come first (with the search's own objectives), then the parameters, then LAST.
COLUMNS = (
    "number",
    "state",
    "outcome",
    "front",
    "maybe",
    ACCURACY.name,
    "val_sd",
    "n",
    *COSTS,
    "epochs",
    "seconds",
    "arch",
)
LAST = (
    *("key", "included", "parent", "origin", "inherited"),
    *("retry_of", "repeat_of", "confirms", "again", "reason", "note", "host"),
)
# Attributes of trials that the table leaves out.
ONLY_IN_STUDY = (
    *("arch_json", "val_loss", "images_per_second", "session", "driver", "node"),
    *("alone", "plan", "budget", "trunk", "given", "reused", "sample"),
)
WHOLE = ("n", *COSTS, "parent", "retry_of", "repeat_of", "confirms", "again")  # integer columns with missing values


def trials_frame(records: Sequence[Record], ledger: Ledger) -> pd.DataFrame:
    """Return a row for each trial: outcome, accuracy (%), costs, parameters.

    `front` marks the front, and `maybe` further networks that are on it within the spread of the seeds.
    The quality (`val_top1`, or another metric) is the mean over the `n` seeds of a network that was trained again, and
    `val_sd` their spread.
    """
    rows, means, quality = [], {r.number: r for r in ledger.history}, ledger.rules.quality.name
    for r in records:
        r = means.get(r.number, r)
        attrs = {k: v for k, v in r.attrs.items() if k not in ONLY_IN_STUDY}
        rows.append(
            {"number": r.number, "state": r.state, "outcome": r.outcome, quality: r.quality, "val_sd": r.spread}
            | {"n": len(r.seeds) if r.outcome in (SCORED, AGAIN) else None, **attrs, **r.params}
        )
    frame = pd.DataFrame(rows)
    own = [o.name for o in ledger.rules.costs if o.name not in COSTS]
    after = COLUMNS.index(MACS.name)
    columns = (*COLUMNS[:after], *own, *COLUMNS[after:])
    columns = tuple(quality if name == ACCURACY.name else name for name in columns)
    for name in (*columns, *LAST):
        if name not in frame:
            frame[name] = math.nan
    params = [c for c in frame.columns if c not in (*columns, *LAST)]
    frame["front"] = frame.number.isin([r.number for r in ledger.front])
    frame["maybe"] = frame.number.isin([r.number for r in ledger.maybe])
    for name in (*WHOLE, *params):  # an included network may have no parameters
        frame[name] = frame[name].astype("Int64")
    frame[quality] = frame[quality].astype(float)
    for name in ("epochs", "inherited"):
        epochs = frame[name].astype(float)  # a planned search has fractions of epochs
        whole = all(float(n).is_integer() for n in epochs.dropna())
        frame[name] = epochs.astype("Int64") if whole else epochs
    return frame.loc[:, [*columns, *params, *LAST]]


def front_frame(trials: pd.DataFrame, objective: Objective) -> pd.DataFrame:
    """Return the front's rows, cheapest first, without the columns about a trial's history (`outcome`, `retry_of`)."""
    chosen = trials.loc[trials.front].sort_values(by=objective.name).reset_index(drop=True)
    return chosen.drop(
        columns=["state", "outcome", "front", "maybe", "retry_of", "repeat_of", "confirms", "again", "reason", "note"]
    )


def cost_range(objective: Objective, space: Space, settings: Settings) -> tuple[float, float]:
    """Return a cost's range for the hypervolume: the space's range within the limits, or the range at equal MACs."""
    matched = settings.scope.matching.range()
    if matched and objective == MACS:
        return matched
    low, high = objective.range(space)
    limit = settings.scope.limits.of(objective)
    high = min(high, limit.most or high)
    # Raise the upper end a little, because the hypervolume leaves out networks that cost exactly the upper end.
    return max(low, limit.least or 0), high + 1 if objective.name in COSTS else high * (1 + 1e-6)


def hypervolume_of(ledger: Ledger, space: Space, settings: Settings) -> float:
    """Return the front's hypervolume in %: see `search.front.hypervolume`."""
    return ledger.hypervolume(*(cost_range(objective, space, settings) for objective in settings.scope.costs))


def mean_scale(trials: pd.DataFrame) -> pd.Series:
    """Return each network's scale, averaged over its stages; NaN if the space does not search the scale."""
    names = [c for c in trials.columns if c == "scale" or c.startswith("scale_")]
    return trials[names].astype(float).mean(axis=1) if names else pd.Series(math.nan, index=trials.index)


def drawn(trials: pd.DataFrame, ledger: Ledger) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split the scored trials into the candidates for the front and the rest: see `Ledger.candidates`.

    Their quality is in the column `quality`, whatever the metric.
    """
    trials = trials.rename(columns={ledger.rules.quality.name: "quality"})
    candidates, rest = ({r.number for r in part} for part in ledger.candidates())
    return trials.loc[trials.number.isin(candidates)], trials.loc[trials.number.isin(rest)]
