"""The networks that a search starts from: `--include NAME,arch.json,FOLDER`.

Named networks and `arch.json` files are trained with the networks of the space, and compared with them. A model folder
holds a trained network, from which larger networks grow. The run's folder keeps a copy of each network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from res2net.arch import Arch, BaseArch
from res2net.cost import cost
from res2net.errors import UserError
from res2net.files import write_atomic, write_folder
from res2net.folder import ARCH_FILE, TRAINING_FILE, WEIGHTS_FILE, load_arch, weights_bytes
from res2net.named import named, names
from search.evaluators import larger
from search.groups import Scope
from search.objectives import Objective
from search.settings import Settings
from space import Space
from trainers.datasets.data import Data
from trainers.start import build_model, fitted_arch
from trainers.tasks import TASKS
from trainers.tasks.task import Task

FOLDER = "included"  # the folder of the copies, in the run's folder
ANCESTORS = "ancestors"  # the key of the trainings before a network's own, in its `training.json`
SEEN = "; it may have been trained on validation images of this search, and then all scores are too high"


@dataclass(frozen=True, slots=True)
class Included:
    """A network that a search starts from.

    name: the item of the setting `include`, or the earlier run and the trial.
    weights: its state dict as safetensors, to grow from; None for a network that is only to be trained.
    epochs: the epochs that its folder records, including inherited epochs; 0 if the folder records none.
    seen: whether its training may have used validation images of this search. Then the scores of all networks that
        grow from it are too high.
    training: the content of its `training.json`.
    reused: whether the score in `training` counts for this search, so that the network is not trained again.
    """

    name: str
    arch: Arch
    weights: bytes | None = None
    epochs: float = 0.0
    seen: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    reused: bool = False

    @property
    def score(self) -> float:
        """The score of the weights by the metric of their search. With several seeds, the score of the first seed."""
        name = Settings.from_dict(self.training["settings"]).scoring.quality.name
        return (self.training.get(f"{name}_of_seeds") or [self.training[name]])[0]

    @property
    def text(self) -> str:
        """The network in words."""
        if self.weights is None:
            return f"{self.name} ({self.arch})"
        epochs = f"after {self.epochs:g} epochs" if self.epochs else "of unknown training"
        score = f", {self.score:.2f} %" if self.reused else ""
        return f"{self.name} ({self.arch}, {epochs}{score}){SEEN if self.seen else ''}"


def items_of(settings: Settings) -> list[str]:
    """Return the items of the setting `include`. Raise `UserError` for one that is given twice."""
    items = [item.strip() for item in (settings.scoring.include or "").split(",") if item.strip()]
    twice = next((item for item in items if items.count(item) > 1), None)
    if twice is not None:
        raise UserError(f"`include`: {twice} is given twice; accepted: each network once")
    return items


def included(settings: Settings, run: Path, space: Space, data: Data) -> tuple[Included, ...]:
    """Return the networks of the setting `include`. A resumed search uses its copies.

    A trained network for other classes or for another task gets a new head. Raise `UserError` for an unknown name, a
    missing file, a network that does not fit the data, and a trained network that no member of the space contains.
    """
    found = []
    for i, item in enumerate(items_of(settings)):
        try:
            network = _network(item, run / FOLDER / str(i), settings, data)
            cost(network.arch, data.image_size)
        except UserError as error:
            raise UserError(f"`include`: {error}") from None
        if network.weights is not None:
            _check_growth(network, settings, space)
        found.append(network)
    return tuple(found)


def _network(item: str, copy: Path, settings: Settings, data: Data) -> Included:
    """Return the network of an item. copy: the folder to which an earlier session may have copied it."""
    path, task = copy if copy.is_dir() else Path(item), TASKS[settings.scope.task]
    if path != copy and item in names():
        return Included(item, _fitted(named(item), data, task))
    if not path.exists():
        raise UserError(
            f"{item!r} is neither a network nor a file; accepted: a name (python -m res2net), an {ARCH_FILE} file, or "
            "a model folder"
        )
    if path.is_file() or (path == copy and not (copy / WEIGHTS_FILE).exists()):
        return Included(item, _fitted(load_arch(path), data, task))
    trained = load_arch(path)
    if not (path / WEIGHTS_FILE).is_file():
        raise UserError(f"model folder {str(path)!r}: {WEIGHTS_FILE} is missing; accepted: a folder with both files")
    if trained.in_channels != data.in_channels:
        raise UserError(
            f"{str(path)!r} has weights for {trained.in_channels} colour channels, {data.name} has {data.in_channels}; "
            "accepted: a network for as many"
        )
    model, arch, _ = build_model(path, data, task, False, settings.scope.seed)
    training = read_training(path)
    if task.head_kind != trained.head_kind:  # its head is new; the copy in the run's folder must say so
        training |= {"epochs": 0, "inherited": 0}
    epochs = training.get("epochs", training.get("config", {}).get("epochs", 0)) + training.get("inherited", 0)
    spoilt = seen(training, settings, data.name)
    return Included(item, as_res2net(arch), weights_bytes(model), epochs, spoilt, training)


def _fitted(arch: BaseArch, data: Data, task: Task) -> Arch:
    """Return a network for the data's channels and classes, and for the task."""
    return as_res2net(fitted_arch(arch, data, task)).canonical()


