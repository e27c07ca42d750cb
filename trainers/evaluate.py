"""Score a model folder on a data set's test split: `python -m trainers.evaluate FOLDER --data cifar10 --data-dir D`."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import trainers.datasets.data
from res2net.backbone import Network
from res2net.commands import Parser, run_main
from res2net.cost import cost
from res2net.deploy.optimize import optimize
from res2net.errors import UserError, unknown
from res2net.folder import TRAINING_FILE, load
from trainers.datasets.data import Data
from trainers.ddp import ALONE, Group
from trainers.device import PRECISIONS, device_of, uses_bf16
from trainers.images import Source, source

PROG = "python -m trainers.evaluate"
EVAL_BATCH = 500


class Scores(NamedTuple):
    """Mean cross-entropy, and accuracies in %: the class is the likeliest one, or among the five likeliest."""

    loss: float
    top1: float
    top5: float


@torch.no_grad()
def evaluate(model: nn.Module, images: Source, bf16: bool = False, group: Group = ALONE) -> Scores:
    """Scores over all images, of which each process takes its share; NaN for none. The model is left in eval mode."""
    model.eval()
    if not len(images):
        return Scores(math.nan, math.nan, math.nan)
    device = images.labels.device
    sums = torch.zeros(4, device=device, dtype=torch.float64)
    for x, y in images.batches(EVAL_BATCH, group.shard):
        if len(y):  # the last images may be fewer than the processes
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(x).float()
            loss = F.cross_entropy(logits, y, reduction="sum")
            first = (logits.argmax(1) == y).sum()
            five = (logits.topk(min(5, logits.shape[1])).indices == y[:, None]).sum()
            sums += torch.stack([loss, first, five, torch.full_like(loss, len(y))])
    loss, top1, top5, n = group.sum(sums).tolist()
    return Scores(loss / n, 100 * top1 / n, 100 * top5 / n)


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog=PROG, description="Score a model folder on a data set's test split.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a model folder, as fit, export and save write it")
    parser.add_argument("--data", default="shapes", help=", ".join(trainers.datasets.data.names()))
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set's files are")
    parser.add_argument("--image-size", type=int, metavar="N", help="of image files (default: what it was trained on)")
    parser.add_argument("--precision", default="auto", help=", ".join(PRECISIONS))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def _trained_on(folder: Path) -> dict[str, Any]:
    """What `training.json` says of the images that the network was trained on; nothing where there is no such file."""
    path = folder / TRAINING_FILE
    try:
        return json.loads(path.read_text())["data"] if path.is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not what fit or export writes ({type(error).__name__}: {error})") from None


def _test_data(args: argparse.Namespace, trained: dict[str, Any], model: Network) -> Data:
    """The test split, its images to be normalised as the network's training images were."""
    dataset = trainers.datasets.data.get(args.data)
    size = args.image_size or (trained.get("image_size") if dataset.resizable else None)
    cropped = dataset.streamable and trained.get("crop", "resized") == "resized"
    test = trainers.datasets.data.load_test(args.data, args.data_dir, image_size=size, stream=cropped)
    classes = trainers.datasets.data.classes_of(args.data, args.data_dir)
    if len(classes) != model.arch.num_classes:
        raise UserError(
            f"--data: {args.data} has {len(classes)} classes, the network of {str(args.folder)!r} "
            f"{model.arch.num_classes}; accepted: the data set that it was trained on"
        )
    if (channels := test.in_channels) != model.arch.in_channels:
        raise UserError(
            f"--data: {args.data} has {channels} colour channels, the network of {str(args.folder)!r} reads "
            f"{model.arch.in_channels}; accepted: the data set that it was trained on"
        )
    if "mean" in trained:
        mean, std = trained["mean"], trained["std"]
    else:
        known = trainers.datasets.data.load(args.data, args.data_dir, image_size=size, stream=cropped)
        mean, std = known.mean, known.std
    return Data(args.data, classes, test, test, tuple(mean), tuple(std))


def _main(args: argparse.Namespace) -> None:
    if args.precision not in PRECISIONS:
        raise unknown("--precision", args.precision, PRECISIONS)
    device = device_of(args.device)
    bf16 = uses_bf16(args.precision, device)
    model = load(args.folder)
    data = _test_data(args, _trained_on(args.folder), model)
    # Folded batch norms give the same outputs to rounding, and on a CPU half as many images a second more.
    on_cpu = device.type == "cpu"
    net = optimize(model, bf16=bf16) if on_cpu else model.to(device, memory_format=torch.channels_last)
    images = source(data.val, data, device)
    begun = time.perf_counter()
    scores = evaluate(net, images, bf16 and not on_cpu)
    rate = len(images) / (time.perf_counter() - begun)
    print(f"{args.folder}: {model.arch}, {cost(model.arch, data.image_size).macs:,} MACs")
    print(f"{args.data}, {len(images):,} test images, {device}, {'bf16' if bf16 else 'fp32'}:")
    print(f"top-1 {scores.top1:.2f} %  top-5 {scores.top5:.2f} %  loss {scores.loss:.4f}  {rate:,.0f} images/s")


def main(argv: Sequence[str] | None = None) -> int:
    """Print top-1, top-5, loss and images a second."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
