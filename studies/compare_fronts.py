"""Compare the fronts of two searches on two cost axes, such as a search by latency with one by MACs.

    python -m studies.compare_fronts runs/by-latency runs/by-macs --latency table.json --out FOLDER

The networks of both searches get both costs: MACs, and the latency by one table. `fronts.png` shows both fronts on both
axes. For some accuracies, `fronts.csv` has the least cost at which each search reaches the accuracy, and the ratio of
the second search's cost to the first search's cost. Above 1, the first search's networks are cheaper at equal accuracy.
All accuracies are on the validation split.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from res2net.commands import Parser, run_main
from res2net.errors import UserError
from res2net.files import write_atomic
from search import runs
from search.front import front
from search.latency_cache import parse_table
from search.objectives import MACS, Objective, latency_by
from search.picks import ledger_of
from search.report.figures import label_counts, new_figure, png, tidy
from studies.bench import first_line

PROG = "python -m studies.compare_fronts"
LEVELS = 9  # accuracies at which costs are compared


def build_parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="the folders of two searches over one space")
    out.add_argument("--latency", metavar="FILE", help="the latency table (default: the one of a run that has one)")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the table and the plot")
    return out


def points(folder: Path, objectives: Sequence[Objective]) -> pd.DataFrame:
    """Return a row for each trained network of a run: its score and its costs."""
    books, size = ledger_of(folder), runs.space_of(folder).image_size
    rows = [
        {"run": folder.name, "quality": r.quality, **{o.name: o.of(r.arch, size) for o in objectives}}
        for r in books.best
    ]
    return pd.DataFrame(rows)


def at_equal_accuracy(first: pd.DataFrame, second: pd.DataFrame, objective: Objective) -> pd.DataFrame:
    """Return the least cost at which each search reaches some accuracies, up to the highest that both reach."""
    fronts = [part.iloc[front(part.quality.tolist(), part[objective.name].tolist())] for part in (first, second)]
    low, high = min(part.quality.min() for part in fronts), min(part.quality.max() for part in fronts)
    levels = np.linspace(low, high, LEVELS)
    ours, theirs = ([part.loc[part.quality >= a - 1e-9, objective.name].min() for a in levels] for part in fronts)
    ours, theirs = np.array(ours, float), np.array(theirs, float)
    costs = {"first": ours, "second": theirs, "second_over_first": theirs / ours}
    return pd.DataFrame({"axis": objective.name, "accuracy": levels, **costs})


def _main(args: argparse.Namespace) -> None:
    own = next((t for f in args.runs if (t := runs.settings_of(f).scope.latency) is not None), None)
    table = own if args.latency is None else parse_table(args.latency, "latency")
    if table is None:
        raise UserError("`latency`: neither run has a table; accepted: a file of python -m search.latency")
    objectives = (MACS, latency_by(table))
    first, second = (points(folder, objectives) for folder in args.runs)
    found = pd.concat([at_equal_accuracy(first, second, o) for o in objectives])
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "fronts.csv", found.to_csv(index=False))
    write_atomic(args.out / "networks.csv", pd.concat([first, second]).to_csv(index=False))
    figure = new_figure(12)
    for ax, objective in zip(figure.subplots(1, 2, sharey=True), objectives, strict=True):
        for part, colour in ((first, "tab:red"), (second, "tab:blue")):
            best = part.iloc[front(part.quality.tolist(), part[objective.name].tolist())]
            ax.scatter(part[objective.name], part.quality, s=16, color=colour, alpha=0.4)
            ax.step(best[objective.name], best.quality, where="post", color=colour, label=part.run.iloc[0])
        ax.set_xscale("log")
        label_counts(ax.xaxis, objective.format)
        ax.set_xlabel(objective.label)
        tidy(ax)
    figure.axes[0].set_ylabel("validation accuracy (%)")
    figure.axes[0].legend(frameon=False)
    write_atomic(args.out / "fronts.png", png(figure))
    console = Console()
    console.print(found.to_string(index=False, float_format=lambda v: f"{v:.4g}"), highlight=False)
    for name, part in found.groupby("axis", sort=False):
        text = f"{name}: at equal accuracy the second search costs {part.second_over_first.median():.3f} of the first"
        console.print(text, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
