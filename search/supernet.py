"""Train the weights that all networks of a space share: `python -m search.supernet --out DIR`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import space as spaces
import trainers.datasets.data
from res2net.arch import Arch
from res2net.cost import cost
from res2net.elastic import ElasticRes2Net
from res2net.errors import Parser, UserError, run_main
from res2net.files import write_atomic
from res2net.folder import weights_bytes
from search.runs import locked
from search.settings import Settings
from search.units import format_count
from space import Space
from trainers.datasets.data import Data
from trainers.ddp import ALONE, Group, joined
from trainers.meta import environment
from trainers.resume import unpack
from trainers.supernet import Members, Scorer, SupernetTrainer
from trainers.train import TrainingFailed

PROG = "python -m search.supernet"
ABOUT_FILE, WEIGHTS_FILE, CHECKPOINT_FILE, EPOCHS_FILE = (
    "supernet.json",
    "supernet.safetensors",
    "checkpoint.pt",
    "epochs.csv",
)
FOLDER = "supernet"  # of a search that trains its own
# What must be alike for shared weights to go on, or to serve a search.
TRAINED_BY = ("space", "base", "per_stage", "data", "train_images", "image_size", "epochs", "batch_size", "lr", "seed")
# Or to serve a search: the seed cuts the validation split, another's images were trained on.
SERVES = ("data", "train_images", "image_size", "seed")
WATCHED = 3  # random members whose accuracy is shown, besides the largest and the smallest


def members_of(space: Space) -> Members:
    """What a supernet of the space trains, small and large MACs alike."""
    smallest = space.arch(space.cheapest()[0])
    return Members(space.largest(), smallest, lambda rng: space.arch(space.sample_by_macs(rng)))


def watched(space: Space) -> list[Arch]:
    """The largest, the smallest, and a few in between, cheapest first."""
    rng, members = random.Random(0), members_of(space)
    found = {members.largest, members.smallest} | {members.sample(rng) for _ in range(WATCHED)}
    return sorted(found, key=lambda a: cost(a, space.image_size).macs)


def train(
    settings: Settings,
    space: Space,
    data: Data,
    folder: Path,
    console: Console | None = None,
    group: Group = ALONE,
    device: str = "auto",
) -> ElasticRes2Net:
    """Train a supernet in the folder, or go on where it stopped; the finished one is only loaded.

    Written after each epoch; what follows is the same as if it had never stopped. `UserError` for a folder that holds
    anything else, or a supernet of other settings. group: the processes that train it, of which the first one writes.
    """
    check(folder, settings, space)
    if (folder / WEIGHTS_FILE).is_file():
        return load(folder, space, data, settings)
    first = group.rank == 0
    with locked(folder) if first else contextlib.nullcontext():
        if first:
            write_atomic(folder / ABOUT_FILE, json.dumps(_about(settings, space, data), indent=2) + "\n")
        torch.manual_seed(settings.seed)
        config = replace(settings.train_config(settings.seed), device=device)
        trainer = SupernetTrainer(ElasticRes2Net(space), data, config, members_of(space), group)
        rows = _restore(trainer, folder)
        try:
            _run(trainer, watched(space), rows, folder, console or Console(quiet=True))
        except TrainingFailed as problem:
            raise UserError(f"supernet: {problem}; accepted: a lower --lr (it is {settings.lr})") from None
        if first:
            write_atomic(folder / WEIGHTS_FILE, weights_bytes(trainer.model))
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return trainer.model


def check(folder: Path, settings: Settings, space: Space) -> None:
    """`UserError` if the folder holds a supernet that differs, or something that is none."""
    if folder.is_dir() and any(p.name != ".lock" for p in folder.iterdir()) and not (folder / ABOUT_FILE).is_file():
        raise UserError(f"--out: {str(folder)!r} holds files but no supernet; accepted: a new folder, or a supernet's")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {str(folder)!r} is a file; accepted: a folder")
    if (folder / ABOUT_FILE).is_file():
        _same(folder, settings, space, TRAINED_BY, "--out")


def load(folder: Path, space: Space, data: Data, settings: Settings) -> ElasticRes2Net:
    """The trained supernet of a folder; `UserError` if it is not finished, or of another space or validation split."""
    if not (folder / ABOUT_FILE).is_file():
        raise UserError(f"--supernet: {str(folder)!r} holds no {ABOUT_FILE}; accepted: the --out of search.supernet")
    _same(folder, settings, space, SERVES, "--supernet")
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"--supernet: {str(folder)!r} is not trained to its end; go on with {PROG} --out {folder}")
    model = ElasticRes2Net(space)
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except Exception as error:  # safetensors raises its own, undocumented kinds for truncated and foreign files
        raise UserError(f"{path}: not the weights of this supernet ({str(error).splitlines()[0]})") from None
    return model


def scorer(model: ElasticRes2Net, data: Data, settings: Settings) -> Scorer:
    """What scores members of a supernet in a search."""
    return Scorer(model, data, settings.train_config(settings.seed))


def _about(settings: Settings, space: Space, data: Data) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    kept = {name: getattr(settings, name) for name in TRAINED_BY}
    images = {"train_images": len(data.train), "val_images": len(data.val)}
    return {"settings": kept, "space": space.to_dict(), "data": images, "written": now, **environment()}


def _same(folder: Path, settings: Settings, space: Space, names: Sequence[str], option: str) -> None:
    path = folder / ABOUT_FILE
    try:
        about = json.loads(path.read_text())
        theirs, their_space = (
            {"image_size": None} | about["settings"],
            Space.from_dict(about["space"]),
        )  # earlier ones lack it
        different = [
            f"--{n.replace('_', '-')} {theirs[n]}, not {getattr(settings, n)}"
            for n in names
            if theirs[n] != getattr(settings, n)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not what a supernet was trained with ({error!r})") from None
    if not different and their_space.to_dict() != space.to_dict():
        different = [f"another space than {space.name} ({space.base})"]
    if different:
        raise UserError(
            f"{option}: {str(folder)!r} holds a supernet of {'; '.join(different)}; "
            "accepted: the same, or another folder"
        )


def _restore(trainer: SupernetTrainer, folder: Path) -> list[dict[str, Any]]:
    """Put the trainer where the checkpoint left it; the epochs' rows so far."""
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return []
    try:
        state = unpack(path.read_bytes())
        trainer.load_state_dict(state["trainer"])
    except Exception as error:  # torch raises many kinds for what is truncated or foreign
        raise UserError(f"{path}: not a checkpoint of this supernet ({str(error).splitlines()[0]})") from None
    return state["rows"]


