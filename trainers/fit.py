"""Train one network and write its model folder: `python -m trainers.fit NAME --data cifar10 --data-dir D --out DIR`.

While it trains, the folder holds a checkpoint, `log.csv` and events for TensorBoard; the same command with `--resume`
goes on from there, exactly. `torchrun -m trainers.fit ...` trains with several processes, on one machine or many.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import trainers.datasets.data
from res2net.arch import Arch
from res2net.commands import Parser, run_main
from res2net.cost import cost
from res2net.errors import UserError
from res2net.factory import create
from res2net.files import write_atomic, write_folder
from res2net.folder import (
    ARCH_FILE,
    BOARD_FOLDER,
    CARD_FILE,
    CHECKPOINT_FILE,
    LOG_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    check_replaceable,
    load,
    load_arch,
    weights_bytes,
)
from res2net.model import Res2Net
from res2net.named import named
from trainers import resume
from trainers.card import code, machine, model_card
from trainers.datasets.data import Data, Files, Split
from trainers.ddp import Group, joined
from trainers.device import PRECISIONS, device_of, out_of_memory, uses_bf16
from trainers.evaluate import Scores, evaluate
from trainers.images import source
from trainers.log import Log
from trainers.meta import environment
from trainers.recipes import RECIPES, Config, recipe
from trainers.train import Epoch, Trainer, TrainingFailed

PROG = "python -m trainers.fit"
PLAIN = {"highlight": False, "markup": False, "soft_wrap": True}  # how lines are printed that may hold a path
CHANGES = ("epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "precision", "device", "seed")


def read_arch(text: str) -> tuple[Arch, Path | None]:
    """The architecture that a name, an `arch.json` or a model folder gives, and the folder if it holds weights."""
    path = Path(text)
    if path.is_dir() or path.suffix == ".json" or "/" in text:
        has_weights = (path / WEIGHTS_FILE).exists()
        return load_arch(path), path if has_weights else None
    return named(text), None


def build_model(text: str, data: Data, from_scratch: bool, seed: int) -> tuple[Res2Net, str]:
    """The network to train, with the data's classes, and a line that says where its weights come from."""
    torch.manual_seed(seed)
    arch, folder = read_arch(text)
    fitted = replace(arch, num_classes=data.num_classes, in_channels=data.in_channels)
    if folder is None or from_scratch:
        return create(fitted), "weights are initialised"
    model = load(folder)
    if fitted == arch:
        return model, f"weights are those of {folder}"
    if fitted.in_channels != arch.in_channels:
        raise UserError(
            f"ARCH {text!r}: its weights read {arch.in_channels} colour channels, {data.name} has {data.in_channels}; "
            "accepted: the same, or --from-scratch"
        )
    new = create(fitted)
    body = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    new.load_state_dict(body, strict=False)
    return (
        new,
        f"weights are those of {folder}, but for the classifier: {arch.num_classes} -> {data.num_classes} classes",
    )


def fit(trainer: Trainer, run: resume.Run, folder: Path, epochs: list[Epoch], console: Console) -> list[Epoch]:
    """Train to the end of the schedule, with a progress bar, a line, a checkpoint and a row of the log an epoch."""
    config, log = run.config, None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        total = config.epochs * trainer.steps_per_epoch
        task = bar.add_task("steps", total=total, completed=trainer.done_epochs * trainer.steps_per_epoch)
        trainer.on_step = lambda: bar.advance(task)
        while trainer.done_epochs < config.epochs:
            e = _epoch(trainer)
            epochs.append(e)
            if trainer.group.rank == 0:
                # Not before an epoch is done: until then nothing in the folder is touched.
                folder.mkdir(parents=True, exist_ok=True)
                log = log or Log(folder, len(epochs) - 1)
                log.add(epochs, trainer.optimizer.param_groups[0]["lr"])
                resume.save(folder, run, trainer, epochs)
            bar.console.print(_line(e, config), highlight=False)
    if log is not None:
        log.close()
    return epochs


def _line(e: Epoch, config: Config) -> str:
    val = f"  val top-1 {e.val_top1:6.2f} %  top-5 {e.val_top5:6.2f} %" if e.val_top1 == e.val_top1 else ""
    width = len(str(config.epochs))
    return f"epoch {e.epoch:>{width}}  train loss {e.train_loss:.4f}{val}  {e.images_per_second:,.0f} images/s"


def _epoch(trainer: Trainer) -> Epoch:
    """The trainer's next epoch; `UserError` with a batch size that fits if memory did not suffice."""
    try:
        return trainer.epoch()
    except Exception as error:
        if not out_of_memory(error):
            raise
    # Outside of the handler: the exception holds on to what the failed step had put into memory.
    size, fits = trainer.config.batch_size, largest_batch(trainer)
    accepted = f"--batch-size {fits} (a step of it fits)" if fits else "a smaller network or images"
    raise UserError(f"--batch-size: memory does not suffice for {size} images a step; accepted: {accepted}")


