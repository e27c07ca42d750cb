"""Write the model folder of a training: network, `training.json`, model card and log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from res2net.arch import BaseArch
from res2net.cost import cost
from res2net.files import write_atomic, write_folder
from res2net.folder import (
    ARCH_FILE,
    BOARD_FOLDER,
    CARD_FILE,
    LOG_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    is_foreign,
    weights_bytes,
)
from trainers.card import code, machine, model_card
from trainers.datasets.data import Files, Split
from trainers.meta import environment
from trainers.resume import Run
from trainers.tasks.task import Scores, Task
from trainers.train import Epoch


def training_of(
    source: str, recipe: str, run: Run, epochs: Sequence[Epoch], test: Scores, processes: int, task: Task
) -> dict[str, Any]:
    """Return the content of `training.json`: scores, cost, settings, normalisation, history, environment.

    source: the name or the path of the initial network.
    recipe: the recipe's name or file.
    run: architecture, settings and data.
    test: scores on the test split.
    processes: number of processes that trained the network together.
    """
    data, names = run.data, [m.name for m in task.metrics]
    val = epochs[-1].val if len(data.val) else None
    return {
        "source": source,
        "task": task.name,
        **{f"test_{name}": _known(getattr(test, name)) for name in names},
        **{f"val_{name}": _known(getattr(val, name, None)) for name in names},
        **cost(run.arch, data.image_size)._asdict(),
        "data": {
            "name": data.name,
            "classes": list(data.classes),
            "train_images": len(data.train),
            "val_images": len(data.val),
            "image_size": data.image_size,
            "crop": _crop(data.train),
            "mean": list(data.mean),
            "std": list(data.std),
        },
        "recipe": recipe,
        "config": asdict(run.config),
        "processes": processes,
        "history": [{k: v for k, v in e.row().items() if v == v} for e in epochs],  # JSON has no NaN
        **environment(),
    }


def _known(score: float | None) -> float | None:
    """Return a score, or None for NaN: JSON has no NaN."""
    return score if score == score else None


def _crop(images: Split | Files) -> str:
    """Return the random crop of the training images: a value of `Config.crop`, but not `auto`."""
    if isinstance(images, Split):
        return "pad"
    return "scaled" if images.padded else "resized"


def card(arch: BaseArch, training: dict[str, Any], test_images: int, task: Task) -> str:
    """Return the model card of a trained network as Markdown. training: the content of `training.json`."""
    config, data, (score, *others) = training["config"], training["data"], task.metrics
    val = training[f"val_{score.name}"]
    validated = f"{score.text(val)} ({data['val_images']:,} images)" if val is not None else None
    tested = f"{score.text(training[f'test_{score.name}'])} (n = 1, {test_images:,} images, last epoch)"
    rows = [
        (f"{score.label}, test split", tested),
        *((f"{m.label}, test split", m.text(training[f"test_{m.name}"])) for m in others),
        *([(f"{score.label}, validation split", validated)] if validated else []),
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
    return model_card(arch, f"A Res2Net trained on `{data['name']}`.", rows, data, task.name)


def write(model: nn.Module, arch: BaseArch, training: dict[str, Any], test_images: int, task: Task, out: Path) -> None:
    """Write the model folder to `out` atomically, with the training's log.

    The new folder replaces the folder `out` of the running training, which contains the checkpoint. Files that the user
    has added to `out` stay.
    """
    weights = weights_bytes(model)

    def fill(temporary: Path) -> None:
        write_atomic(temporary / ARCH_FILE, arch.to_json())
        write_atomic(temporary / WEIGHTS_FILE, weights)
        write_atomic(temporary / TRAINING_FILE, json.dumps(training, indent=2) + "\n")
        write_atomic(temporary / CARD_FILE, card(arch, training, test_images, task))
        # Copy the log instead of moving it: if a crash comes before the new folder replaces `out`, `out` must still be
        # complete, so that the training can resume.
        shutil.copy(out / LOG_FILE, temporary)
        shutil.copytree(out / BOARD_FOLDER, temporary / BOARD_FOLDER)

    write_folder(out, fill, keep=is_foreign)
