"""Measure the epochs that a scheduler saves: replay recorded learning curves under pareto-asha, asha and none.

    python -m studies.bench_scheduler studies/results/rank-shapes-long --out studies/results/scheduler-shapes

The folder is an output of `studies.rank`: stand-alone trained networks with their accuracy after each epoch. A replay
gives the networks in random order to workers, which finish one epoch each in turn. At every rung, the replay
asks `search.scheduler.continues`, as a search does. The result is the hypervolume of fully trained networks as a
function of the epochs spent on all networks.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from res2net.commands import Parser, run_main
from res2net.errors import UserError
from res2net.files import write_atomic
from search.front import Axis, front, hypervolume
from search.objectives import MACS
from search.report.figures import new_figure, png, tidy
from search.scheduler import SCHEDULERS, continues, rungs
from studies.bench import check_positive, first_line
from trainers.meta import environment

PROG = "python -m studies.bench_scheduler"
COLOURS = {"pareto-asha": "tab:red", "asha": "tab:blue", "none": "0.45"}
SHARES = (0.9, 0.95, 0.99, 1.0)  # targets: shares of the hypervolume of all fully trained networks


@dataclass(frozen=True, slots=True)
class Curve:
    """A network's MACs and its validation accuracy (%) after each epoch."""

    macs: int
    top1: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """A replayed search: the hypervolume (%) after each spent epoch, and the fully trained networks."""

    hypervolume: np.ndarray
    full: tuple[Curve, ...]


def read(folder: Path, run: str) -> list[Curve]:
    """Return the members' curves of one `run` of `studies.rank`; raise `UserError` if some are missing."""
    try:
        members = pd.read_csv(folder / "members.csv", index_col="key")
        curves = pd.read_csv(folder / "curves.csv")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}: {error.filename}; accepted: a folder of studies.rank") from None
    top1 = curves[curves.run == run].pivot_table(index="key", columns="epoch", values="val_top1")
    missing = set(members.index) - set(top1.dropna().index)
    if missing:
        raise UserError(f"{folder}: {len(missing)} of {len(members)} members have no curve {run!r}")
    return [Curve(int(members.macs[key]), tuple(top1.loc[key])) for key in members.index]


def replay(curves: Sequence[Curve], scheduler: str, eta: int, min_epochs: int, workers: int, seed: int) -> Replay:
    """Replay a search over the networks in random order; workers finish their epochs in turn and never wait."""
    epochs = len(curves[0].top1)
    waiting = random.Random(seed).sample(list(curves), len(curves))
    reached: dict[int, list[Curve]] = {e: [] for e in rungs(epochs, min_epochs, eta)}
    running: list[tuple[Curve, int]] = []
    full: list[Curve] = []
    low, high = min(c.macs for c in curves), max(c.macs for c in curves) + 1
    values: list[float] = []
    while waiting or running:
        while waiting and len(running) < workers:
            running.append((waiting.pop(0), 0))
        curve, epoch = running.pop(0)
        epoch += 1
        if epoch == epochs:
            full.append(curve)
        elif _continues(reached, curve, epoch, scheduler, eta):
            running.append((curve, epoch))
        values.append(hypervolume([c.top1[-1] for c in full], Axis([c.macs for c in full], low, high)))
    return Replay(np.array(values), tuple(full))


def _continues(reached: dict[int, list[Curve]], curve: Curve, epoch: int, scheduler: str, eta: int) -> bool:
    """Return whether a network continues after `epoch`. If the epoch is a rung, add the network to the rung."""
    if epoch not in reached:
        return True
    rung = reached[epoch]
    rung.append(curve)
    top1, places = [c.top1[epoch - 1] for c in rung], [MACS.axis(c.macs) for c in rung]
    return continues(scheduler, eta, len(rung) - 1, top1, places)


def spent_until(values: np.ndarray, target: float) -> float:
    """Return the epochs spent until the hypervolume reached `target`; infinity if it never reached the target."""
    at = np.flatnonzero(values >= target - 1e-9)
    return float(at[0] + 1) if len(at) else float("inf")


