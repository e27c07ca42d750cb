"""Train one network and write its model folder: `python -m trainers.fit NAME --data cifar10 --data-dir D --out DIR`.

    from trainers.fit import FitConfig, fit

    result = fit(FitConfig("res2next29_6c24w_4s", Path("trained"), data="cifar10", data_dir="data", recipe="modern"))
    print(result.test.top1)

During the training the folder holds a checkpoint, `log.csv` and events for TensorBoard. The same command with
`--resume` continues the training exactly from the checkpoint. `torchrun -m trainers.fit ...` trains with several
processes, on one machine or many.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

import trainers.datasets.data
from res2net import load
from res2net.arch import BaseArch
from res2net.commands import Parser, run_main, typed
from res2net.errors import UserError, unknown
from res2net.folder import CHECKPOINT_FILE, TRAINING_FILE, check_creatable, check_replaceable
from res2net.options import add_options, fields_of, from_options
from trainers import resume
from trainers.datasets.data import Data, Files, Split
from trainers.ddp import Group, joined
from trainers.device import DEVICES, PRECISIONS, device_of, uses_bf16
from trainers.evaluate import evaluate
from trainers.images import source
from trainers.loop import run_epochs
from trainers.recipes import RECIPES, Config, recipe
from trainers.start import build_model, read_arch
from trainers.tasks import TASKS
from trainers.tasks.task import Scores, Task, no_scores
from trainers.train import Epoch, Trainer, TrainingFailed
from trainers.write import training_of, write

PROG = "python -m trainers.fit"
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # prints paths unchanged
# Fields of `FitConfig` that replace the recipe's fields of the same name, unless they are None.
CHANGES = ("epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "precision", "device", "seed")


def _option(group: str, default: Any, text: str, metavar: str | None = None) -> Any:
    """Return a dataclass field for an option. `--help` lists the option under the title `group`."""
    return field(default=default, metadata={"help": text, "group": group, "metavar": metavar})


@dataclass(frozen=True, slots=True)
class FitConfig:
    """The settings of `fit`. The options of `python -m trainers.fit` are these fields, with the same defaults.

    arch: a network's name, a path, or an architecture object.
    epochs to label_smoothing: values that replace the recipe's. None keeps the recipe's value. To change other fields,
    write a recipe file (see `trainers.recipes`).
    """

    arch: str | Path | BaseArch = field(
        metadata={
            "help": "a network's name, an arch.json, or a model folder (training starts from its weights)",
            "metavar": "ARCH",
            "positional": True,
        }
    )
    out: Path = field(metadata={"help": "the model folder to write", "group": "where", "metavar": "DIR"})
    data: str = _option("data", "shapes", ", ".join(trainers.datasets.data.names()))
    data_dir: str | None = _option("data", None, "folder of the data set's files (default: none)", "DIR")
    download: bool = _option("data", False, "first fetch the data set into --data-dir")
    image_size: int | None = _option("data", None, "pixels along a side, for image files and scenes", "N")
    val_fraction: float = _option("data", 0.0, "share of the training images for validation")
    train_images: int | None = _option("data", None, "number of training images to use (default: all)", "N")
    task: str = _option("data", "classification", ", ".join(TASKS))
    recipe: str | None = _option(
        "how", None, f"{', '.join(RECIPES)}, or a YAML file that changes a recipe (default: the task's recipe)"
    )
    epochs: int | None = _option("how", None, "epochs; the schedule scales with them (default: the recipe's)", "N")
    batch_size: int | None = _option("how", None, "images per step, over all processes (default: the recipe's)", "N")
    lr: float | None = _option("how", None, "peak learning rate (default: the recipe's)", "X")
    weight_decay: float | None = _option("how", None, "weight decay (default: the recipe's)", "X")
    label_smoothing: float | None = _option("how", None, "label smoothing (default: the recipe's)", "X")
    from_scratch: bool = _option("how", False, "initialise the weights, even of a model folder with weights")
    seed: int = _option("how", 0, "seed of the initial weights, the batches and the validation split")
    resume: bool = _option("where", False, "resume from the checkpoint in --out, if there is one")
    precision: str = _option("where", "auto", ", ".join(PRECISIONS))
    device: str = _option("where", "auto", DEVICES)
    workers: int | None = _option("where", None, "threads that decode image files (default: one per core)", "N")
    compile: bool = _option("where", False, "use torch.compile, which speeds up long trainings")

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        if self.task not in TASKS:
            raise unknown("`task`", self.task, TASKS)
        if self.workers is not None and self.workers < 1:
            raise UserError(f"`workers`: {self.workers}; accepted: at least 1")

    @property
    def recipe_name(self) -> str:
        """The name or the file of the recipe: the setting's, or the task's."""
        return self.recipe or TASKS[self.task].recipe

    def training(self) -> Config:
        """Return the recipe's settings, with the given options in place of the recipe's values.

        Raise `UserError` for an invalid value.
        """
        changes = {name: value for name in CHANGES if (value := getattr(self, name)) is not None}
        return recipe(self.recipe_name, changes)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a training.

    folder: the model folder, `out` of the settings.
    model: the tested network, in eval mode, on the device of the training.
    test: the task's scores on the test split; None after an interruption.
    epochs: all epochs, including the epochs before a resume.
    interrupted: whether Ctrl-C ended the training.
    """

    folder: Path
    model: nn.Module
    test: Scores | None
    epochs: tuple[Epoch, ...]
    interrupted: bool = False

    @property
    def val(self) -> Scores | None:
        """The validation scores after the last epoch: NaN without a validation split, None without an epoch."""
        return self.epochs[-1].val if self.epochs else None

    @property
    def seconds(self) -> float:
        """Training time in seconds, without scoring."""
        return sum(e.seconds for e in self.epochs)


