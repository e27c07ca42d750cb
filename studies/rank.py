"""Measure how well cheap scores rank networks: shared weights, brief tuning, MACs, parameters, a training-free proxy.

    python -m studies.rank --data shapes --out studies/results/rank-shapes

Members of a space are trained stand-alone with one recipe and two seeds. The accuracies of the first seed are the truth
to predict. Their correlation with the second seed's accuracies is the ceiling: noise allows no higher correlation. Rank
correlations (Kendall's tau-b, Spearman's rho) have 95 % bootstrap intervals over the members. The folder keeps every
finished training, so the same command resumes after a stop.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from res2net.arch import Arch
from res2net.commands import Parser, run_main
from res2net.cost import cost
from res2net.elastic import ElasticRes2Net
from res2net.errors import UserError
from res2net.factory import create
from res2net.files import write_atomic
from res2net.options import add_options, fields_of
from search import shared_weights
from search.evaluators import trial_seed
from search.groups import Scope, Scoring
from search.report.figures import label_counts, new_figure, png, tidy
from search.settings import Settings
from space import Space
from studies.bench import first_line
from trainers.datasets.data import Data
from trainers.meta import cores, environment
from trainers.recipes import Config
from trainers.supernet import Scorer
from trainers.train import train

PROG = "python -m studies.rank"
TRUTH, CEILING = "alone", "alone_again"
NAMES = {
    "supernet": "shared weights",
    "inherited": "inherited, tuned briefly",
    "macs": "MACs",
    "params": "params",
    "synflow": "SynFlow (no training)",
    CEILING: "another seed (ceiling)",
}
Initial = tuple[Settings, Space, Path | None]  # arguments of `_begin`
SCOPE = ("space", "base", "per_stage", "data", "data_dir", "train_images", "seed")  # options that are settings
DRAWS = 2000  # resamples of the bootstrap


def choose(space: Space, count: int, seed: int) -> list[Arch]:
    """Return `count` different members, spread evenly over scales and, within a scale, over MACs."""
    rng = random.Random(seed)
    by_scale: dict[tuple[int, ...], set[Arch]] = {}
    drawn = space.all_params() if space.size <= 5000 else (space.sample(rng) for _ in range(5000))
    for params in drawn:
        arch = space.arch(params)
        by_scale.setdefault((max(s.scale for s in arch.stages),), set()).add(arch)
    chosen: list[Arch] = []
    for i, key in enumerate(sorted(by_scale)):
        group = sorted(by_scale[key], key=lambda a: (cost(a, space.image_size).macs, a.key()))
        quota = min(len(group), count * (i + 1) // len(by_scale) - count * i // len(by_scale))
        # One member from each of `quota` equal parts of the group, in order of MACs.
        edges = [len(group) * j // quota for j in range(quota + 1)] if quota else []
        chosen += [group[rng.randrange(a, b)] for a, b in itertools.pairwise(edges)]
    return chosen


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Return Kendall's tau-b: concordant minus discordant pairs, normalised for ties in `a` and in `b`."""
    x, y = (np.sign(v[:, None] - v[None, :]) for v in (a, b))
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rho: Pearson's correlation of the ranks; ties share their mean rank."""
    x, y = (pd.Series(v).rank().to_numpy() for v in (a, b))
    return float(np.corrcoef(x, y)[0, 1])