def compare(curves: Sequence[Curve], args: argparse.Namespace) -> tuple[pd.DataFrame, dict[str, list[Replay]]]:
    """Return a row for each scheduler and seed, and the replays."""
    low, high = min(c.macs for c in curves), max(c.macs for c in curves) + 1
    third = low * (high / low) ** (1 / 3)
    costs = [c.macs for c in curves]
    whole = hypervolume([c.top1[-1] for c in curves], Axis(costs, low, high))
    cheap = hypervolume([c.top1[-1] for c in curves], Axis(costs, low, third))
    rows, replays = [], {}
    for name in SCHEDULERS:
        replays[name] = [
            replay(curves, name, args.eta, args.min_epochs, args.workers, seed) for seed in range(args.seeds)
        ]
        for seed, r in enumerate(replays[name]):
            top1, macs = [c.top1[-1] for c in r.full], [c.macs for c in r.full]
            row = {"scheduler": name, "seed": seed, "epochs": len(r.hypervolume), "full": len(r.full)}
            row |= {"front": len(front(top1, macs)), "cheapest": min(macs)}
            row["hypervolume"] = r.hypervolume[-1] / whole
            row["cheap_third"] = hypervolume(top1, Axis(macs, low, third)) / cheap
            row |= {f"to_{round(100 * s)}": spent_until(r.hypervolume, s * whole) for s in SHARES}
            rows.append(row)
    return pd.DataFrame(rows), replays


def plot(replays: dict[str, list[Replay]], total: int, title: str) -> bytes:
    """Return a PNG of the hypervolume against spent epochs: the median and the middle half of the seeds."""
    figure = new_figure()
    ax = figure.add_subplot()
    for name, found in replays.items():
        length = max(len(r.hypervolume) for r in found)
        values = np.stack([np.pad(r.hypervolume, (0, length - len(r.hypervolume)), mode="edge") for r in found])
        quarter, median, three = np.percentile(values, (25, 50, 75), axis=0)
        x = np.arange(1, length + 1)
        ax.plot(x, median, color=COLOURS[name], lw=1.8, label=name)
        ax.fill_between(x, quarter, three, color=COLOURS[name], alpha=0.18, lw=0)
        ax.plot(length, median[-1], "o", color=COLOURS[name])
    ax.axvline(total / 3, color="0.3", ls="--", lw=1, label="a third of all epochs")
    ax.set(xlabel="epochs spent on all networks", ylabel="hypervolume of fully trained networks (%)")
    ax.set_title(title, fontsize=10)
    tidy(ax)
    ax.legend(frameon=False, loc="lower right")
    return png(figure)


def build_parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("folder", type=Path, help="folder of studies.rank, with members.csv and curves.csv")
    out.add_argument("--run", default="alone", help="curves to replay: alone, alone_again")
    out.add_argument("--eta", type=int, default=3, help="one network in ETA passes a rung")
    out.add_argument("--min-epochs", type=int, default=1, help="epoch of the first rung")
    out.add_argument("--workers", type=int, default=4, help="concurrent networks")
    out.add_argument("--seeds", type=int, default=20, help="random orders of the networks")
    out.add_argument("--out", type=Path, metavar="DIR", help="folder for the table and the plot (default: none)")
    return out


def bench(args: argparse.Namespace) -> None:
    """Run the command."""
    check_positive(args, "min_epochs", "workers", "seeds")
    if args.eta < 2:
        raise UserError(f"`eta`: {args.eta}; accepted: at least 2")
    curves = read(args.folder, args.run)
    table, replays = compare(curves, args)
    epochs = len(curves[0].top1)
    total = epochs * len(curves)
    at = rungs(epochs, args.min_epochs, args.eta)
    what = f"{len(curves)} networks of {epochs} epochs, eta {args.eta}, rungs {at}"
    say = partial(Console().print, highlight=False, soft_wrap=True)
    say(f"{args.folder.name}: {what}, {args.workers} workers, {args.seeds} orders; medians")
    shares = "".join(f"{f'to {round(100 * s)} %':>10}" for s in SHARES)
    say(f"{'scheduler':12}{'epochs':>8}{'full':>6}{'front':>7}{'HV':>8}{'cheap HV':>10}{shares}")
    for name in SCHEDULERS:
        m = table[table.scheduler == name].drop(columns="scheduler").median()
        row = f"{name:12}{m.epochs:8.0f}{m.full:6.0f}{m.front:7.0f}{m.hypervolume:8.3f}{m.cheap_third:10.3f}"
        say(row + "".join(f"{m[f'to_{round(100 * s)}'] / total:10.2f}" for s in SHARES))
    say(f"HV: share of the hypervolume after all {total} epochs; cheap HV: in the cheapest third of log MACs;")
    say("to x %: share of all epochs until x % of that hypervolume (inf: never)")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out / "replays.csv", table.to_csv(index=False, float_format="%.4f"))
        write_atomic(args.out / "scheduler.png", plot(replays, total, f"{args.folder.name}: {what}"))
        about = {"options": {k: str(v) for k, v in vars(args).items()}, **environment()}
        write_atomic(args.out / "about.json", json.dumps(about, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each scheduler; write `replays.csv`, `scheduler.png` and `about.json`."""
    return run_main(bench, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
