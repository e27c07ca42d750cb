"""The front of an earlier run, with which a search starts: `--from-run DIR`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from res2net.errors import UserError
from res2net.folder import WEIGHTS_FILE, load_arch
from search import runs
from search.included import FOLDER, Included, ancestors, as_res2net, read_training, seen
from search.model_folder import training_of
from search.picks import ledger_of
from search.settings import Settings
from trainers.datasets.data import Data

IMAGES = ("image_size", "train_images", "val_images", "mean", "std")  # keys of `Data.describe` that tell images apart


def front(settings: Settings, run: Path, first: int, data: Data) -> Iterator[Included]:
    """Yield the networks on the front of the run that the setting `from_run` names. A resumed search uses its copies.

    run: the folder of this search. first: the number of the first copy in this folder.
    Raise `UserError` for a folder without a trained front, and for a run on other data.
    """
    if settings.scoring.from_run is None:
        return
    source = Path(settings.scoring.from_run)
    if (run / FOLDER).exists():
        copies = sorted((run / FOLDER).glob("*"), key=lambda path: int(path.name))[first:]
        for path in copies:
            network = Included("", as_res2net(load_arch(path)))
            yield _included(source, path / WEIGHTS_FILE, network, read_training(path), settings, data)
        return
    try:
        books, described = ledger_of(source), runs.read(source)
    except UserError as error:
        raise UserError(f"`from_run`: {error}") from None
    if not books.trained:
        raise UserError(f"`from_run`: {str(source)!r} has no trained network yet; accepted: a run with a front")
    theirs = described["data"]
    if (theirs["name"], tuple(theirs["classes"])) != (data.name, data.classes):
        raise UserError(f"`from_run`: {str(source)!r} searched on {theirs['name']}; accepted: a run on {data.name}")
    if (task := Settings.from_dict(described["settings"]).scope.task) != settings.scope.task:
        raise UserError(
            f"`from_run`: {str(source)!r} searched by `task` {task}; accepted: a run by `task` {settings.scope.task}"
        )
    before = ancestors(source)
    for record in books.front:
        path = runs.weights_path(source, record.number)
        if path.is_file():  # other drivers of a shared study keep weights in folders of their own
            training = training_of(described, record, before)
            yield _included(source, path, Included("", record.arch), training, settings, data)


def _included(
    source: Path, weights: Path, network: Included, training: Mapping[str, Any], settings: Settings, data: Data
) -> Included:
    """Return a network of an earlier run with its weights.

    Its score is reused if a trial of this search would have the same images, the same recipe and the same number of
    epochs, including inherited epochs. In a planned search, each trial has its own number of epochs. A network that
    started from shared weights had more training than its epochs say, so its score is not reused.
    """
    theirs, epochs, inherited = Settings.from_dict(training["settings"]), training["epochs"], training["inherited"]
    a, b = theirs.scoring, settings.scoring
    budget = b.epochs is None or (b.epochs == epochs and (not inherited or settings.evaluator.grows))
    recipes = [(replace(s.recipe, seed=0), s.batch_size, s.lr, s.metric) for s in (a, b)]
    spoilt = seen(training, settings, data.name)
    same = not spoilt and _same_images(training["data"], data.describe())
    return replace(
        network,
        name=f"{source} trial {training['trial']}",
        weights=weights.read_bytes(),
        epochs=epochs + inherited,
        seen=spoilt,
        training=training,
        reused=recipes[0] == recipes[1] and same and budget and not theirs.evaluator.origin,
    )


def _same_images(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Return whether two descriptions of data (`Data.describe`) agree. Early runs lack some values."""
    pairs = [(np.atleast_1d(theirs[key]), np.atleast_1d(ours[key])) for key in IMAGES if key in theirs]
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-6, atol=0) for a, b in pairs)
