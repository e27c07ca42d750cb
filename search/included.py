"""The trained network that a search grows from: the model folder of `--include`, copied to the run's folder."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from res2net.arch import Arch
from res2net.containment import contains
from res2net.errors import UserError
from res2net.files import write_atomic, write_folder
from res2net.folder import ARCH_FILE, TRAINING_FILE, WEIGHTS_FILE, load, weights_bytes
from search.settings import Settings
from space import Space
from trainers.datasets.data import Data

FOLDER = "included"  # in the run's folder
SEEN = "; it may have been trained on validation images of this search, and then all scores are too high"
TRIED = 1_000  # random members among which one that contains the network is looked for


@dataclass(frozen=True, slots=True)
class Included:
    """A trained network to grow from.

    weights: its state dict as safetensors.
    epochs: the epochs that its folder records, with inherited ones; 0 if the folder records none.
    seen: whether its training may have used validation images of this search. Then the scores of all networks that
        grow from it are too high.
    """

    arch: Arch
    weights: bytes
    epochs: float
    seen: bool

    @property
    def text(self) -> str:
        """The network in words."""
        epochs = f"after {self.epochs:g} epochs" if self.epochs else "of unknown training"
        return f"{self.arch}, {epochs}{SEEN if self.seen else ''}"


def included(settings: Settings, run: Path, space: Space, data: Data) -> Included | None:
    """Return the network of the setting `include`; None without the setting. A resumed search takes its copy.

    A classifier for other classes is replaced by a new one. Raise `UserError` if the folder's weights are missing, or
    if no network of the space contains the network.
    """
    source = settings.scoring.include
    if source is None:
        return None
    copy = run / FOLDER
    found = read(copy if copy.exists() else Path(source), settings, data)
    if not _contained(found.arch, space, settings.scope.seed):
        raise UserError(
            f"`include`: no network of space {space.name!r} over base {space.base} contains {found.arch}; accepted: a "
            "network of this space (python -m search.export writes one)"
        )
    return found


def read(folder: Path, settings: Settings, data: Data) -> Included:
    """Return the network of a model folder. Raise `UserError` for a folder without weights, and for other networks."""
    try:
        model = load(folder, num_classes=data.num_classes)
    except UserError as error:
        raise UserError(f"`include`: {error}") from None
    if not isinstance(model.arch, Arch):
        raise UserError(f"`include`: {str(folder)!r} holds {model.arch}; accepted: a Res2Net")
    training = _training(folder)
    epochs = training.get("epochs", training.get("config", {}).get("epochs", 0)) + training.get("inherited", 0)
    return Included(model.arch, weights_bytes(model), epochs, seen(folder, settings, data.name))


def keep(source: Path, run: Path) -> None:
    """Copy a model folder to the run's folder, if no earlier session did. A resumed search needs no other folder."""

    def fill(temporary: Path) -> None:
        for name in (ARCH_FILE, WEIGHTS_FILE, TRAINING_FILE):
            if (source / name).is_file():
                write_atomic(temporary / name, (source / name).read_bytes())

    if not (run / FOLDER).exists():
        write_folder(run / FOLDER, fill)


def _training(folder: Path) -> dict[str, Any]:
    """Return the content of `training.json`; empty without this file."""
    path = folder / TRAINING_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"`include`: {str(path)!r} is not JSON ({error}); accepted: the file as it was written"
        ) from None
    return content if isinstance(content, dict) else {}


def seen(folder: Path, settings: Settings, data: str) -> bool:
    """Return whether the training of a model folder may have used validation images of a search.

    It may if it had the same data, but not the same split. data: the name of the search's data set.
    """
    training = _training(folder)
    if training.get("data", {}).get("name", data) != data:
        return False
    theirs, ours = training.get("settings", {}).get("scope", {}), settings.scope
    return any(theirs.get(name) != getattr(ours, name) for name in ("data", "seed", "train_images"))


def _contained(arch: Arch, space: Space, seed: int) -> bool:
    rng = random.Random(seed)
    drawn = (space.arch(space.sample(rng)) for _ in range(TRIED))
    return any(contains(member, arch) for member in (space.largest(), *drawn))