def as_res2net(arch: BaseArch) -> Arch:
    """Return a network as a Res2Net. Raise `UserError` for other kinds of networks."""
    if not isinstance(arch, Arch):
        raise UserError(f"{arch} cannot be searched; accepted: a Res2Net")
    return arch


def _check_growth(network: Included, settings: Settings, space: Space) -> None:
    """Raise `UserError` if no network of the search can grow from a trained network."""
    if not settings.evaluator.grows:
        raise UserError(
            f"`include`: {network.name} is trained, but `evaluator` {settings.scoring.evaluator} does not grow "
            f"networks; accepted: `evaluator` grow, or its {ARCH_FILE}"
        )
    if next(larger(space, network.arch, settings.scope.seed), None) is None:
        raise UserError(
            f"`include`: no network of space {space.name!r} over base {space.base} contains {network.arch}; accepted: "
            "a network of this space (python -m search.export writes one)"
        )


def check_cost(network: Included, objective: Objective, image_size: int) -> None:
    """Raise `UserError` if an objective has no value for a network."""
    try:
        objective.of(network.arch, image_size)
    except UserError as error:
        raise UserError(f"`include`: {network.name}: {error}") from None


def keep(networks: Sequence[Included], run: Path) -> None:
    """Copy the networks to the run's folder, if no earlier session did. A resumed search needs no other file."""

    def fill(temporary: Path) -> None:
        for i, network in enumerate(networks):
            folder = temporary / str(i)
            folder.mkdir()
            write_atomic(folder / ARCH_FILE, network.arch.to_json())
            if network.weights is not None:
                write_atomic(folder / WEIGHTS_FILE, network.weights)
                write_atomic(folder / TRAINING_FILE, json.dumps(network.training, indent=2) + "\n")

    if networks and not (run / FOLDER).exists():
        write_folder(run / FOLDER, fill)


def seen(training: Mapping[str, Any], settings: Settings, data: str) -> bool:
    """Return whether a training may have used validation images of a search.

    This is possible if the training, or that of an ancestor, had the same data set, but not the same split.
    training: the content of its `training.json`. data: the name of the search's data set.
    """
    if any(seen(before, settings, data) for before in training.get(ANCESTORS, ())):
        return True
    if training.get("data", {}).get("name", data) != data:
        return False
    theirs = training.get("settings")
    return theirs is None or other_split(Settings.from_dict(theirs).scope, settings.scope)


def ancestors(run: Path) -> list[dict[str, Any]]:
    """Return the data and the settings of all trainings before a run, of the networks that the run started from."""
    found: list[dict[str, Any]] = []
    for path in sorted((run / FOLDER).glob(f"*/{WEIGHTS_FILE}")):
        training = read_training(path.parent)
        own = {key: training[key] for key in ("data", "settings") if key in training}
        found += [before for before in (own, *training.get(ANCESTORS, ())) if before not in found]
    return found


def other_split(theirs: Scope, ours: Scope) -> bool:
    """Return whether two searches divide the images into training and validation images in different ways."""
    return any(getattr(theirs, name) != getattr(ours, name) for name in ("data", "seed", "train_images", "task"))


def read_training(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's `training.json`; empty without this file."""
    path = folder / TRAINING_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{str(path)!r} is not JSON ({error}); accepted: the file as it was written") from None
    return content if isinstance(content, dict) else {}
