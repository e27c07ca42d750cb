"""Export every network of a search's front as a model folder, and write a table of all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from res2net.errors import UserError
from res2net.files import write_atomic, write_folder
from res2net.folder import check_replaceable, load
from search import runs
from search.model_folder import Extras, export
from search.objectives import PARAMS
from search.picks import front_of, ledger_of, trained, weights_of
from search.study.trials import Record
from trainers.tasks import TASKS

TABLE = "front.csv"
IMAGES = 8  # random images on which an exported network is compared with the trained one
TOLERANCE = 1e-5  # largest accepted difference of their logits, or of weights, relative to the largest value


def export_front(
    folder: Path, to: Path, extras_of: Callable[[Record], Extras], under: Sequence[float] = ()
) -> pd.DataFrame:
    """Write a model folder for each network of a front, and `front.csv`; return the table, cheapest network first.

    Each exported network is loaded again, and its logits are compared with those of the trained weights. Of a
    detector, the weights are compared.
    extras_of: a function that returns the extras of a trial's export. under: see `search.picks.choose`.
    Raise `UserError` for a run without a trained network, and for a folder `to` with other content.
    """
    books = ledger_of(folder)
    records = front_of(folder, books, under)
    for record in records:
        weights_of(folder, record)  # raises `UserError` for missing weights before anything is written
    _check_replaceable(to)
    objectives = dict.fromkeys((*books.rules.costs, PARAMS))
    task = TASKS[runs.settings_of(folder).scope.task]
    rows: list[dict[str, Any]] = []

    def fill(temporary: Path) -> None:
        for record in records:
            place, extras = temporary / f"trial-{record.number}", extras_of(record)
            export(folder, str(record.number), place, extras=extras)
            costs = {o.name: record.attrs[o.name] for o in objectives}
            scores = {books.rules.quality.name: record.quality, f"test_{task.metrics[0].name}": extras.test}
            if extras.int8 is not None:
                scores |= {"fp32_val_top1": extras.int8.fp32_top1, "int8_val_top1": extras.int8.top1}
            difference = _difference(trained(folder, record), place)
            rows.append({"folder": place.name, **costs, **scores, "difference": difference, "arch": str(record.arch)})
        write_atomic(temporary / TABLE, pd.DataFrame(rows).to_csv(index=False))

    write_folder(to, fill)
    return pd.DataFrame(rows)


def _difference(model: torch.nn.Module, place: Path) -> float:
    """Return the largest difference between the logits of a trained network and of its export, relative to the largest.

    The number of a detector's outputs varies, so compare each of its weights. Raise `RuntimeError` if the difference
    exceeds `TOLERANCE`.
    """
    exported: Any = load(place)
    arch = exported.arch
    if arch.head is not None and arch.head.detects:
        weights = exported.state_dict()
        pairs = [(value.double(), weights[name].double()) for name, value in model.state_dict().items()]
    else:
        images = torch.randn(IMAGES, arch.in_channels, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            pairs = [(model(images), exported(images))]
    shares = [(a - b).abs().max() / a.abs().max().clamp_min(1e-30) for a, b in pairs]
    difference = torch.stack(shares).max().item()  # unlike Python's `max`, this keeps NaN
    if not difference <= TOLERANCE:  # true for NaN too
        raise RuntimeError(f"{place.name}: the export differs from the trained network by {difference:.1e}")
    return difference


def _check_replaceable(to: Path) -> None:
    """Raise `UserError` unless a folder is new, is empty, or holds only what an earlier export of a front wrote."""
    names = sorted(p.name for p in to.iterdir()) if to.is_dir() else [to.name] * to.exists()
    foreign = sorted(set(names) - _written(to / TABLE))
    if foreign:
        raise UserError(
            f"`to`: {str(to)!r} holds {foreign[0]!r}, which does not belong to an exported front; "
            "accepted: a new folder, an empty one, or an earlier export"
        )
    for name in names:
        if name != TABLE:
            check_replaceable(to / name, "`to`")


def _written(table: Path) -> set[str]:
    """Return the names that an export wrote: its table and the folders in it. Empty without such a table."""
    if not table.is_file():
        return set()
    try:
        folders = pd.read_csv(table, usecols=["folder"], dtype=str).folder.dropna()
    except ValueError:  # another table, or no table
        return set()
    return {TABLE, *(name for name in folders if re.fullmatch(r"trial-\d+", name))}


def show(table: pd.DataFrame, to: Path) -> None:
    """Print the table of an exported front."""
    shown = table.dropna(axis=1, how="all").drop(columns="difference")
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    count = f"{len(table)} network{'s' if len(table) > 1 else ''}"
    print(f"{to}: {count}, {TABLE}; they differ from the trained networks by {table.difference.max():.1g} at most")