def fit(config: FitConfig, console: Console | None = None) -> Result:
    """Train a network, score it once on the test split, and write its model folder.

    console: shows the progress; None shows nothing.

    Ctrl-C ends the training, and `fit` returns a result with `interrupted`. The checkpoint of the last complete epoch
    then stays in the folder. A mistake in the config raises `UserError` before anything is written.
    """
    recipe_config = config.training()  # finds a wrong recipe before the processes wait for each other
    with joined(config.device) as (group, device):
        if console is None or group.rank > 0:
            console = Console(quiet=True)
        return _fit(config, replace(recipe_config, device=device), TASKS[config.task], group, console)


def _fit(config: FitConfig, training: Config, task: Task, group: Group, console: Console) -> Result:
    """Check the settings and the data, then train, test and write the model folder."""
    bf16 = uses_bf16(training.precision, device_of(training.device))
    check_out(config.out, config.resume, config.arch)
    has_checkpoint = (config.out / CHECKPOINT_FILE).exists()
    if config.resume and (config.out / TRAINING_FILE).exists() and not has_checkpoint:
        resume.check_finished(config.out, str(config.arch), training)
        console.print(f"{config.out}: this training is done; nothing is left to resume", **PLAIN)
        return _finished(config.out, task)
    _, trained = read_arch(config.arch)  # finds a wrong name before the data is read
    if training.frozen_norms and (trained is None or config.from_scratch):
        raise UserError(
            f"`recipe`: {config.recipe_name} freezes the batch norms of the backbone, whose weights are initialised; "
            "accepted: `arch` a model folder with weights, or a recipe with frozen_norms: false"
        )
    task.check()
    data, test = read_data(config, training, console)
    zero_last = training.zero_init_last
    model, arch, note = build_model(config.arch, data, task, config.from_scratch, config.seed, zero_last)
    console.print(f"{arch}: {note}", **PLAIN)
    console.print(_about(config.recipe_name, training, data, group, bf16), **PLAIN)
    trainer = Trainer(model, data, training, group, config.compile, config.workers, task)
    run, epochs = resume.Run(arch, training, data), []
    if config.resume and has_checkpoint:
        epochs = resume.restore(config.out, run, trainer)
        console.print(f"resumed after epoch {len(epochs)} of {training.epochs}", highlight=False)
    try:
        run_epochs(trainer, run, config.out, epochs, console)
        scores = test_scores(trainer, data, test, config.workers)
        if group.rank == 0:
            about = training_of(str(config.arch), config.recipe_name, run, epochs, scores, group.world, task)
            write(trainer.scored, arch, about, len(test), task, config.out)
    except TrainingFailed as problem:
        if len(epochs) < training.epochs:  # a resumed training would fail again
            resume.forget(config.out)
        raise UserError(f"`lr`: {training.lr}; {problem}; accepted: a lower rate, or `precision` fp32") from None
    except KeyboardInterrupt:
        return Result(config.out, trainer.scored.eval(), None, tuple(epochs), interrupted=True)
    console.print(_end(config.out, scores, task, data, training), **PLAIN)
    return Result(config.out, trainer.scored.eval(), scores, tuple(epochs))


def _finished(folder: Path, task: Task) -> Result:
    """Return the result of a finished training, read from the training's folder.

    The test loss is NaN, because the folder does not record this loss.
    """
    training = json.loads((folder / TRAINING_FILE).read_text())
    found = {m.name: training.get(f"test_{m.name}") for m in task.metrics}
    test = no_scores(task)._replace(**{name: value for name, value in found.items() if value is not None})
    return Result(folder, load(folder), test, tuple(Epoch.from_row(e, task) for e in training.get("history", ())))


