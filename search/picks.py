"""Pick networks of a finished or running search: by name, by number, or within a cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from torch import nn

from res2net.errors import UserError
from res2net.factory import create
from search import runs
from search.ledger import Ledger
from search.study.storage import home_of
from search.study.trials import SCORED, Record


def ledger_of(folder: Path) -> Ledger:
    """Return the ledger of a run."""
    return Ledger.of(runs.settings_of(folder).rules, runs.records_of(folder))


def choose(folder: Path, pick: str, under: Sequence[float] = ()) -> Record:
    """Return the picked trial.

    pick: `best` or `knee` of the front, or a trial's number.
    under: the greatest value allowed for `best` and `knee`, of each cost objective of the search.
    """
    books = ledger_of(folder)
    if pick not in ("best", "knee"):
        if under:
            raise UserError(f"`under`: has no effect with `pick` {pick}; accepted: with best or knee")
        return _numbered(books, pick)
    records = front_of(folder, books, under)
    return max(records, key=lambda r: r.quality or 0.0) if pick == "best" else books.knee(records)


def front_of(folder: Path, books: Ledger, under: Sequence[float]) -> list[Record]:
    """Return the front of a run, cheapest first. under: see `choose`. Raise `UserError` if it is empty."""
    if not books.trained:
        raise UserError(f"run folder {str(folder)!r}: no trial has its full budget yet; accepted: a run that has one")
    within = [r for r in books.front if not under or all(a <= b for a, b in zip(books.costs(r), under, strict=True))]
    if not within:
        wanted, least = (",".join(f"{v:.15g}" for v in values) for values in (under, books.costs(books.front[0])))
        units = ", ".join(o.unit for o in books.rules.costs)
        raise UserError(f"`under`: nothing on the front is within {wanted} ({units}); accepted: {least} or more")
    return within


def bounds_of(folder: Path, text: str | None) -> tuple[float, ...]:
    """Return the values of the option `under`: one for each cost objective of a search, separated by commas."""
    if text is None:
        return ()
    objectives, items = ledger_of(folder).rules.costs, text.split(",")
    if len(items) != len(objectives):
        names = ",".join(o.name for o in objectives)
        raise UserError(f"`under`: {text!r} has {len(items)} values; accepted: one for each objective ({names})")
    return tuple(o.parse(item, "under") for o, item in zip(objectives, items, strict=True))


def _numbered(books: Ledger, pick: str) -> Record:
    scored = {str(r.number): r for r in books.history if r.outcome == SCORED}
    if pick not in scored:
        shown = ", ".join(sorted(scored, key=int)) or "none yet"
        raise UserError(f"`pick`: {pick!r} is not a scored trial; accepted: best, knee, or one of {shown}")
    return scored[pick]


def weights_of(folder: Path, record: Record) -> Path:
    """Return the file of a trial's weights; raise `UserError` if it is gone."""
    path = runs.weights_path(folder, record.number)
    where = runs.settings_of(folder).resources
    if not path.is_file() and where.storage:
        there = home_of(where.storage, where.study or "", record)
        raise UserError(
            f"`pick`: the weights of trial {record.number} are where it was trained, in {there['folder']!r} on "
            f"{there['host']}; accepted: export from that folder, or another trial"
        )
    if not path.is_file():
        raise UserError(
            f"`pick`: the weights of trial {record.number} are not in {str(path.parent)!r} (weights of "
            f"dominated networks are deleted first, beyond 2 GiB in all); accepted: best, knee, or a trial of the front"
        )
    return path


def trained(folder: Path, record: Record) -> nn.Module:
    """Return the network of a trial with its weights, in eval mode."""
    model = create(record.arch)
    model.load_state_dict(safetensors.torch.load_file(weights_of(folder, record)))
    return model.eval()
