"""Train a network for each task on `scenes`. Compare it with an untrained backbone, and with a trivial answer.

    python -m studies.tasks --epochs 20 --out studies/results/tasks
    python -m studies.tasks --task segment --overfit 16 --least 16 --epochs 200 --out overfit

For each task, the study trains a small network with the task's head and default recipe, and scores it on the validation
split after each epoch. It compares this network with two others:

- The same head, trained equally long on an untrained backbone. The batches are the same, but no weight outside the head
  is trained. Batch norms update their running statistics as usual. `zero_init_last` is off, because a block that starts
  as its shortcut would remain its shortcut.
- A trivial answer without a network (`studies.task_answers`), scored by the same meter.

All three are scored on the test split, which is read once for each task, after its trainings. With `--overfit N`, the
same N images, without crops and mirroring, are trained on and scored. Then the validation and the test split are not
scored, the backbone is always trained, and the table says whether the aims of `AIMS` are met.

The same command on the same folder trains only the tasks that it has not finished yet.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from torch import nn

import space as spaces
from res2net.arch import BaseArch
from res2net.commands import Parser, run_main
from res2net.cost import cost
from res2net.errors import UserError, unknown
from res2net.files import write_atomic
from res2net.folder import check_creatable
from res2net.weights import HEADS
from search.report.figures import new_figure, png, tidy
from studies.bench import check_positive, first_line, threads
from studies.task_answers import ANSWERS, Trivial
from studies.task_data import read_images, read_test_images
from trainers.datasets.data import Data
from trainers.device import device_of, uses_bf16
from trainers.epoch import Epoch, TrainingFailed
from trainers.evaluate import evaluate
from trainers.images import source
from trainers.meta import cores, environment
from trainers.recipes import RECIPES, Config, shortened
from trainers.start import build_model, fitted_arch, read_arch
from trainers.tasks import TASKS
from trainers.tasks.task import Scores, Task, described
from trainers.train import Trainer

PROG = "python -m studies.tasks"
BASE, MEMBER = "thin", {"scale": 4, "cardinality": 1, "depth": 2}  # the default network, in the space scale_card_depth
TRAINED, UNTRAINED, TRIVIAL = "trained", "untrained backbone", "trivial"  # the column `answer`
OVERFITTED, VALIDATION, TEST = "training", "validation", "test"  # the column `split`
# The metric values that a network should reach on a few images that it has seen. In %, except the MAE (0 to 1).
AIMS = {"miou": 90.0, "maxf": 90.0, "mae": 0.05, "ap50": 90.0, "box_ap50": 90.0, "mask_ap50": 90.0}
FREE = ("tasks", "out", "threads")  # options that may differ between the calls that fill one folder
Say = Callable[[str], object]
Row = dict[str, Any]


def tasks_of(names: Sequence[str] | None) -> list[Task]:
    """Return the tasks of these names, in the order of `TASKS`; None for all tasks with a head."""
    able = [task.name for task in TASKS.values() if task.head_kind is not None and task.name in ANSWERS]
    for name in names or ():
        if name not in able:
            raise unknown("`tasks`", name, able)
    chosen = [TASKS[name] for name in able if names is None or name in names]
    for task in chosen:
        task.check()
    return chosen


def network(args: argparse.Namespace) -> BaseArch:
    """Return the network of the option `arch`, or the default network. Its head and inputs are not yet a task's."""
    if args.arch is not None:
        return read_arch(args.arch)[0]
    return spaces.get("scale_card_depth", BASE).arch(MEMBER)


def config_of(task: Task, args: argparse.Namespace) -> Config:
    """Return the settings of a training: the task's recipe with the given options."""
    changes: dict[str, Any] = {"seed": args.seed, "device": args.device}
    changes |= {name: value for name in ("lr", "batch_size") if (value := getattr(args, name)) is not None}
    if args.overfit:
        changes |= {"crop_padding": 0, "flip": False}
    return shortened(RECIPES[task.recipe], args.epochs, **changes)


