"""The supernet: weights that all networks of a space share. Train or resume it in a folder; load it for a search."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from res2net.arch import Arch
from res2net.elastic import ElasticRes2Net
from res2net.errors import UserError
from res2net.files import write_atomic
from res2net.folder import weights_bytes
from search.groups import Scope, Scoring
from search.lock import LOCK_FILE, locked
from search.objectives import MACS
from search.worker import Clock
from space import Space
from trainers.datasets.data import Data
from trainers.ddp import ALONE, Group
from trainers.meta import environment
from trainers.resume import unpack
from trainers.supernet import Members, Scorer, SupernetTrainer
from trainers.tasks import TASKS
from trainers.train import TrainingFailed

PROG = "python -m search.supernet"
ABOUT_FILE, WEIGHTS_FILE = "supernet.json", "supernet.safetensors"
CHECKPOINT_FILE, EPOCHS_FILE = "checkpoint.pt", "epochs.csv"
FOLDER = "supernet"  # name of the folder, in the folder of a search that trains its own shared weights
# The settings that must match before shared weights may serve a search. The seed chooses the validation split: under
# another seed, the shared weights were trained on images that the search validates on.
SERVES = ("data", "task", "train_images", "image_size", "seed")
# The settings that must match before a training of shared weights may resume.
TRAINED_BY = ("space", "base", "per_stage", *SERVES, "epochs", "batch_size", "lr")
WATCHED = 3  # random members whose accuracy is shown, besides the largest and the smallest


class TimeUp(Exception):
    """The training of shared weights was stopped before its end. The next call of `train` resumes it."""


def members_of(space: Space) -> Members:
    """Return the members that a supernet trains. Random members are drawn evenly over MACs, not over combinations."""
    smallest = space.arch(space.cheapest()[0])
    return Members(space.largest(), smallest, lambda rng: space.arch(space.sample_by_macs(rng)))


def watched(space: Space) -> list[Arch]:
    """Return the members whose accuracy is shown: the largest, the smallest and a few others, cheapest first."""
    rng, members = random.Random(0), members_of(space)
    found = {members.largest, members.smallest} | {members.sample(rng) for _ in range(WATCHED)}
    return sorted(found, key=lambda a: MACS.of(a, space.image_size))


def train(
    scope: Scope,
    scoring: Scoring,
    space: Space,
    data: Data,
    folder: Path,
    console: Console | None = None,
    group: Group = ALONE,
    device: str = "auto",
    ends: float | None = None,
) -> ElasticRes2Net:
    """Return the folder's shared weights: train them, resume their training, or load them once trained.

    The folder is written after each epoch, and a resumed training equals one that never stopped. Raise `UserError` if
    the folder holds other files, or shared weights of other settings.
    group: the processes that train together; the first process writes the folder.
    ends: the time (`time.monotonic`) by which the training must end; None sets no limit. A training that would take
        longer is shortened. At this time, write a checkpoint of the current step and raise `TimeUp`.
    """
    check(folder, scope, scoring, space)
    if (folder / WEIGHTS_FILE).is_file():
        return load(folder, space, data, scope, scoring)
    first = group.rank == 0
    with locked(folder) if first else contextlib.nullcontext():
        if first:
            write_atomic(folder / ABOUT_FILE, json.dumps(_about(scope, scoring, space, data), indent=2) + "\n")
        config = replace(scoring.train_config(scope.seed), device=device)
        torch.manual_seed(scope.seed)
        model = ElasticRes2Net(space)
        trainer = SupernetTrainer(model, data, config, members_of(space), group, TASKS[scope.task])
        rows = _restore(trainer, folder)
        try:
            _run(trainer, watched(space), rows, folder, console or Console(quiet=True), ends)
        except TrainingFailed as problem:
            raise UserError(f"supernet: {problem}; accepted: a lower `lr` (it is {scoring.lr})") from None
        if first:
            write_atomic(folder / WEIGHTS_FILE, weights_bytes(model))
            (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return model


def check(folder: Path, scope: Scope, scoring: Scoring, space: Space) -> None:
    """Raise `UserError` if the folder holds shared weights of other settings, or other files."""
    others = (p for p in folder.iterdir() if p.name != LOCK_FILE) if folder.is_dir() else ()
    # The first process may be writing its first file while another one checks, and may be killed meanwhile.
    if not all(p.match(".*.tmp") for p in others) and not (folder / ABOUT_FILE).is_file():
        raise UserError(f"`out`: {str(folder)!r} holds files but no supernet; accepted: a new folder, or a supernet's")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"`out`: {str(folder)!r} is a file; accepted: a folder")
    if (folder / ABOUT_FILE).is_file():
        _check_same(folder, scope, scoring, space, TRAINED_BY, "out")


def load(folder: Path, space: Space, data: Data, scope: Scope, scoring: Scoring) -> ElasticRes2Net:
    """Return the shared weights of a folder.

    Raise `UserError` if the weights' training has not ended, or if they belong to another space or validation split.
    """
    if not (folder / ABOUT_FILE).is_file():
        raise UserError(f"`supernet`: {str(folder)!r} holds no {ABOUT_FILE}; accepted: the folder of search.supernet")
    _check_same(folder, scope, scoring, space, SERVES, "supernet")
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(
            f"`supernet`: {str(folder)!r} is not trained to its end; accepted: once its command has finished it"
        )
    model = ElasticRes2Net(space)
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except Exception as error:  # safetensors raises undocumented kinds for truncated and foreign files
        raise UserError(f"{path}: not the weights of this supernet ({str(error).splitlines()[0]})") from None
    return model


def scorer(model: ElasticRes2Net, data: Data, scope: Scope, scoring: Scoring) -> Scorer:
    """Return the scorer of the supernet's members for a search."""
    return Scorer(model, data, scoring.train_config(scope.seed), TASKS[scope.task])