def largest_batch(trainer: Trainer) -> int | None:
    """The largest half, quarter, ... of the batch size of which a step fits into memory; the training is lost by it."""
    size = trainer.config.batch_size // 2
    while size and trainer.group.world == 1:
        try:
            trainer.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            x, y = next(trainer.train_images.batches(size))
            trainer._step(x, y, 0)
            return size
        except Exception as error:
            if not out_of_memory(error):
                raise
        size //= 2
    return None


def test_scores(trainer: Trainer, data: Data, test: Split | Files, workers: int | None) -> Scores:
    """Scores on the test split; `TrainingFailed` if what the network puts out are no longer numbers."""
    images = source(test, data, trainer.device, workers=workers)
    scores = evaluate(trainer.scored, images, trainer.bf16, trainer.group)
    if not math.isfinite(scores.loss):
        raise TrainingFailed(f"test loss is {scores.loss}")
    return scores


def training_of(
    args: argparse.Namespace, run: resume.Run, epochs: list[Epoch], test: Scores, processes: int
) -> dict[str, Any]:
    """What `training.json` says: the figures, how they were earned, and how images are normalised."""
    data, config = run.data, run.config
    return {
        "source": args.arch,
        "test_top1": test.top1,
        "test_top5": test.top5,
        "val_top1": epochs[-1].val_top1 if len(data.val) else None,
        "val_top5": epochs[-1].val_top5 if len(data.val) else None,
        **cost(run.arch, data.image_size)._asdict(),
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "train_images": len(data.train),
            "val_images": len(data.val),
            "image_size": data.image_size,
            "crop": "resized" if isinstance(data.train, Files) else "pad",
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "recipe": args.recipe,
        "config": asdict(config),
        "processes": processes,
        "history": [{k: v for k, v in asdict(e).items() if v == v} for e in epochs],
        **environment(),
    }


def card(arch: Arch, training: dict[str, Any], test_images: int) -> str:
    """The model card of what was fitted."""
    config, data = training["config"], training["data"]
    val = f"{training['val_top1']:.2f} % ({data['val_images']:,} images)" if training["val_top1"] is not None else None
    rows = [
        ("top-1, test split", f"{training['test_top1']:.2f} % (n = 1, {test_images:,} images, last epoch)"),
        ("top-5, test split", f"{training['test_top5']:.2f} %"),
        *([("top-1, validation split", val)] if val else []),
        ("multiply-accumulates", f"{training['macs']:,}"),
        ("parameters", f"{training['params']:,}"),
        (
            "trained",
            f"recipe {training['recipe']}: {config['epochs']} epochs of {data['train_images']:,} images, "
            f"batch {config['batch_size']}, lr {config['lr']}, seed {config['seed']}",
        ),
        ("hardware", machine(training)),
        ("code", code(training)),
    ]
    return model_card(arch, f"A Res2Net trained on `{data['name']}`.", rows, data)


def write(model: Res2Net, training: dict[str, Any], test_images: int, out: Path) -> None:
    """The model folder with the training's log, as a whole or not at all; the checkpoint goes."""
    weights = weights_bytes(model)

    def fill(temporary: Path) -> None:
        write_atomic(temporary / ARCH_FILE, model.arch.to_json())
        write_atomic(temporary / WEIGHTS_FILE, weights)
        write_atomic(temporary / TRAINING_FILE, json.dumps(training, indent=2) + "\n")
        write_atomic(temporary / CARD_FILE, card(model.arch, training, test_images))
        shutil.copy(out / LOG_FILE, temporary)
        shutil.copytree(out / BOARD_FOLDER, temporary / BOARD_FOLDER)

    write_folder(out, fill)


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog=PROG, description="Train one network; write a model folder with its test accuracy.")
    parser.add_argument("arch", metavar="ARCH", help="a network's name, an arch.json, or a model folder (trained on)")
    data = parser.add_argument_group("data")
    data.add_argument("--data", default="shapes", help=", ".join(trainers.datasets.data.names()))
    data.add_argument("--data-dir", metavar="DIR", help="where the data set's files are")
    data.add_argument("--download", action="store_true", help="fetch the data set into --data-dir first")
    data.add_argument("--image-size", type=int, metavar="N", help="pixels along a side (of image files)")
    data.add_argument("--val-fraction", type=float, default=0.0, help="share of the training images for validation")
    data.add_argument("--train-images", type=int, metavar="N", help="train on so many images only")
    how = parser.add_argument_group("how")
    how.add_argument("--recipe", default="fast", help=f"{', '.join(RECIPES)}, or a YAML file that changes one")
    how.add_argument("--epochs", type=int, metavar="N", help="epochs: the schedule keeps its shape (of the recipe)")
    how.add_argument("--batch-size", type=int, metavar="N", help="images a step, of all processes (of the recipe)")
    how.add_argument("--lr", type=float, metavar="X", help="peak learning rate (of the recipe)")
    how.add_argument("--weight-decay", type=float, metavar="X", help="weight decay (of the recipe)")
    how.add_argument("--label-smoothing", type=float, metavar="X", help="label smoothing (of the recipe)")
    how.add_argument("--from-scratch", action="store_true", help="do not start from the folder's weights")
    how.add_argument("--seed", type=int, default=0, help="of initial weights, batches and split")
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model folder to write")
    where.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    where.add_argument("--precision", default="auto", help=", ".join(PRECISIONS))
    where.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    where.add_argument("--workers", type=int, metavar="N", help="threads that decode image files (one a core)")
    where.add_argument("--compile", action="store_true", help="by torch.compile: pays in long trainings")
    return parser