def freeze_backbone(model: nn.Module) -> None:
    """Freeze every weight outside the head."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(HEADS))


def trained(
    task: Task, arch: BaseArch, data: Data, config: Config, answer: str, say: Say
) -> tuple[nn.Module, list[Epoch]]:
    """Train a network from its initial weights. Return it and its epochs. answer: TRAINED or UNTRAINED."""
    # Only the seed draws the initial weights. So both answers start from the same weights, except for zeroed norms.
    model = build_model(arch, data, task, True, config.seed, config.zero_init_last and answer == TRAINED)[0]
    if answer == UNTRAINED:
        freeze_backbone(model)
    trainer, epochs = Trainer(model, data, config, task=task), []
    while not trainer.finished:
        try:
            epochs.append(e := trainer.epoch())
        except TrainingFailed as problem:
            raise UserError(f"`lr`: {config.lr}; {task.name}: {problem}; accepted: a lower rate") from None
        place = f"epoch {e.epoch:>{len(str(config.epochs))}}"
        say(f"{task.name}, {answer}: {place}  {described(task, e.val, 6)}  {e.seconds:.1f} s")
    return trainer.scored, epochs


def measure(task: Task, args: argparse.Namespace, say: Say) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a task's scores, and the description of its network and training."""
    begun, config = time.monotonic(), config_of(task, args)
    data = read_images(task, args)
    arch = fitted_arch(network(args), data, task)
    size = cost(arch, data.image_size)
    say(f"{task.name}: {arch}, {size.macs / 1e6:.3g} MMACs, {len(data.train):,} images, recipe {task.recipe}")
    device = device_of(config.device)
    bf16 = uses_bf16(config.precision, device)
    split = OVERFITTED if args.overfit else VALIDATION
    trivial = Trivial(ANSWERS[task.name](data))
    models, rows = {}, list[Row]()
    for answer in (TRAINED,) if args.overfit else (TRAINED, UNTRAINED):
        models[answer], epochs = trained(task, arch, data, config, answer, say)
        rows += [row_of(task, answer, e.epoch, split, e.val, e.seconds) for e in epochs]
    on_cpu = partial(source, data=data, device=torch.device("cpu"))
    rows.append(row_of(task, TRIVIAL, 0, split, evaluate(trivial, on_cpu(data.val), task=task)))
    if not args.overfit:
        test = read_test_images(task, data, args)
        for answer, model in models.items():
            found = evaluate(model, source(test, data, device), bf16, task=task)
            rows.append(row_of(task, answer, config.epochs, TEST, found))
        rows.append(row_of(task, TRIVIAL, 0, TEST, evaluate(trivial, on_cpu(test), task=task)))
    about = {
        "arch": arch.to_dict(),
        "macs": size.macs,
        "params": size.params,
        "image_size": data.image_size,
        "train_images": len(data.train),
        "recipe": task.recipe,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "bf16": bf16,
        "seconds": round(time.monotonic() - begun, 1),  # wall time of all
    }
    return rows, about


def row_of(task: Task, answer: str, epoch: int, split: str, scores: Scores, seconds: float = math.nan) -> Row:
    """Return a row of `tasks.csv`. epoch: 0 for the trivial answer. seconds: time of the epoch's training."""
    values = {metric.name: getattr(scores, metric.name) for metric in task.metrics}
    return {"task": task.name, "answer": answer, "epoch": epoch, "split": split, "seconds": seconds, **values}


def lines(rows: pd.DataFrame) -> list[str]:
    """Return the table: for each task and split, the first epoch, the last epoch, and the two other answers."""
    out = [f"{'task':11}{'split':12}{'answer':20}metrics"]
    for name, split in dict.fromkeys(zip(rows.task, rows.split, strict=True)):
        part = rows.loc[(rows.task == name) & (rows.split == split)]
        by_answer = {answer: group.sort_values(by="epoch") for answer, group in part.groupby("answer")}
        shown = {} if split == TEST else {"first epoch": by_answer[TRAINED].iloc[0]}
        shown["last epoch"] = by_answer[TRAINED].iloc[-1]
        shown |= {answer: by_answer[answer].iloc[-1] for answer in (UNTRAINED, TRIVIAL) if answer in by_answer}
        task = TASKS[name]
        for label, row in shown.items():
            scores = task.scores(math.nan, *(row[metric.name] for metric in task.metrics))
            out.append(f"{name:11}{split:12}{label:20}{described(task, scores, 6)}")
        if split == OVERFITTED:
            out.append(f"{name:11}{split:12}{'aim':20}{aims(task, shown['last epoch'])}")
    return out


def aims(task: Task, last: Any) -> str:
    """Return the aims of overfitting, and whether the last epoch meets them. last: metrics by name."""
    found = []
    for metric in task.metrics:
        if (aim := AIMS.get(metric.name)) is not None:
            is_met = last[metric.name] >= aim if metric.larger else last[metric.name] <= aim
            found.append(f"{metric.label} {metric.text(aim, 6)} {'met' if is_met else 'NOT met'}")
    return "  ".join(found)


