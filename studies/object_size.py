"""The paper's claim in miniature: does a larger scale help large objects more? Segmentation of `scenes` by object size.

    python -m studies.object_size --seeds 3 --epochs 20 --out studies/results/object-size

ResNet (one split) and Res2Nets of 2, 4 and 8 splits have equal MACs: the width is solved for each scale, as in the
paper. Each network is trained by the same recipe on all training images. The test split is read once, at the end. An
object's IoU compares its visible pixels with the pixels that are predicted as its class. It counts only pixels in the
object's box, enlarged by a quarter on each side. The table has the mean IoU of small, medium and large objects, as
Table 6 of the paper has the AP.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from scipy import stats

import space as spaces
import trainers.datasets.data
from res2net.arch import Arch
from res2net.commands import Parser, run_main
from res2net.files import write_atomic
from search.objectives import MACS
from search.report.figures import new_figure, png, tidy
from search.units import parse_count
from studies.bench import check_positive, first_line
from trainers.datasets.data import Data
from trainers.datasets.scenes import TEST_SET, SceneArrays, generate, size_of
from trainers.images import source
from trainers.recipes import RECIPES, shortened
from trainers.start import initialised
from trainers.tasks import TASKS
from trainers.train import Trainer

PROG = "python -m studies.object_size"
BASE = "thin"
SCALES = (1, 2, 4, 8)
SIZES = ("small", "medium", "large")
COLUMNS = (*SIZES, "all", "miou")  # in %
GROWN = 0.25  # share of a box's side by which the box grows on each side
SEGMENT = TASKS["segment"]


def network(scale: int, depth: int, macs: int, data: Data) -> Arch:
    """Return the network of a scale with these MACs, backbone and head."""
    whole = spaces.get("scale_depth", BASE, num_classes=data.num_classes, image_size=data.image_size)
    params = {"scale": scale, "depth": depth}
    head = SEGMENT.head(whole.arch(params), data.image_size)
    assert head is not None
    return whole.with_head(head).at_macs(params, macs)


def ious(guess: np.ndarray, truth: SceneArrays) -> np.ndarray:
    """Return the IoU of each object, [N, M]; NaN for an unused slot. guess: predicted classes, [N, S, S]."""
    found = np.full(truth.classes.shape, math.nan)
    size = guess.shape[-1]
    for i, slot in zip(*np.nonzero(truth.classes), strict=True):
        x1, y1, x2, y2 = truth.boxes[i, slot]
        dx, dy = GROWN * (x2 - x1), GROWN * (y2 - y1)
        rows = slice(max(0, int(y1 - dy)), min(size, math.ceil(y2 + dy)))
        columns = slice(max(0, int(x1 - dx)), min(size, math.ceil(x2 + dx)))
        own = truth.instances[i, rows, columns] == slot + 1
        # Pixels that are predicted as this class on another object of the class belong to the other object.
        other = (truth.instances[i, rows, columns] > 0) & ~own
        given = (guess[i, rows, columns] == truth.classes[i, slot]) & ~other
        found[i, slot] = (own & given).sum() / (own | given).sum()
    return found


def compare(place: tuple[int, int], args: argparse.Namespace) -> dict[str, object]:
    """Train the network of one scale and seed; return its row."""
    scale, seed = place
    torch.set_num_threads(1)
    begun = time.monotonic()
    data = trainers.datasets.data.load(
        "scenes", seed=seed, val_fraction=0, train_images=args.train_images, image_size=args.image_size, target="mask"
    )
    arch = network(scale, args.depth, args.macs, data)
    config = shortened(RECIPES["dense"], args.epochs, seed=seed, **({} if args.lr is None else {"lr": args.lr}))
    torch.manual_seed(seed)
    trainer = Trainer(initialised(arch, config.zero_init_last), data, config, task=SEGMENT)
    while not trainer.finished:
        trainer.epoch()
    truth = generate(*TEST_SET, size=data.image_size)
    split = trainers.datasets.data.load_test("scenes", image_size=args.image_size, target="mask")
    test = source(split, data, trainer.device)
    meter, guesses = SEGMENT.meter(trainer.device, data.classes), []
    model = trainer.scored.eval()
    with torch.no_grad():
        for x, y in test.batches(SEGMENT.eval_batch(test.size)):
            outputs = model(x)
            meter.add(outputs, y)
            guesses.append(SEGMENT.predicted(outputs).cpu().numpy())
    found, groups = ious(np.concatenate(guesses), truth), size_of(truth.boxes, data.image_size)
    values = {name: 100 * float(np.nanmean(found[groups == i])) for i, name in enumerate(SIZES)}
    values |= {"all": 100 * float(np.nanmean(found)), "miou": meter.scores(trainer.group).miou}
    known: dict[str, object] = {"scale": scale, "seed": seed, "arch": str(arch), "macs": MACS.of(arch, data.image_size)}
    return known | values | {"seconds": round(time.monotonic() - begun)}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, for each scale: n, each column's mean and 95 % interval, and its paired difference from the ResNet."""
    out = []
    plain = rows[rows.scale == SCALES[0]].set_index("seed")
    for scale, group in rows.groupby("scale"):
        own = group.set_index("seed")
        row: dict[str, object] = {"scale": scale, "n": len(own), "macs": int(own.macs.iloc[0])}
        for name in COLUMNS:
            row |= {name: round(own[name].mean(), 2), f"{name}_ci95": _interval(own[name])}
            if scale != SCALES[0]:
                gain = (own[name] - plain[name]).dropna()
                row |= {f"{name}_gain": round(gain.mean(), 2), f"{name}_gain_ci95": _interval(gain)}
        out.append(row)
    return pd.DataFrame(out)