def _about(scope: Scope, scoring: Scoring, space: Space, data: Data) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    values = asdict(scope) | asdict(scoring)
    kept = {name: values[name] for name in TRAINED_BY}
    images = {"train_images": len(data.train), "val_images": len(data.val)}
    return {"settings": kept, "space": space.to_dict(), "data": images, "written": now, **environment()}


def _check_same(folder: Path, scope: Scope, scoring: Scoring, space: Space, names: Sequence[str], field: str) -> None:
    """Raise `UserError` if the folder's shared weights differ in the named settings or in their space."""
    path, ours = folder / ABOUT_FILE, asdict(scope) | asdict(scoring)
    try:
        about = json.loads(path.read_text())
        # Files of early versions lack the image size, and newer fields of the space.
        theirs = {"image_size": None, "task": "classification"} | about["settings"]
        their_space = Space.from_dict(about["space"])
        different = [f"`{n}` {theirs[n]}, not {ours[n]}" for n in names if theirs[n] != ours[n]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the settings of a supernet ({error!r})") from None
    if not different and their_space.to_dict() != space.to_dict():
        different = [f"another space than {space.name} ({space.base})"]
    if different:
        raise UserError(
            f"`{field}`: {str(folder)!r} holds a supernet of {'; '.join(different)}; "
            "accepted: the same, or another folder"
        )


def _restore(trainer: SupernetTrainer, folder: Path) -> list[dict[str, Any]]:
    """Restore the trainer from the checkpoint, if there is one; return a row for each epoch so far."""
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        return []
    try:
        state = unpack(path.read_bytes())
        trainer.load_state_dict(state["trainer"])
    except Exception as error:  # torch raises many kinds for truncated and foreign files
        raise UserError(f"{path}: not a checkpoint of this supernet ({str(error).splitlines()[0]})") from None
    return state["rows"]


def _save(trainer: SupernetTrainer, rows: list[dict[str, Any]], folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"trainer": trainer.state_dict(), "rows": rows}, buffer)
    write_atomic(folder / CHECKPOINT_FILE, buffer.getvalue())


def _run(
    trainer: SupernetTrainer,
    archs: list[Arch],
    rows: list[dict[str, Any]],
    folder: Path,
    console: Console,
    ends: float | None,
) -> None:
    """Train the epochs that are left; after each epoch, print a line and write a checkpoint."""
    total, clock = trainer.config.epochs, None if ends is None else Clock(trainer, ends, fits=True)
    columns = (TextColumn("supernet"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=trainer.total_steps, completed=trainer.done_steps)
        trainer.on_step = lambda: bar.advance(task)
        size = trainer.val_images.size
        if not rows:
            names = "".join(f"{MACS.format(MACS.of(a, size)):>9}" for a in archs)
            metric = trainer.task.metrics[0]
            console.print(f"epoch     loss  {metric.label} ({metric.unit}) of{names} {MACS.unit}", highlight=False)
        while not trainer.finished:
            e = trainer.epoch() if clock is None else trainer.epoch(clock.stop)
            if e is None:
                _save(trainer, rows, folder)
                raise TimeUp
            if trainer.group.rank:  # the first process scores and writes
                continue
            # These scores are only shown. When the time is up, skip them: each would delay the end by seconds.
            scores = [math.nan if ends is not None and time.monotonic() > ends else trainer.scorer(a)[1] for a in archs]
            shown = "".join(f"{s:9.2f}" for s in scores)
            console.print(f"{e.epoch:>2}/{total:<2}  {e.train_loss:7.4f}              {shown}", highlight=False)
            row = {"epoch": e.epoch, "loss": e.train_loss, "seconds": e.seconds}
            score = trainer.task.metrics[0].name
            rows.append(row | {f"val_{score} {a}": s for a, s in zip(archs, scores, strict=True)})
            write_atomic(folder / EPOCHS_FILE, pd.DataFrame(rows).to_csv(index=False))
            _save(trainer, rows, folder)
