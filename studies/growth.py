"""Compare grown networks with networks trained from scratch, in pairs with the same seed.

    python -m studies.growth --data cifar10 --data-dir ~/data --seeds 3 --out studies/results/growth-cifar10

A trunk grows along a chain of networks, each of which contains the network before it. For some networks, the trunk is
annealed to get the network's score, as in `--evaluator grow`. Each of these networks is also trained from scratch,
twice: once with the epochs of its whole lineage, and once with the MACs of its whole lineage.
All accuracies are on the validation split. `growth.csv` is written after each seed. The same command trains only the
seeds that are missing in the file.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from scipy import stats

import space as spaces
import trainers.datasets.data
from res2net.arch import Arch
from res2net.commands import Parser, run_main
from res2net.files import write_atomic
from search.evaluators import CALMER, trial_seed
from search.objectives import MACS
from search.worker import Job, train_trial
from studies.bench import check_positive, first_line
from trainers.datasets.data import Data
from trainers.recipes import RECIPES, shortened

PROG = "python -m studies.growth"
BASE = "thin"
# Scale, cardinality, depth and width of each network of the chain: 0.32, 0.48, 0.70, 0.92 and 1.86 MMACs at 32 pixels.
CHAIN = ((1, 8, 1, 64), (2, 8, 1, 64), (3, 4, 1, 64), (3, 1, 1, 64), (6, 1, 1, 64))
SCORED = (2, 4)  # indices in the chain of the networks to compare
GROWN, EPOCHS, COSTS = "grown", "scratch, equal epochs", "scratch, equal MACs"


def chain(data: Data) -> list[Arch]:
    """Return the networks of the chain. Each contains the network before it."""
    whole = spaces.get("scale_card_depth_width", BASE, num_classes=data.num_classes, image_size=data.image_size)
    names = ("scale", "cardinality", "depth", "width")
    return [whole.arch(dict(zip(names, values, strict=True))) for values in CHAIN]


def compare(seed: int, args: argparse.Namespace) -> list[dict[str, object]]:
    """Train all networks of a seed; return a row for each score."""
    torch.set_num_threads(1)
    data = trainers.datasets.data.load(args.data, args.data_dir, seed=seed, train_images=args.train_images)
    archs = chain(data)
    costs = [MACS.of(arch, data.image_size) for arch in archs]
    rows, origin = [], None
    for place, arch in enumerate(archs):
        job = _grown(seed, arch, args.trunk, args.anneal, origin)
        begun, top1 = time.monotonic(), math.nan
        for report in train_trial(job, data):
            top1 = report.quality
            if report.trunk is not None:
                origin = arch, report.trunk
                if place not in SCORED:
                    break
        if place not in SCORED:
            continue
        inherited = args.trunk * sum(costs[:place])
        own, before = args.trunk + args.anneal, args.trunk * place
        same = {EPOCHS: float(own + before), COSTS: own + inherited / costs[place]}
        rows.append(_row(seed, arch, costs[place], GROWN, own, own * costs[place] + inherited, top1, begun))
        for way, epochs in same.items():
            begun = time.monotonic()
            top1 = _scratch(seed, arch, epochs, data)
            rows.append(_row(seed, arch, costs[place], way, epochs, epochs * costs[place], top1, begun))
    return rows


def _grown(seed: int, arch: Arch, trunk: int, anneal: int, origin: tuple[Arch, bytes] | None) -> Job:
    """Return the job of `--evaluator grow`."""
    short = RECIPES["short"]
    config = shortened(short, trunk + anneal, lr=short.lr / CALMER, hold=trunk, seed=trial_seed(seed, arch))
    warmup = config.warmup if origin is None else 0.0
    return Job(0, arch, replace(config, warmup=warmup), "grow", trunk=trunk, origin=origin)


def _scratch(seed: int, arch: Arch, epochs: float, data: Data) -> float:
    """Train a network from scratch for a number of epochs, which may be a fraction; return its last accuracy."""
    short = RECIPES["short"]
    each = short.steps_per_epoch(len(data.train))
    steps = round(epochs * each)
    config = shortened(short, math.ceil(steps / each), seed=trial_seed(seed, arch))
    *_, last = train_trial(Job(0, arch, replace(config, steps=steps)), data)
    return last.quality


def _row(
    seed: int, arch: Arch, macs: float, way: str, epochs: float, total: float, top1: float, begun: float
) -> dict[str, object]:
    """Return a row of the table. total: the MACs of one image, summed over all epochs of the lineage."""
    seconds = round(time.monotonic() - begun)
    known = {"seed": seed, "arch": str(arch), "macs": macs, "way": way, "own_epochs": round(epochs, 2)}
    return known | {"mmac_epochs": round(total / 1e6, 2), "val_top1": top1, "seconds": seconds}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, for each network and way: n, mean, spread, and the paired difference from growth with its interval."""
    out = []
    for macs, group in rows.groupby("macs"):
        table = group.pivot(index="seed", columns="way", values="val_top1").dropna()
        for way in (GROWN, EPOCHS, COSTS):
            lost = table[way] - table[GROWN]
            half = stats.sem(lost) * stats.t.ppf(0.975, len(lost) - 1) if len(lost) > 1 and way != GROWN else math.nan
            mean, spread = table[way].mean(), table[way].std()
            found = {"macs": macs, "way": way, "n": len(table), "top1": round(mean, 2), "sd": round(spread, 2)}
            out.append(found | {"minus_grown": round(lost.mean(), 2), "ci95": round(half, 2)})
    return pd.DataFrame(out)


def build_parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--data", default="cifar10", help="a data set of small images")
    out.add_argument("--data-dir", metavar="DIR", help="the folder of the data set's files")
    out.add_argument("--train-images", type=int, metavar="N", help="train on N images only")
    out.add_argument("--seeds", type=int, default=3, help="number of seeds")
    out.add_argument("--workers", type=int, default=2, help="seeds at a time, one thread each")
    out.add_argument("--trunk", type=int, default=4, metavar="N", help="epochs of each network at the peak rate")
    out.add_argument("--anneal", type=int, default=4, metavar="N", help="epochs that anneal a scored network")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the tables")
    return out


def _main(args: argparse.Namespace) -> int:
    check_positive(args, "seeds", "workers", "trunk", "anneal")
    console, path = Console(), args.out / "growth.csv"
    rows: list[dict[Any, Any]] = pd.read_csv(path).to_dict("records") if path.exists() else []
    left = [seed for seed in range(args.seeds) if all(row["seed"] != seed for row in rows)]
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for found in pool.map(partial(compare, args=args), left):
            rows += found
            write_atomic(path, pd.DataFrame(rows).to_csv(index=False))
            for row in found:
                console.print(
                    f"seed {row['seed']}  {row['macs']:>9,} MACs  {row['way']:<21}  {row['own_epochs']:>5} epochs  "
                    f"{row['val_top1']:.2f} %  {row['seconds']} s",
                    highlight=False,
                )
    table = pd.DataFrame(rows)
    found = summary(table)
    write_atomic(args.out / "summary.csv", found.to_csv(index=False))
    console.print(found.to_string(index=False), highlight=False)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