def check_out(out: Path, resuming: bool, arch: str | Path | BaseArch = "") -> None:
    """Raise `UserError` if a training may not write its model folder to `out`.

    `fit` checks this before the training. Otherwise a training could fail after its last epoch.
    arch: the network to train. Its own folder may be replaced; another trained network may not.
    """
    unfinished = out.is_dir() and (out / CHECKPOINT_FILE).exists()
    if unfinished and not resuming:
        raise UserError(f"`out`: {str(out)!r} holds a training that was stopped; accepted: `resume`, or another folder")
    if not unfinished:
        check_replaceable(out, "`out`")
    own = not isinstance(arch, BaseArch) and out.resolve() == Path(arch).resolve()
    if (out / TRAINING_FILE).exists() and not own and not resuming:
        raise UserError(f"`out`: {str(out)!r} holds a trained network; accepted: another folder")
    check_creatable(out, "`out`")


def read_data(config: FitConfig, training: Config, console: Console) -> tuple[Data, Split | Files]:
    """Return the data set and its test split.

    `fit` reads both before the training, so that a missing test split raises `UserError` early.
    """
    dataset = trainers.datasets.data.get(config.data)
    trainers.datasets.data.check_target(config.data, TASKS[config.task].target)
    if config.download:
        if config.data_dir is None:
            raise UserError("`data_dir`: None; accepted with `download`: the folder to put the data set in")
        trainers.datasets.data.download(config.data, config.data_dir)
    target = TASKS[config.task].target
    _check_crop(training.crop, config.data, target)
    size, stream = config.image_size, dataset.streamable and training.crop != "pad"
    data = trainers.datasets.data.load(
        config.data,
        config.data_dir,
        seed=config.seed,
        val_fraction=config.val_fraction,
        train_images=config.train_images,
        console=console,
        image_size=size,
        stream=stream,
        target=target,
    )
    size = data.image_size if dataset.resizable else None  # guessed from the training images if `image_size` is None
    test = trainers.datasets.data.load_test(
        config.data, config.data_dir, classes=data.classes, image_size=size, stream=stream, target=target
    )
    return data, test


def _check_crop(crop: str, name: str, target: str) -> None:
    """Raise `UserError` for a crop that does not suit the data set. target: the targets of the task."""
    of_files = "resized" if target == "class" else "scaled"
    files = trainers.datasets.data.get(name).streamable
    accepted = ("auto", "pad", *([of_files] if files else []))
    if crop not in accepted:
        why = f"has targets of the kind {target}" if files else "has no image files to crop"
        raise UserError(f"`crop`: {crop}; {name} {why}; accepted: {', '.join(accepted)}")


def test_scores(trainer: Trainer, data: Data, test: Split | Files, workers: int | None) -> Scores:
    """Return the scores on the test split. Raise `TrainingFailed` if the loss is not finite."""
    images = source(test, data, trainer.device, workers=workers)
    scores = evaluate(trainer.scored, images, trainer.bf16, trainer.group, trainer.task)
    if not math.isfinite(scores.loss):
        raise TrainingFailed(f"test loss is {scores.loss}")
    return scores


def _about(name: str, training: Config, data: Data, group: Group, bf16: bool) -> str:
    where = f"{group.world} processes" if group.world > 1 else str(device_of(training.device))
    return (
        f"recipe {name}: {training.epochs} epochs of {len(data.train):,} {data.image_size} x {data.image_size} images, "
        f"batch {training.batch_size}, lr {training.lr:g}, {training.schedule}, {'bf16' if bf16 else 'fp32'}, {where}"
    )


def _end(out: Path, scores: Scores, task: Task, data: Data, training: Config) -> str:
    score, *others = [(m, getattr(scores, m.name)) for m in task.metrics]
    text = f"{out}: {score[0].text(score[1])} on the test split"
    text += "".join(f", {m.label} {m.text(value)}" for m, value in others)
    return f"{text} ({data.name}, last epoch of {training.epochs})"


def build_parser() -> Parser:
    """Return the parser of the command's options."""
    parser = Parser(prog=PROG, description="Train one network; write a model folder with its test scores.")
    add_options(parser, fields_of(FitConfig))
    return parser


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _main(args: argparse.Namespace) -> int:
    # Batch systems send SIGTERM at the time limit. Let this signal end a training as Ctrl-C does. Only the main thread
    # may set signal handlers. If `_main` runs in another thread, SIGTERM keeps its default action.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    config = from_options(FitConfig, args)
    try:
        interrupted = fit(config, Console()).interrupted
    except KeyboardInterrupt:  # the interrupt came before the training began
        interrupted = True
    if not interrupted:
        return 0
    left = (config.out / CHECKPOINT_FILE).exists()
    hope = "the same command with --resume continues" if left else "nothing is lost: no epoch was done"
    print(f"{typed(PROG)}: interrupted; {hope}", file=sys.stderr)
    return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Train and test a network. Return the exit code, which is 130 after an interruption."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
