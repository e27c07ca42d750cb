"""Compare fronts found by shared weights and by training from scratch, at equal wall time.

    python -m studies.bench_evaluator --seeds 3 --out studies/results/evaluators-shapes

For each seed, there are three searches. The first two train shared weights and score members with these weights. Then
the first search trains a few networks of its front from scratch, and the second tunes them from their slices. The third
search trains every network from scratch, for the wall time of the slower one of the first two searches. The
hypervolumes are those of trained networks only, on the validation split.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

import trainers.datasets.data
from res2net.commands import Parser, run_main
from res2net.files import write_atomic
from search import shared_weights
from search.api import Result, search
from search.report.figures import label_counts, new_figure, png, tidy
from search.report.progress import Lines
from search.report.tables import cost_range
from search.settings import EPOCHS, Settings
from studies.bench import check_positive, first_line
from trainers.meta import environment

PROG = "python -m studies.bench_evaluator"
COLOURS = {
    "scratch": "0.45",
    "supernet, confirmed from scratch": "tab:blue",
    "supernet, confirmed by tuning": "tab:red",
}


def build_parser() -> Parser:
    """Return the command's options."""
    out, d = Parser(prog=PROG, description=first_line(__doc__)), Settings()
    scope, scoring = d.scope, d.scoring
    out.add_argument("--space", default=scope.space, help="the space")
    out.add_argument("--data", default=scope.data, help=", ".join(trainers.datasets.data.names()))
    out.add_argument("--data-dir", metavar="DIR", help="where the data set's files are")
    out.add_argument("--train-images", type=int, metavar="N", help="train on N images only")
    out.add_argument("--seeds", type=int, default=3, help="number of seeds")
    out.add_argument("--first-seed", type=int, default=0, help="first seed")
    out.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of each trained network")
    out.add_argument(
        "--supernet-epochs", type=int, default=scoring.supernet_epochs, help="epochs of the shared weights"
    )
    out.add_argument("--trials", type=int, default=100, help="members scored with the shared weights")
    out.add_argument("--confirm", type=int, default=scoring.confirm, help="networks of the front to train")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the tables and the plot")
    return out


def _row(name: str, seed: int, seconds: float, result: Result) -> dict[str, object]:
    """Return a search's row of the table."""
    found = result.front
    return {
        "search": name,
        "seed": seed,
        "seconds": round(seconds),
        "trained": int((result.trials.outcome == "scored").sum()),
        "front": len(found),
        "cheapest": int(found.macs.min()),
        "best_top1": float(found.val_top1.max()),
        "hypervolume": round(result.hypervolume, 2),
    }


def compare(args: argparse.Namespace, seed: int, folder: Path, console: Console) -> tuple[list[dict], pd.DataFrame]:
    """Run the three searches of a seed; return a row for each search and the points of all fronts."""
    names = ("space", "data", "data_dir", "train_images", "epochs", "supernet_epochs", "confirm")
    base = Settings(**{n: getattr(args, n) for n in names}, seed=seed, executor="local", workers=1)
    data = base.scope.load_data(console)
    weights, begun = folder / "weights", time.monotonic()
    how = replace(base.scoring, epochs=args.supernet_epochs)
    space = base.scope.get_space(data.num_classes, data.image_size)
    shared_weights.train(base.scope, how, space, data, weights, console)
    trained = time.monotonic() - begun
    shared = base.replace(evaluator="supernet", supernet=str(weights), trials=args.trials)
    rows, fronts, longest = [], [], 0.0
    names_of = {"scratch": "supernet, confirmed from scratch", "tune": "supernet, confirmed by tuning"}
    for way, name in names_of.items():
        result = search(shared.replace(confirm_by=way), folder / way, Lines(console))
        seconds = trained + result.seconds
        longest = max(longest, seconds)
        rows.append(_row(name, seed, seconds, result))
        fronts.append(result.front.assign(search=name, seed=seed))
    result = search(base.replace(time=longest, trials=10_000), folder / "alone", Lines(console))
    rows.append(_row("scratch", seed, result.seconds, result))
    fronts.append(result.front.assign(search="scratch", seed=seed))
    points = pd.concat(fronts).filter(["search", "seed", "number", "macs", "params", "val_top1", "arch"])
    return rows, points


def plot(fronts: pd.DataFrame, title: str, low: float, high: float) -> bytes:
    """Return a PNG with the fronts of all searches, one line per seed."""
    figure = new_figure()
    ax = figure.add_subplot()
    for key, part in fronts.groupby(["search", "seed"]):
        assert isinstance(key, tuple)  # the keys come from two columns
        name, seed = str(key[0]), key[1]
        x, y = [*part.macs.astype(float), high], [*part.val_top1, part.val_top1.iloc[-1]]
        label = name if seed == fronts.seed.min() else None
        ax.step(x, y, where="post", color=COLOURS[name], lw=1.4, alpha=0.8, label=label)
        ax.scatter(part.macs.astype(float), part.val_top1, color=COLOURS[name], s=20)
    ax.set_xscale("log")
    ax.set_xlim(low * 0.9, high * 1.1)
    label_counts(ax.xaxis)
    ax.set(xlabel="multiply-accumulates of one image", ylabel="top-1 of trained networks, validation split (%)")
    ax.set_title(title, fontsize=10)
    tidy(ax)
    ax.legend(frameon=False, fontsize=9)
    return png(figure)


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    console = Console()
    check_positive(args, "seeds", "epochs", "supernet_epochs", "trials", "confirm")
    rows, fronts = [], []
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        folder = Path(tempfile.mkdtemp(prefix="evaluators-"))
        try:
            found, points = compare(args, seed, folder, console)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows += found
        fronts.append(points)
        write_atomic(args.out / "searches.csv", pd.DataFrame(rows).to_csv(index=False))
        write_atomic(args.out / "fronts.csv", pd.concat(fronts).to_csv(index=False))
    table, points = pd.DataFrame(rows), pd.concat(fronts)
    base = Settings(space=args.space, data=args.data)
    low, high = cost_range(base.scope.cost, base.scope.get_space(10, 32), base)
    title = f"{args.space} on {args.data}: the same wall time each, {args.epochs} epochs a trained network"
    write_atomic(args.out / "fronts.png", plot(points, title, low, high))
    about = {"options": {k: str(v) for k, v in vars(args).items()}, **environment()}
    write_atomic(args.out / "about.json", json.dumps(about, indent=2) + "\n")
    console.print(table.to_string(index=False), highlight=False)
    summary = table.groupby("search").hypervolume.agg(["mean", "min", "max", "count"]).round(2)
    console.print(f"\nhypervolume (% of top-1, averaged over budgets of MACs)\n{summary}", highlight=False)
    for name, ratio in (summary["mean"] / summary["mean"]["scratch"]).drop("scratch").items():
        console.print(f"{name} / scratch: {ratio:.2f}", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row per search and the hypervolumes; write `searches.csv`, `fronts.csv`, `fronts.png`, `about.json`."""
    return run_main(bench, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
