"""Save and restore the checkpoint of a training. A check refuses the checkpoint of a different training."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from res2net.arch import BaseArch
from res2net.errors import UserError
from res2net.files import write_atomic
from res2net.folder import BOARD_FOLDER, CHECKPOINT_FILE, LOG_FILE, TRAINING_FILE
from trainers.datasets.data import Data
from trainers.recipes import Config, differences
from trainers.train import Epoch, Trainer


def unpack(content: bytes) -> Any:
    """Return the plain values and tensors that `torch.save` wrote. Damaged bytes may raise any exception."""
    buffer = io.BytesIO(content)
    # torch does not verify the checksums of the zip file: damaged bytes would become tensor values without an error.
    if (bad := zipfile.ZipFile(buffer).testzip()) is not None:
        raise ValueError(f"{bad} is damaged")
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=True)  # runs no pickled code


@dataclass(frozen=True, slots=True)
class Run:
    """The values that must match before a training may resume from another training's checkpoint."""

    arch: BaseArch
    config: Config
    data: Data

    def to_dict(self) -> dict[str, Any]:
        """Return the run as plain values."""
        data = self.data
        images = {"name": data.name, "train": len(data.train), "val": len(data.val), "image_size": data.image_size}
        return {"arch": self.arch.to_json(), "config": asdict(self.config), "data": images}


def save(folder: Path, run: Run, trainer: Trainer, epochs: Sequence[Epoch]) -> None:
    """Write the checkpoint atomically: after a crash, the checkpoint of the previous epoch is still whole."""
    buffer = io.BytesIO()
    history = [e.row() for e in epochs]
    torch.save({"run": run.to_dict(), "trainer": trainer.state_dict(), "history": history}, buffer)
    write_atomic(folder / CHECKPOINT_FILE, buffer.getvalue())


def restore(folder: Path, run: Run, trainer: Trainer) -> list[Epoch]:
    """Restore the trainer from the checkpoint and return the epochs so far.

    Raise `UserError` for a damaged checkpoint or the checkpoint of another training.
    """
    path = folder / CHECKPOINT_FILE
    try:
        state = unpack(path.read_bytes())
        theirs, history = state["run"], [Epoch.from_row(row, trainer.task) for row in state["history"]]
        config = Config(**theirs["config"])
    except Exception as error:  # torch raises many types for truncated and foreign files
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"`resume`: {str(path)!r} is not a checkpoint of this program ({type(error).__name__}: {reason}); "
            "accepted: the `out` of a training that was stopped"
        ) from None
    _check(path, run, theirs, config)
    trainer.load_state_dict(state["trainer"])
    return history


def check_finished(folder: Path, source: str, config: Config) -> None:
    """Raise `UserError` unless a folder holds the finished training of a network by a recipe.

    source: the name or the path of the initial network.
    """
    path = folder / TRAINING_FILE
    try:
        training = json.loads(path.read_text())
        theirs, their_config = training["source"], Config(**training["config"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"`resume`: {str(path)!r} is not of a training of this program; accepted: the `out` of a training"
        ) from None
    where = f"`resume`: {str(path)!r} is of another"
    if Path(theirs) != Path(source):
        raise UserError(f"{where} network: {theirs}, not {source}; accepted: that network, or another `out`")
    if found := differences(config, their_config):
        raise UserError(f"{where} recipe: {'; '.join(found)}; accepted: the recipe of that training, or another `out`")


def forget(folder: Path) -> None:
    """Remove the checkpoint and the log of a failed training. Then remove the training's folder if it is empty."""
    if (folder / CHECKPOINT_FILE).exists():
        for name in (CHECKPOINT_FILE, LOG_FILE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / BOARD_FOLDER, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _check(path: Path, run: Run, theirs: dict[str, Any], config: Config) -> None:
    where = f"`resume`: {str(path)!r} is of another"
    if theirs["arch"] != run.arch.to_json():
        raise UserError(f"{where} architecture; accepted: the architecture of that training, or another `out`")
    if found := differences(run.config, config):
        raise UserError(f"{where} recipe: {'; '.join(found)}; accepted: the recipe of that training, or another `out`")
    ours = run.to_dict()["data"]
    if found := [f"{key} {theirs['data'][key]}, not {ours[key]}" for key in ours if theirs["data"][key] != ours[key]]:
        raise UserError(f"{where} data set: {'; '.join(found)}; accepted: the data of that training, or another `out`")