def interval(f: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the correlation `f`, over the members."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(DRAWS):
        i = rng.integers(0, len(a), len(a))
        # A correlation with a constant is undefined.
        if len(np.unique(a[i])) > 1 and len(np.unique(b[i])) > 1:
            values.append(f(a[i], b[i]))
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def correlations(members: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each score that all members have: tau and rho against stand-alone accuracy, with intervals."""
    truth, rows = members[TRUTH].to_numpy(float), []
    for name, label in NAMES.items():
        if name not in members or bool(members[name].isna().any()):
            continue
        score, row = members[name].to_numpy(float), {"score": name, "label": label, "n": len(members)}
        for kind, f in (("tau", kendall), ("rho", spearman)):
            low, high = interval(f, score, truth)
            row |= {kind: f(score, truth), f"{kind}_low": low, f"{kind}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def synflow(model: nn.Module, image_size: int) -> float:
    """Return the log SynFlow score: sum of |weight x gradient| for an image of ones and absolute weights.

    Compute in float64, because products over many layers overflow float32.
    """
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()
    model(torch.ones(1, 3, image_size, image_size, dtype=torch.float64)).sum().backward()
    return math.log(sum((p * p.grad).abs().sum().item() for p in model.parameters() if p.grad is not None))


# ---- Trainings in worker processes of one thread each -----------------------------------------------------

_state: dict[str, object] = {}


def _begin(settings: Settings, space: Space, folder: Path | None) -> None:
    """Load the data and, if given, the supernet in a worker process."""
    torch.set_num_threads(1)
    data = settings.scope.load_data()
    model = shared_weights.load(folder, space, data, settings.scope, settings.scoring) if folder else None
    _state.update(settings=settings, data=data, model=model)
    if model is not None:
        _state["scorer"] = shared_weights.scorer(model, data, settings.scope, settings.scoring)


def alone(arch: Arch, config: Config) -> list[float]:
    """Return the top-1 (%) after each epoch of training from scratch."""
    torch.manual_seed(config.seed)
    return [e.val_top1 for e in train(create(arch), _data(), config)]


def shared(arch: Arch, config: Config) -> list[float]:
    """Return the top-1 (%) with the shared weights, as a list of one value."""
    scorer = _state["scorer"]
    assert isinstance(scorer, Scorer)
    return [scorer(arch)[1]]


def inherited(arch: Arch, config: Config) -> list[float]:
    """Return the top-1 (%) after each epoch of tuning, started from the slice of the shared weights."""
    model = _state["model"]
    assert isinstance(model, ElasticRes2Net)
    return [e.val_top1 for e in train(model.extract(arch), _data(), config)]


def _data() -> Data:
    data = _state["data"]
    assert isinstance(data, Data)
    return data


class Study:
    """The table of the members in a folder, filled column by column.

    `members.csv` has a row for each member, `curves.csv` its accuracy after each epoch.
    """

    def __init__(self, folder: Path, archs: Sequence[Arch], image_size: int, workers: int, console: Console) -> None:
        self.path, self.workers, self.console = folder / "members.csv", workers, console
        self.archs = {a.key(): a for a in archs}
        folder.mkdir(parents=True, exist_ok=True)
        curves = folder / "curves.csv"
        self.curves = pd.read_csv(curves) if curves.is_file() else pd.DataFrame()
        if self.path.is_file():
            self.frame = pd.read_csv(self.path, index_col="key")
            if list(self.frame.index) != list(self.archs):
                raise UserError(f"`out`: {str(folder)!r} holds other members; accepted: the same options, or a new one")
            return
        prices = [cost(a, image_size) for a in archs]
        rows = {"arch": [str(a) for a in archs], "scale": [max(s.scale for s in a.stages) for a in archs]}
        rows |= {"cardinality": [max(s.cardinality for s in a.stages) for a in archs]}
        rows |= {"macs": [p.macs for p in prices], "params": [p.params for p in prices]}
        self.frame = pd.DataFrame(rows, index=pd.Index(list(self.archs), name="key"))

    def fill(
        self, column: str, work: Callable[[Arch, Config], list[float]], config_of: Callable, initial: Initial
    ) -> None:
        """Compute the missing values of a column; write the tables after each value.

        Start with the largest members: if a large member started last, the other processes would be idle.
        """
        if column not in self.frame:
            self.frame[column] = math.nan
        missing = self.frame.loc[self.frame[column].isna()]
        todo = [str(key) for key in missing.sort_values(by="macs", ascending=False).index]
        if not todo:
            return
        context = multiprocessing.get_context("spawn")
        begun = time.monotonic()
        with ProcessPoolExecutor(self.workers, context, _begin, initial) as pool:
            results = {k: pool.submit(work, self.archs[k], config_of(self.archs[k])) for k in todo}
            for key in track(todo, column, console=self.console, transient=True):
                curve = results[key].result()
                self.frame.loc[key, column] = curve[-1]
                rows = pd.DataFrame({"key": key, "run": column, "epoch": range(1, len(curve) + 1), "val_top1": curve})
                self.curves = pd.concat([self.curves, rows], ignore_index=True)
                self.curves = self.curves.drop_duplicates(["key", "run", "epoch"], keep="last")
                write_atomic(self.path.with_name("curves.csv"), self.curves.to_csv(index=False, float_format="%.2f"))
                write_atomic(self.path, self.frame.to_csv())
        took = time.monotonic() - begun
        self.console.print(f"{column}: {len(todo)} networks in {took:.0f} s, {self.workers} processes", highlight=False)


def rows_of(table: pd.DataFrame) -> Iterable[Any]:
    """Return the rows as named tuples; their fields are the columns."""
    return table.itertuples()


def plot(members: pd.DataFrame, table: pd.DataFrame, title: str) -> bytes:
    """Return a PNG with a panel for each score against stand-alone accuracy, coloured by scale."""
    columns = 3
    rows = -(-len(table) // columns)
    figure = new_figure(4.2 * columns, 3.5 * rows, dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    dots = None
    for ax, row in itertools.zip_longest(axes.flat, rows_of(table)):
        if row is None:
            ax.set_visible(False)
            continue
        markers = dict(zip(sorted(members.cardinality.unique()), "osD^vP", strict=False))
        for cardinality, marker in markers.items():
            part = members[members.cardinality == cardinality]
            scales = (members.scale.min(), members.scale.max())
            dots = ax.scatter(part[row.score], part[TRUTH], c=part.scale, cmap="viridis", marker=marker, s=34)
            dots.set_clim(*scales)
        if row.score in ("macs", "params"):
            ax.set_xscale("log")
            label_counts(ax.xaxis)
        ax.set_title(f"{row.label}\ntau {row.tau:.2f} [{row.tau_low:.2f}, {row.tau_high:.2f}]", fontsize=10)
        tidy(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("top-1 trained alone (%)")
    if dots is not None:
        figure.colorbar(dots, ax=axes, label="scale", pad=0.01)
        for cardinality, marker in markers.items():
            axes[0, 0].scatter([], [], color="0.4", marker=marker, s=30, label=f"c = {cardinality}")
        axes[0, 0].legend(fontsize=8, frameon=False, loc="best")
    figure.suptitle(title)
    return png(figure)


def build_parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    add_options(out, fields_of(Scope, SCOPE))
    out.set_defaults(seed=Scope().seed)
    out.add_argument("--members", type=int, default=30, help="networks to compare")
    out.add_argument("--epochs", type=int, default=3, help="epochs of stand-alone training")
    out.add_argument(
        "--supernet", type=Path, metavar="DIR", help="shared weights (default: train them in OUT/supernet)"
    )
    out.add_argument(
        "--supernet-epochs", type=int, default=Scoring().supernet_epochs, help="epochs of the shared weights"
    )
    out.add_argument("--tune-epochs", type=int, default=1, help="epochs of tuning after inheritance")
    out.add_argument("--tune-lr", type=float, default=0.02, help="peak learning rate of tuning")
    out.add_argument("--workers", type=int, default=cores(), help="processes of one thread each")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the tables; a used one resumes")
    return out


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(epochs=args.epochs, **{name: value for name, value in vars(args).items() if name in SCOPE})


def _write(study: Study, args: argparse.Namespace, what: str) -> pd.DataFrame:
    """Write all tables and plots so far; return the correlations."""
    write_atomic(study.path, study.frame.to_csv())
    table = correlations(study.frame)
    write_atomic(args.out / "correlations.csv", table.to_csv(index=False, float_format="%.4f"))
    title = f"{what}: {len(study.frame)} members, {args.epochs} epochs alone"
    write_atomic(args.out / "rank.png", plot(study.frame, table, title))
    about = {"options": {k: str(v) for k, v in vars(args).items()}, **environment()}
    write_atomic(args.out / "about.json", json.dumps(about, indent=2) + "\n")
    return table


def _main(args: argparse.Namespace) -> None:
    """Run the command."""
    console = Console()
    if args.members < 3:
        raise UserError(f"`members`: {args.members}; accepted: at least 3")
    settings = _settings(args)
    data = settings.scope.load_data()
    space = settings.scope.get_space(data.num_classes, data.image_size)
    study = Study(args.out, choose(space, args.members, args.seed), data.image_size, args.workers, console)
    begun = time.monotonic()
    folder = args.supernet or args.out / "supernet"
    if args.supernet is None:
        how = replace(settings.scoring, epochs=args.supernet_epochs)
        shared_weights.train(settings.scope, how, space, data, folder, console)
    tune = replace(settings.scoring.train_config(args.seed), epochs=args.tune_epochs, lr=args.tune_lr, warmup=0.0)
    torch.manual_seed(args.seed)
    study.frame["synflow"] = [synflow(create(a), data.image_size) for a in study.archs.values()]
    table = pd.DataFrame()
    for column, work, config_of, weights in (
        (TRUTH, alone, lambda a: settings.scoring.train_config(trial_seed(args.seed, a)), None),
        ("supernet", shared, lambda a: settings.scoring.train_config(args.seed), folder),
        ("inherited", inherited, lambda a: tune, folder),
        (CEILING, alone, lambda a: settings.scoring.train_config(trial_seed(args.seed + 1, a)), None),
    ):
        study.fill(column, work, config_of, (settings, space, weights))
        table = _write(study, args, f"{space.name} ({space.base}) on {settings.scope.data}")
    console.print(
        f"\nagainst top-1 of {len(study.frame)} members trained alone ({settings.scope.data}, seed {args.seed})"
    )
    console.print(f"{'score':26} {'tau':>6} {'95 % interval':>16} {'rho':>7}", highlight=False)
    for r in rows_of(table):
        spread = f"[{r.tau_low:.2f}, {r.tau_high:.2f}]"
        console.print(f"{r.label:26} {r.tau:6.2f} {spread:>16} {r.rho:7.2f}", highlight=False, markup=False)
    console.print(f"{args.out}, after {time.monotonic() - begun:.0f} s", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; write `members.csv`, `curves.csv`, `correlations.csv`, `rank.png` and `about.json`."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