def _run(
    trainer: SupernetTrainer, archs: list[Arch], rows: list[dict[str, Any]], folder: Path, console: Console
) -> None:
    """Train what epochs are left, with a line and a checkpoint each."""
    total = trainer.config.epochs
    columns = (TextColumn("supernet"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total * trainer.steps_per_epoch)
        bar.update(task, completed=trainer.done_epochs * trainer.steps_per_epoch)
        trainer.on_step = lambda: bar.advance(task)
        size = trainer.val_images.size
        if not rows:
            names = "".join(f"{format_count(cost(a, size).macs):>9}" for a in archs)
            console.print(f"epoch     loss  top-1 (%) of{names} MACs", highlight=False)
        while trainer.done_epochs < total:
            e = trainer.epoch()
            if trainer.group.rank:  # the first process scores and writes
                continue
            scores = [trainer.scorer(a)[1] for a in archs]
            shown = "".join(f"{s:9.2f}" for s in scores)
            console.print(f"{e.epoch:>2}/{total:<2}  {e.train_loss:7.4f}              {shown}", highlight=False)
            row = {"epoch": e.epoch, "loss": e.train_loss, "seconds": e.seconds}
            rows.append(row | {f"val_top1 {a}": s for a, s in zip(archs, scores, strict=True)})
            write_atomic(folder / EPOCHS_FILE, pd.DataFrame(rows).to_csv(index=False))
            buffer = io.BytesIO()
            torch.save({"trainer": trainer.state_dict(), "rows": rows}, buffer)
            write_atomic(folder / CHECKPOINT_FILE, buffer.getvalue())


def build_parser() -> Parser:
    d = Settings()
    parser = Parser(prog=PROG, description="Train the weights that all networks of a space share.")
    parser.add_argument("--space", default=d.space, help=f"{', '.join(spaces.names())}, or a YAML file")
    parser.add_argument("--base", help=f"{', '.join(spaces.BASES)} (what suits the data set if not given)")
    parser.add_argument("--per-stage", action="store_true", help="every stage has its own values")
    parser.add_argument("--data", default=d.data, help=", ".join(trainers.datasets.data.names()))
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set's files are")
    parser.add_argument("--train-images", type=int, metavar="N", help="train on so many images only")
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="pixels along a side that images of a folder are resized to"
    )
    parser.add_argument(
        "--epochs", type=int, default=d.supernet_epochs, help="epochs, of steps that train four networks each"
    )
    parser.add_argument("--batch-size", type=int, default=d.batch_size, help="images a step")
    parser.add_argument("--lr", type=float, default=d.lr, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=d.seed, help="of split, initial weights, batches and members")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder; the same one goes on")
    return parser


def _main(args: argparse.Namespace) -> int:
    options = vars(args)
    out = options.pop("out")
    settings = Settings(**options)
    with joined("auto") as (group, device):
        console = Console(quiet=group.rank > 0)
        data = settings.load_data(console)
        space = settings.get_space(data.num_classes, data.image_size, data.in_channels)
        try:
            train(settings, space, data, out, console, group, device)
        except KeyboardInterrupt:
            console.print(f"interrupted; the same command goes on after the last whole epoch in {out}", highlight=False)
            return 130
    console.print(f"search with it: python -m search.run --evaluator supernet --supernet {out}", highlight=False)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