def check_out(out: Path, resuming: bool) -> None:
    """`UserError` if no model folder could be written there: said before the training, not after it."""
    unfinished = out.is_dir() and (out / CHECKPOINT_FILE).exists()
    if unfinished and not resuming:
        raise UserError(
            f"--out: {str(out)!r} holds a training that was stopped; accepted: with --resume, or another folder"
        )
    if not unfinished:
        check_replaceable(out, "--out")
    above = next(p for p in out.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--out: {str(out)!r} cannot be made in {str(above)!r}; accepted: a folder you may write to")


def read_data(args: argparse.Namespace, config: Config, console: Console) -> tuple[Data, Split | Files]:
    """The data set and its test split, whose absence is said now. Image files are read as the recipe crops them."""
    if args.download:
        if args.data_dir is None:
            raise UserError("--download: needs --data-dir, the folder to put the data set in")
        trainers.datasets.data.download(args.data, args.data_dir)
    dataset = trainers.datasets.data.get(args.data)
    if config.crop == "resized" and not dataset.streamable:
        raise UserError(f"crop: 'resized' needs image files, not {args.data}; accepted: with --data folder; auto, pad")
    how = {"image_size": args.image_size, "stream": dataset.streamable and config.crop != "pad"}
    data = trainers.datasets.data.load(
        args.data,
        args.data_dir,
        seed=args.seed,
        val_fraction=args.val_fraction,
        train_images=args.train_images,
        console=console,
        **how,
    )
    how["image_size"] = data.image_size if dataset.resizable else None
    return data, trainers.datasets.data.load_test(args.data, args.data_dir, classes=data.classes, **how)


def run(args: argparse.Namespace, config: Config, group: Group, console: Console) -> None:
    """Check all that can be wrong, train, test once, write the folder."""
    device = device_of(config.device)
    check_out(args.out, args.resume)
    if args.resume and (args.out / TRAINING_FILE).exists() and not (args.out / CHECKPOINT_FILE).exists():
        console.print(f"{args.out}: this training is done; nothing is left to resume", **PLAIN)
        return
    read_arch(args.arch)  # a wrong name is said before the data is read
    data, test = read_data(args, config, console)
    model, note = build_model(args.arch, data, args.from_scratch, args.seed)
    console.print(f"{model.arch}: {note}", **PLAIN)
    console.print(_about(args, config, data, group, device), **PLAIN)
    try:
        trainer = Trainer(model, data, config, group, args.compile, args.workers)
        it, epochs = resume.Run(model.arch, config, data), []
        if args.resume and (args.out / CHECKPOINT_FILE).exists():
            epochs = resume.restore(args.out, it, trainer)
            console.print(f"resumed after epoch {len(epochs)} of {config.epochs}", highlight=False)
        fit(trainer, it, args.out, epochs, console)
        scores = test_scores(trainer, data, test, args.workers)
    except TrainingFailed as problem:
        resume.forget(args.out)  # it would fail again
        raise UserError(f"{problem}; accepted: a lower --lr (it is {config.lr}), or --precision fp32") from None
    if group.rank == 0:
        write(trainer.scored, training_of(args, it, epochs, scores, group.world), len(test), args.out)
    console.print(
        f"{args.out}: {scores.top1:.2f} % on the test split, {scores.top5:.2f} % among the first five "
        f"({data.name}, last epoch of {config.epochs})",
        **PLAIN,
    )


def _about(args: argparse.Namespace, config: Config, data: Data, group: Group, device: torch.device) -> str:
    precision = "bf16" if uses_bf16(config.precision, device) else "fp32"
    where = f"{group.world} processes" if group.world > 1 else str(device)
    return (
        f"recipe {args.recipe}: {config.epochs} epochs of {len(data.train):,} {data.image_size} x {data.image_size} "
        f"images, batch {config.batch_size}, lr {config.lr:g}, {config.schedule}, {precision}, {where}"
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _main(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    changes = {name: value for name in CHANGES if (value := getattr(args, name)) is not None}
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers: {args.workers} is too small; accepted: at least 1")
    recipe(args.recipe, changes)  # a wrong one is said before processes wait for each other
    with joined(args.device) as (group, device):
        config = replace(recipe(args.recipe, changes), device=device)
        try:
            run(args, config, group, Console(quiet=group.rank > 0))
        except KeyboardInterrupt:
            left = (args.out / CHECKPOINT_FILE).exists()
            hope = "the same command with --resume goes on" if left else "nothing is lost: no epoch was done"
            print(f"{PROG}: interrupted; {hope}", file=sys.stderr)
            return 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Train and test as the options say; 130 if interrupted."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