def _interval(values: Any) -> float:
    """Return the half-width of the 95 % interval of the mean of a column."""
    if len(values) < 2:
        return math.nan
    return round(float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)), 2)


def picture(table: pd.DataFrame, title: str) -> bytes:
    """Return the plot: for each size of objects, the IoU against the scale."""
    figure = new_figure()
    ax = figure.subplots()
    for i, name in enumerate(SIZES):
        ax.errorbar(
            range(len(table)), table[name], table[f"{name}_ci95"], marker="o", capsize=3, color=f"C{i}", label=name
        )
    ax.set_xticks(range(len(table)), ["ResNet" if s == 1 else f"{s} splits" for s in table.scale])
    ax.set_ylabel("IoU of objects on the test split (%)")
    ax.set_title(title)
    ax.legend(title="objects")
    tidy(ax)
    return png(figure)


def build_parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--seeds", type=int, default=3, help="number of seeds")
    out.add_argument("--epochs", type=int, default=20, help="epochs of each training")
    out.add_argument("--macs", default="46M", help="multiply-accumulates of each network, backbone and head")
    out.add_argument("--depth", type=int, default=1, help="the depth of the networks, as in the space")
    out.add_argument("--lr", type=float, help="the peak learning rate (default: the recipe's)")
    out.add_argument("--train-images", type=int, metavar="N", help="train on N images only")
    out.add_argument("--image-size", type=int, metavar="N", help="pixels along a side (default: 128)")
    out.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the tables and the plot")
    return out


def _main(args: argparse.Namespace) -> int:
    check_positive(args, "seeds", "epochs", "depth", "workers")
    args.macs = parse_count(args.macs, "macs")
    args.out.mkdir(parents=True, exist_ok=True)
    console, rows = Console(), []
    places = [(scale, seed) for seed in range(args.seeds) for scale in SCALES]
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for done in as_completed([pool.submit(partial(compare, args=args), place) for place in places]):
            rows.append(row := done.result())
            shown = "  ".join(f"{name} {row[name]:.2f}" for name in COLUMNS)
            console.print(f"scale {row['scale']} seed {row['seed']}  {shown}  {row['seconds']} s", highlight=False)
            table = pd.DataFrame(rows).sort_values(["scale", "seed"])
            write_atomic(args.out / "objects.csv", table.to_csv(index=False))
    found = summary(table)
    write_atomic(args.out / "summary.csv", found.to_csv(index=False))
    title = f"scenes, {args.macs / 1e6:.3g} MMACs, {args.epochs} epochs, n = {args.seeds}"
    write_atomic(args.out / "object_size.png", picture(found, title))
    console.print(found.to_string(index=False), highlight=False, soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
