"""The files that show a run: `trials.csv`, `pareto.csv`, `pareto.png`, `pareto.html` and `curves.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from res2net.files import write_atomic
from search.ledger import Ledger
from search.measured import read
from search.report.figures import curves_figure, pareto_figure, png
from search.report.page import interactive_front
from search.report.tables import front_frame, trials_frame
from search.settings import Settings
from search.study.trials import Record
from space import Space


def write(folder: Path, records: Sequence[Record], ledger: Ledger, space: Space, settings: Settings) -> pd.DataFrame:
    """Write the tables and plots of a run (`curves.png` only with a scheduler); return a row for each trial.

    Values that `python -m search.measure` wrote to the folder become columns and an additional panel.
    """
    trials = trials_frame(records, ledger)
    write_atomic(folder / "trials.csv", trials.to_csv(index=False))
    front, measured = front_frame(trials, settings.scope.cost), read(folder)
    front = front if measured is None else measured.joined(front)
    write_atomic(folder / "pareto.csv", front.to_csv(index=False))
    title = title_of(ledger, space, settings)
    write_atomic(folder / "pareto.png", png(pareto_figure(trials, ledger, title, settings, measured)))
    page = interactive_front(trials, ledger, title, settings, measured)
    write_atomic(folder / "pareto.html", page.to_html(include_plotlyjs=True))
    if settings.budget.scheduler != "none":
        title = f"{space.name} on {settings.scope.data}"
        write_atomic(folder / "curves.png", png(curves_figure(records, ledger, title, settings)))
    return trials


def title_of(ledger: Ledger, space: Space, settings: Settings) -> str:
    """Return a plot's title: the space, the data, and how the networks got their scores."""
    if ledger.front and not ledger.trained:
        how = "scores by shared weights"
    elif ledger.trained:
        shared = ", from shared weights" if settings.evaluator.origin else ""
        epochs = "planned" if settings.planned else settings.scoring.epochs
        how = f"{epochs} epochs a trial{shared}"
    else:
        how = "no trial done yet"
    return f"{space.name} on {settings.scope.data}: {how}, validation split"
