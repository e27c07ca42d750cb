"""Score a model folder on a data set's test split: `python -m trainers.evaluate FOLDER --data cifar10 --data-dir D`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

import trainers.datasets.data
from res2net import load
from res2net.arch import BaseArch
from res2net.commands import Parser, run_main
from res2net.cost import cost
from res2net.deploy.optimize import optimize
from res2net.errors import UserError, unknown
from res2net.folder import TRAINING_FILE, load_arch
from res2net.options import add_options, fields_of, from_options
from trainers.datasets.data import Data
from trainers.ddp import ALONE, Group
from trainers.device import DEVICES, PRECISIONS, autocast, device_of, placed, uses_bf16
from trainers.images import Source, source
from trainers.pictures import check_pictures, write_pictures
from trainers.tasks import TASKS
from trainers.tasks.classification import CLASSIFICATION
from trainers.tasks.task import Scores, Task, described, no_scores

PROG = "python -m trainers.evaluate"


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Source, bf16: bool = False, group: Group = ALONE, task: Task = CLASSIFICATION
) -> Scores:
    """Return the task's scores over all images (NaN if there are no images). Leave the model in eval mode.

    Each process of the group scores its share of every batch. All processes get the same scores.
    """
    model.eval()
    if not len(images):
        return no_scores(task)
    device = images.labels.device
    meter = task.meter(device, images.classes, images.sizes)
    for x, y in images.batches(task.eval_batch(images.size), group.shard):
        if len(y):  # the last batch may have fewer images than there are processes
            with autocast(device, bf16):
                outputs = model(x)
            meter.add(outputs, y)
    return meter.scores(group)


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """The settings of `evaluate_folder`. The command's options are these fields, with the same defaults."""

    folder: Path = field(
        metadata={"help": "a model folder that fit, export or save wrote", "metavar": "FOLDER", "positional": True}
    )
    data: str = field(default="shapes", metadata={"help": ", ".join(trainers.datasets.data.names())})
    data_dir: str | None = field(default=None, metadata={"help": "folder of the data set's files", "metavar": "DIR"})
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "pixels along a side, for image files and scenes (default: the size in training)",
            "metavar": "N",
        },
    )
    precision: str = field(default="auto", metadata={"help": ", ".join(PRECISIONS)})
    device: str = field(default="auto", metadata={"help": DEVICES})
    pictures: Path | None = field(
        default=None,
        metadata={
            "help": "PNG file to write: images, truth and predictions (default: none)",
            "metavar": "FILE",
        },
    )
    count: int = field(default=12, metadata={"help": "images in --pictures", "metavar": "N"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.pictures is not None:
            object.__setattr__(self, "pictures", Path(self.pictures))
        if self.precision not in PRECISIONS:
            raise unknown("`precision`", self.precision, PRECISIONS)
        if self.count < 1:
            raise UserError(f"`count`: {self.count}; accepted: at least 1")


def evaluate_folder(config: EvaluateConfig) -> Scores:
    """Return the scores of a model folder on the test split of a data set."""
    return _evaluate_folder(config).scores


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """The scores of a model folder and the figures that the command prints with them."""

    arch: BaseArch
    task: Task
    scores: Scores
    images: int  # number of test images
    image_size: int  # pixels along a side
    seconds: float  # scoring time
    where: str  # device and precision


def _evaluate_folder(config: EvaluateConfig) -> _Evaluation:
    device = device_of(config.device)
    bf16 = uses_bf16(config.precision, device)
    model, arch = load(config.folder), load_arch(config.folder)
    trained, task = trained_on(config.folder, arch)
    if config.pictures is not None:
        check_pictures(config.pictures, task, arch.in_channels)
    data = _test_data(config, trained, arch, task)
    # On a CPU, folding the batch norms scores 1.5 times as many images per second. Outputs are equal up to rounding.
    on_cpu = device.type == "cpu"
    net = optimize(model, bf16=bf16) if on_cpu else placed(model, device)
    images = source(data.val, data, device)
    begun = time.perf_counter()
    scores = evaluate(net, images, bf16 and not on_cpu, task=task)  # optimised networks cast to bf16 themselves
    seconds = time.perf_counter() - begun
    if config.pictures is not None:
        write_pictures(net, images, data, task, config.pictures, config.count, bf16 and not on_cpu)
    where = f"{device}, {'bf16' if bf16 else 'fp32'}"
    return _Evaluation(arch, task, scores, len(images), data.image_size, seconds, where)


def trained_on(folder: Path, arch: BaseArch) -> tuple[dict[str, Any], Task]:
    """Return two entries of `training.json`: the description of the training images (`data`), and the task.

    Without the file, return {} and the task of the network's head. Raise `UserError` if no task has this head.
    """
    path = folder / TRAINING_FILE
    if not path.is_file():
        by_head = {task.head_kind: task for task in TASKS.values()}
        if arch.head_kind not in by_head:
            heads = ", ".join(head or "a classifier" for head in by_head)
            raise UserError(f"model folder {str(folder)!r}: no task has the head {arch.head_kind}; accepted: {heads}")
        return {}, by_head[arch.head_kind]
    try:
        training = json.loads(path.read_text())
        # Folders of earlier versions name no task.
        return dict(training["data"]), TASKS[training.get("task", CLASSIFICATION.name)]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not written by fit or export ({type(error).__name__}: {error})") from None


def _test_data(config: EvaluateConfig, trained: dict[str, Any], arch: BaseArch, task: Task) -> Data:
    """Return `Data` with the test split as `train` and `val`, and with the normalisation of the training images.

    trained: description of the training images from `training.json`. If `mean` is missing, compute the normalisation.
    """
    dataset = trainers.datasets.data.get(config.data)
    size = config.image_size or (trained.get("image_size") if dataset.resizable else None)
    stream = dataset.streamable and trained.get("crop", "auto") != "pad"
    known: dict[str, Any] = {"image_size": size, "stream": stream, "target": task.target}
    names = tuple(trained.get("classes", ())) or None
    classes = trainers.datasets.data.classes_of(config.data, config.data_dir, task.target, names)
    if names is not None:
        _check_classes(config, classes, names)
    test = trainers.datasets.data.load_test(config.data, config.data_dir, classes=names, **known)
    if "mean" in trained:
        mean, std = trained["mean"], trained["std"]
    else:
        images = trainers.datasets.data.load(config.data, config.data_dir, **known)
        mean, std = images.mean, images.std
    sizes = trainers.datasets.data.sizes_of(config.data, config.data_dir, task.target, size)
    data = Data(config.data, classes, test, test, tuple(mean), tuple(std), task.target, sizes)
    for what, theirs, ours in (
        ("classes", task.head_size(data), arch.num_classes),
        ("colour channels", data.in_channels, arch.in_channels),
    ):
        if theirs != ours:
            raise UserError(
                f"`data`: {config.data} has {theirs} {what}, the network of {str(config.folder)!r} has {ours}; "
                "accepted: the data set that the network was trained on"
            )
    return data


def _check_classes(config: EvaluateConfig, found: tuple[str, ...], trained: tuple[str, ...]) -> None:
    """Raise `UserError` if a data set has other classes than the network, or the same in another order."""
    for number, (theirs, ours) in enumerate(zip_longest(found, trained)):
        if theirs != ours:
            raise UserError(
                f"`data`: class {number} of {config.data} is {theirs!r} (of {len(found)}), in the network of "
                f"{str(config.folder)!r} it is {ours!r} (of {len(trained)}); accepted: the data set that the network "
                "was trained on"
            )


def build_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(prog=PROG, description="Score a model folder on a data set's test split.")
    add_options(parser, fields_of(EvaluateConfig))
    return parser


def _main(args: argparse.Namespace) -> None:
    config = from_options(EvaluateConfig, args)
    found = _evaluate_folder(config)
    rate = found.images / found.seconds
    print(f"{config.folder}: {found.arch}, {cost(found.arch, found.image_size).macs:,} MACs")
    print(f"{config.data}, {found.images:,} test images, {found.where}:")
    if config.pictures is not None:
        print(f"pictures: {config.pictures}")
    print(f"{described(found.task, found.scores)}  loss {found.scores.loss:.4f}  {rate:,.0f} images/s")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores, the loss and the images per second; return the exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
