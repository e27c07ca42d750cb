"""Train one network and write its model folder: `python -m trainers.fit NAME --data cifar10 --data-dir D --out DIR`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import trainers.data
from res2net.arch import Arch
from res2net.cost import cost
from res2net.errors import Parser, UserError, run_main
from res2net.files import (
    ARCH_FILE,
    CARD_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    check_replaceable,
    load,
    load_arch,
    weights_bytes,
    write_atomic,
    write_folder,
)
from res2net.model import Res2Net, create
from res2net.named import named
from trainers.card import code, machine, model_card
from trainers.data import Data, Split
from trainers.meta import environment
from trainers.train import PRECISIONS, Config, Epoch, Images, Trainer, TrainingFailed, device_of, evaluate

PROG = "python -m trainers.fit"


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


def fit(model: Res2Net, data: Data, config: Config, console: Console) -> list[Epoch]:
    """Train with a progress bar and a line an epoch."""
    trainer = Trainer(model, data, config)
    epochs: list[Epoch] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("epochs", total=config.epochs)
        for _ in range(config.epochs):
            e = trainer.epoch()
            epochs.append(e)
            val = f"  val {e.val_top1:6.2f} %" if len(data.val) else ""
            bar.console.print(
                f"epoch {e.epoch:>3}  train loss {e.train_loss:.4f}{val}  {e.images_per_second:,.0f} images/s",
                highlight=False,
            )
            bar.advance(task)
    return epochs


def test_top1(model: Res2Net, data: Data, test: Split) -> float:
    """Top-1 (%) on the test split; `TrainingFailed` if what it puts out are no longer numbers."""
    device = next(model.parameters()).device
    loss, top1 = evaluate(model, Images(test, data, device))
    if not math.isfinite(loss):
        raise TrainingFailed(f"test loss is {loss}")
    return top1


def training_of(
    source: str, model: Res2Net, data: Data, config: Config, epochs: list[Epoch], top1: float
) -> dict[str, Any]:
    """What `training.json` says: the figures, how they were earned, and how images are normalised."""
    price = cost(model.arch, data.image_size)
    return {
        "source": source,
        "test_top1": top1,
        "val_top1": epochs[-1].val_top1 if len(data.val) else None,
        **price._asdict(),
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "train_images": len(data.train),
            "val_images": len(data.val),
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "config": asdict(config),
        "history": [{k: v for k, v in asdict(e).items() if v == v} for e in epochs],
        **environment(),
    }


def card(arch: Arch, training: dict[str, Any], test_images: int) -> str:
    """The model card of what was fitted."""
    config, data = training["config"], training["data"]
    val = f"{training['val_top1']:.2f} % ({data['val_images']:,} images)" if training["val_top1"] is not None else None
    rows = [
        ("top-1, test split", f"{training['test_top1']:.2f} % (n = 1, {test_images:,} images, last epoch)"),
        *([("top-1, validation split", val)] if val else []),
        ("multiply-accumulates", f"{training['macs']:,}"),
        ("parameters", f"{training['params']:,}"),
        (
            "trained",
            f"{config['epochs']} epochs of {data['train_images']:,} images, batch {config['batch_size']}, "
            f"lr {config['lr']}, seed {config['seed']}",
        ),
        ("hardware", machine(training)),
        ("code", code(training)),
    ]
    return model_card(arch, f"A Res2Net trained on `{data['name']}`.", rows, data)


def write(model: Res2Net, training: dict[str, Any], test_images: int, out: Path) -> None:
    """The model folder, as a whole or not at all."""
    weights = weights_bytes(model)

    def fill(temporary: Path) -> None:
        write_atomic(temporary / ARCH_FILE, model.arch.to_json())
        write_atomic(temporary / WEIGHTS_FILE, weights)
        write_atomic(temporary / TRAINING_FILE, json.dumps(training, indent=2) + "\n")
        write_atomic(temporary / CARD_FILE, card(model.arch, training, test_images))

    write_folder(out, fill)


def build_parser() -> Parser:
    d = Config()
    parser = Parser(prog=PROG, description="Train one network; write a model folder with its test accuracy.")
    parser.add_argument("arch", metavar="ARCH", help="a network's name, an arch.json, or a model folder (trained on)")
    parser.add_argument("--data", default="shapes", help=f"{', '.join(trainers.data.names())}")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set's files are")
    parser.add_argument("--download", action="store_true", help="fetch the data set into --data-dir first")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the model folder to write")
    parser.add_argument("--epochs", type=int, default=10, help="epochs")
    parser.add_argument("--batch-size", type=int, default=d.batch_size, help="images a step")
    parser.add_argument("--lr", type=float, default=d.lr, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=d.weight_decay, help="weight decay")
    parser.add_argument("--label-smoothing", type=float, default=d.label_smoothing, help="label smoothing")
    parser.add_argument(
        "--val-fraction", type=float, default=0.0, help="share of the training images kept for validation"
    )
    parser.add_argument("--train-images", type=int, metavar="N", help="train on so many images only")
    parser.add_argument("--from-scratch", action="store_true", help="do not start from the folder's weights")
    parser.add_argument("--precision", default=d.precision, help=", ".join(PRECISIONS))
    parser.add_argument("--device", default=d.device, help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=d.seed, help="of initial weights, batches and split")
    return parser


def check_out(out: Path) -> None:
    """`UserError` if no model folder could be written there: said before the training, not after it."""
    check_replaceable(out, "--out")
    above = next(p for p in out.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"--out: {str(out)!r} cannot be made in {str(above)!r}; accepted: a folder you may write to")


def run(args: argparse.Namespace, config: Config, console: Console) -> None:
    """Check all that can be wrong, train, test once, write the folder."""
    device_of(config.device)
    check_out(args.out)
    read_arch(args.arch)  # a wrong name is said before the data is read
    if args.download:
        if args.data_dir is None:
            raise UserError("--download: needs --data-dir, the folder to put the data set in")
        trainers.data.download(args.data, args.data_dir)
    data = trainers.data.load(
        args.data, args.data_dir, seed=args.seed, val_fraction=args.val_fraction, train_images=args.train_images
    )
    test = trainers.data.load_test(args.data, args.data_dir)  # a missing file is said now
    model, note = build_model(args.arch, data, args.from_scratch, args.seed)
    console.print(f"{model.arch}: {note}", highlight=False, markup=False)
    try:
        epochs = fit(model, data, config, console)
        top1 = test_top1(model, data, test)
    except TrainingFailed as problem:
        raise UserError(f"{problem}; accepted: a lower --lr (it is {config.lr}), or --precision fp32") from None
    write(model, training_of(args.arch, model, data, config, epochs, top1), len(test), args.out)
    console.print(
        f"{args.out}: {top1:.2f} % on the test split ({data.name}, last epoch of {config.epochs})",
        highlight=False,
        markup=False,
    )


def _main(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    config = Config(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        precision=args.precision,
        device=args.device,
        seed=args.seed,
    )
    try:
        run(args, config, Console())
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted; nothing was written to {str(args.out)!r}", file=sys.stderr)
        return 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_main, PROG, argv)


if __name__ == "__main__":
    sys.exit(main())
