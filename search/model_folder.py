"""Write a network of a search as an ordinary model folder, with its history and a model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from res2net.deploy.export import export_onnx
from res2net.files import write_atomic, write_folder
from res2net.folder import (
    ARCH_FILE,
    CARD_FILE,
    INT8_FILE,
    ONNX_FILE,
    TRAINING_FILE,
    WEIGHTS_FILE,
    check_replaceable,
    load,
)
from search import runs
from search.included import ANCESTORS, SEEN, ancestors, seen
from search.int8 import Int8
from search.ledger import REUSED
from search.objectives import COSTS, MACS, PARAMS
from search.picks import choose, weights_of
from search.settings import Settings
from search.study.trials import Record
from trainers.card import code, machine, model_card
from trainers.tasks import TASKS
from trainers.tasks.metrics import metric_of

SHOWN = (MACS.name, PARAMS.name)  # costs on the model card and in `training.json`


@dataclass(frozen=True, slots=True)
class Extras:
    """The additional content of an export.

    test: the score (%) on the test split, by the task's first metric, for the records; None if it was not read.
    onnx: whether to write `model.onnx`, which accepts any batch size and images of the training size.
    int8: the network in int8, for `model.int8.onnx`; None leaves it out.
    """

    test: float | None = None
    onnx: bool = False
    int8: Int8 | None = None


def export(
    folder: Path,
    pick: str,
    to: Path,
    under: Sequence[float] = (),
    extras: Extras = Extras(),
) -> Record:
    """Write the model folder of a trial: architecture, weights, `training.json`, a model card, and the extras."""
    record = choose(folder, pick, under)
    weights = weights_of(folder, record)
    check_replaceable(to, "`to`")
    run = runs.read(folder)
    before = ancestors(folder)
    training = training_of(run, record, before, extras)
    cautious = any(seen(one, runs.settings_of(folder), run["data"]["name"]) for one in before)

    def fill(temporary: Path) -> None:
        write_atomic(temporary / ARCH_FILE, record.arch.to_json())
        write_atomic(temporary / WEIGHTS_FILE, weights.read_bytes())
        write_atomic(temporary / TRAINING_FILE, json.dumps(training, indent=2) + "\n")
        write_atomic(temporary / CARD_FILE, card(record, run, training, extras, SEEN if cautious else ""))
        model = load(temporary)  # refuses weights that do not fit, before the folder gets its name
        if extras.onnx:
            pixels = run["data"].get("image_size", runs.space_of(folder).image_size)  # early runs lack the size
            export_onnx(model, temporary / ONNX_FILE, image_size=pixels)
        if extras.int8 is not None:
            write_atomic(temporary / INT8_FILE, extras.int8.data)

    write_folder(to, fill)
    return record


def training_of(
    run: dict[str, Any], record: Record, before: Sequence[dict[str, Any]], extras: Extras = Extras()
) -> dict[str, Any]:
    """Return the content of `training.json` for a trial.

    run: the content of `run.json`. before: see `search.included.ancestors`.
    """
    settings = Settings.from_dict(run["settings"])
    quality, task = settings.scoring.quality, TASKS[settings.scope.task]
    # Records of early runs lack the session: take the last one.
    session = record.attrs.get(REUSED) or run["sessions"][record.attrs.get("session", -1)]
    return {
        "trial": record.number,
        quality.name: record.quality,
        f"{quality.name}_of_seeds": list(record.seeds),
        "task": task.name,
        f"test_{task.metrics[0].name}": extras.test,
        **({} if extras.int8 is None else {"int8": extras.int8.to_dict()}),
        **{name: record.attrs[name] for name in SHOWN},
        "epochs": record.attrs["epochs"],
        "inherited": record.attrs.get("inherited", 0),
        "seconds": record.attrs["seconds"],
        "data": run["data"],
        "settings": run["settings"],
        ANCESTORS: list(before) if {"parent", "origin", REUSED} & record.attrs.keys() else [],
        "versions": session["versions"],
        "hardware": session["hardware"],
        "commit": session["commit"],
    }


def card(record: Record, run: dict[str, Any], training: dict[str, Any], extras: Extras, caution: str = "") -> str:
    """Return the model card: the network, its score, its training and its use. caution: a text after the origin."""
    data, tested = run["data"], extras.test
    settings = Settings.from_dict(run["settings"])
    metric = TASKS[settings.scope.task].metrics[0]
    sampler = f"{settings.budget.sampler}, seed {settings.scope.seed}"
    origin, epochs = settings.evaluator.origin, record.attrs.get("inherited")
    if "parent" in record.attrs:
        origin = f"the weights of trial {record.attrs['parent']} of the same search, after {epochs:g} epochs in all"
    if REUSED in record.attrs:
        origin = f"random weights or a smaller network, in an earlier run ({record.attrs['included']})"
    if "origin" in record.attrs:
        origin = f"the network of {record.attrs['origin']}, after {epochs:g} epochs"
    budget = f"{record.attrs['epochs']} epochs of {data['train_images']:,} images"
    seeds = f"n = {len(record.seeds)}" + (f", +- {record.spread:.2f}" if len(record.seeds) > 1 else "")
    scored = f"{seeds}, {data['val_images']:,} images, last epoch"
    rows = [
        (f"{metric_of(settings.scoring.metric).label}, validation split", f"{record.quality:.2f} % ({scored})"),
        *([(f"{metric.label}, test split", f"{tested:.2f} %")] if tested is not None else []),
        *([("top-1 in int8", f"{extras.int8.text} (`{INT8_FILE}`)")] if extras.int8 is not None else []),
        *((COSTS[name].label.removesuffix(" of one image"), f"{record.attrs[name]:,}") for name in SHOWN),
        *((o.label, o.format(record.attrs[o.name])) for o in settings.scope.costs if o.name not in SHOWN),
        ("trained", f"{budget}, batch {settings.scoring.batch_size}, lr {settings.evaluator.lr_of(record):g}"),
        *([("started from", origin + caution)] if origin else []),
        ("search", f"{sampler}, the best of many: its validation accuracy is optimistic"),
        ("hardware", machine(training)),
        ("code", code(training)),
    ]
    story = f"A Res2Net found by searching the space `{run['space']['name']}` on `{data['name']}`"
    return model_card(record.arch, f"{story} (trial {record.number}).", rows, data, settings.scope.task)