def picture(rows: pd.DataFrame, title: str) -> bytes:
    """Return the plot: a panel for each task with its first metric after each epoch."""
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(rows.task))
    columns = min(3, len(names))
    count = -(-len(names) // columns)
    figure = new_figure(4.8 * columns, 3.8 * count + 0.4)
    for ax, name in itertools.zip_longest(figure.subplots(count, columns, squeeze=False).flat, names):
        if name is None:
            ax.set_visible(False)
            continue
        metric, part = TASKS[name].metrics[0], rows.loc[(rows.task == name) & (rows.split != TEST)]
        for i, answer in enumerate((TRAINED, UNTRAINED)):
            own = part.loc[part.answer == answer]
            if len(own):
                ax.plot(own.epoch, own[metric.name], marker="o", markersize=3, color=f"C{i}", label=answer)
        ax.axhline(float(part.loc[part.answer == TRIVIAL, metric.name].iloc[0]), ls="--", color="0.4", label=TRIVIAL)
        ax.set(title=name, xlabel="epoch", ylabel=f"{metric.label} ({metric.unit}), {part.split.iloc[0]} images")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(ax)
        ax.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return png(figure)


def held(args: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows and the descriptions of the tasks that the folder holds.

    Raise `UserError` if they were made with other options, or if the file was not written by this study.
    """
    path = args.out / "about.json"
    if not path.exists():
        return [], {}
    try:
        about = json.loads(path.read_text())
        options, done = dict(about["options"]), dict(about["tasks"])
        table = pd.read_csv(args.out / "tasks.csv")
        rows = [row for row in table.to_dict("records") if row["task"] in done]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"`out`: {path}: not of this study ({type(error).__name__}); accepted: a new folder") from None
    other = [name for name, value in options_of(args).items() if name not in FREE and options.get(name) != value]
    if other:
        raise UserError(
            f"`out`: {str(args.out)!r} holds results with another {', '.join(other)}; accepted: a new folder, or the "
            "same options"
        )
    return [{str(name): value for name, value in row.items()} for row in rows], done


def options_of(args: argparse.Namespace) -> dict[str, str]:
    """Return the options as texts, for `about.json`."""
    return {name: str(value) for name, value in vars(args).items()}


def write(rows: Sequence[Row], done: dict[str, Any], args: argparse.Namespace) -> None:
    """Write `tasks.csv`, `tasks.png` and `about.json`."""
    table = pd.DataFrame(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "tasks.csv", table.to_csv(index=False, float_format="%.6g"))
    what = f"the same {args.overfit} images" if args.overfit else f"{args.train_images or 'all'} training images"
    write_atomic(args.out / "tasks.png", picture(table, f"scenes: {what}, {args.epochs} epochs, n = 1"))
    # Write this file last: it names the tasks whose rows are complete.
    about = {"options": options_of(args), "tasks": done, **environment()}
    write_atomic(args.out / "about.json", json.dumps(about, indent=2) + "\n")


def build_parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    add = out.add_argument
    able = ", ".join(name for name in TASKS if name in ANSWERS)
    add("--task", action="append", dest="tasks", metavar="NAME", help=f"{able}; may be repeated (default: all)")
    add("--arch", metavar="ARCH", help="a network's name, arch.json or model folder (default: a small one)")
    add("--epochs", type=int, default=20, metavar="N", help="epochs of each training")
    add("--images", type=int, dest="train_images", metavar="N", help="train on N images only")
    add("--image-size", type=int, metavar="N", help="pixels along a side (default: 128; key points 64)")
    add("--batch", type=int, dest="batch_size", metavar="N", help="images per step (default: the recipe's)")
    add("--lr", type=float, metavar="X", help="peak learning rate (default: the recipe's)")
    add("--overfit", type=int, metavar="N", help="train on N images, without crops and mirroring, and score the same")
    add("--least", type=int, default=0, metavar="N", help="ignore objects below N pixels (not saliency, keypoints)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the weights, the batches and the validation split")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    add("--threads", type=int, default=cores(), metavar="N", help="threads of PyTorch")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the table and the plot; a used one resumes")
    return out


def _main(args: argparse.Namespace) -> int:
    given = [name for name in ("train_images", "batch_size", "overfit") if getattr(args, name) is not None]
    check_positive(args, "epochs", "threads", *given)
    if args.least < 0:
        raise UserError(f"`least`: {args.least}; accepted: at least 0")
    if args.overfit and args.train_images:
        raise UserError(f"`train_images`: {args.train_images} with `overfit` {args.overfit}; accepted: one of them")
    tasks, say = tasks_of(args.tasks), partial(Console().print, highlight=False, markup=False, soft_wrap=True)
    network(args)  # finds a wrong name before the images are generated
    check_creatable(args.out, "`out`")
    if args.out.is_file():
        raise UserError(f"`out`: {str(args.out)!r} is a file; accepted: a folder")
    rows, done = held(args)
    for task in tasks:
        if task.name in done:
            say(f"{task.name}: {args.out} holds it already")
            continue
        with threads(args.threads):
            own, done[task.name] = measure(task, args, say)
        rows += own
        write(rows, done, args)
    for line in lines(pd.DataFrame(rows)):
        say(line)
    say(f"{args.out}: tasks.csv, tasks.png, about.json")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; write `tasks.csv`, `tasks.png` and `about.json` after each task."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
