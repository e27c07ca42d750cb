"""Export a network of a search as an ordinary model folder: `python -m search.export RUN --pick knee --to DIR`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

import trainers.datasets.data
from res2net.commands import Parser, run_main
from res2net.deploy.export import export_onnx, need_onnx
from res2net.errors import UserError
from res2net.factory import create
from res2net.files import write_atomic, write_folder
from res2net.folder import ARCH_FILE, CARD_FILE, ONNX_FILE, TRAINING_FILE, WEIGHTS_FILE, check_replaceable, load
from search import runs
from search.included import FOLDER as INCLUDED
from search.included import SEEN, read_training, seen
from search.ledger import REUSED, Ledger
from search.objectives import COSTS, MACS, PARAMS
from search.settings import Settings
from search.study.storage import home_of
from search.study.trials import SCORED, Record
from search.units import parse_count
from trainers.card import code, machine, model_card
from trainers.datasets.data import Data
from trainers.device import device_of
from trainers.evaluate import evaluate
from trainers.images import source

SHOWN = (MACS.name, PARAMS.name)  # costs on the model card and in `training.json`


def ledger_of(folder: Path) -> Ledger:
    """Return the ledger of a run."""
    return Ledger.of(runs.settings_of(folder).rules, runs.records_of(folder))


def choose(folder: Path, pick: str, under: float | None = None) -> Record:
    """Return the picked trial.

    pick: `best` or `knee` of the front, or a trial's number. under: the greatest cost allowed for `best` and `knee`.
    """
    books = ledger_of(folder)
    if pick not in ("best", "knee"):
        if under is not None:
            raise UserError(f"`under`: has no effect with `pick` {pick}; accepted: with best or knee")
        return _numbered(books, pick)
    if not books.trained:
        raise UserError(f"run folder {str(folder)!r}: no trial has its full budget yet; accepted: a run that has one")
    records, unit = books.front, books.rules.objective.unit
    within = [r for r in records if under is None or books.cost(r) <= under]
    if not within:
        least = books.cost(records[0])
        raise UserError(f"`under`: nothing on the front has {under} {unit}; accepted: {least} or more")
    return within[-1] if pick == "best" else books.knee(within)


def _numbered(books: Ledger, pick: str) -> Record:
    scored = {str(r.number): r for r in books.history if r.outcome == SCORED}
    if pick not in scored:
        shown = ", ".join(sorted(scored, key=int)) or "none yet"
        raise UserError(f"`pick`: {pick!r} is not a scored trial; accepted: best, knee, or one of {shown}")
    return scored[pick]


def export(
    folder: Path, pick: str, to: Path, under: float | None = None, test_top1: float | None = None, onnx: bool = False
) -> Record:
    """Write the model folder of a trial: `arch.json`, `model.safetensors`, `training.json`, a model card.

    onnx: also write `model.onnx`, which accepts any batch size and images of the training size.
    """
    record = choose(folder, pick, under)
    weights = _weights(folder, record)
    check_replaceable(to, "`to`")
    run = runs.read(folder)
    training = training_of(run, record, test_top1)
    settings = runs.settings_of(folder)
    copies = (folder / INCLUDED).glob(f"*/{WEIGHTS_FILE}")
    cautious = any(seen(read_training(path.parent), settings, run["data"]["name"]) for path in copies)

    def fill(temporary: Path) -> None:
        write_atomic(temporary / ARCH_FILE, record.arch.to_json())
        write_atomic(temporary / WEIGHTS_FILE, weights.read_bytes())
        write_atomic(temporary / TRAINING_FILE, json.dumps(training, indent=2) + "\n")
        write_atomic(temporary / CARD_FILE, card(record, run, training, SEEN if cautious else ""))
        model = load(temporary)  # refuses weights that do not fit, before the folder gets its name
        if onnx:
            pixels = run["data"].get("image_size", runs.space_of(folder).image_size)  # early runs lack the size
            export_onnx(model, temporary / ONNX_FILE, image_size=pixels)

    write_folder(to, fill)
    return record


def _weights(folder: Path, record: Record) -> Path:
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


def training_of(run: dict[str, Any], record: Record, test_top1: float | None) -> dict[str, Any]:
    """Return the content of `training.json` for a trial. run: the content of `run.json`."""
    # Records of early runs lack the session: take the last one.
    session = record.attrs.get(REUSED) or run["sessions"][record.attrs.get("session", -1)]
    return {
        "trial": record.number,
        "val_top1": record.val_top1,
        "val_top1_of_seeds": list(record.seeds),
        "test_top1": test_top1,
        **{name: record.attrs[name] for name in SHOWN},
        "epochs": record.attrs["epochs"],
        "inherited": record.attrs.get("inherited", 0),
        "seconds": record.attrs["seconds"],
        "data": run["data"],
        "settings": run["settings"],
        "versions": session["versions"],
        "hardware": session["hardware"],
        "commit": session["commit"],
    }


def card(record: Record, run: dict[str, Any], training: dict[str, Any], caution: str = "") -> str:
    """Return the model card: the network, its score, its training and its use. caution: follows its origin."""
    data, tested = run["data"], training["test_top1"]
    settings = Settings.from_dict(run["settings"])
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
    rows = [
        ("top-1, validation split", f"{record.val_top1:.2f} % ({seeds}, {data['val_images']:,} images, last epoch)"),
        *([("top-1, test split", f"{tested:.2f} %")] if tested is not None else []),
        *((COSTS[name].label.removesuffix(" of one image"), f"{record.attrs[name]:,}") for name in SHOWN),
        ("trained", f"{budget}, batch {settings.scoring.batch_size}, lr {settings.evaluator.lr_of(record):g}"),
        *([("started from", origin + caution)] if origin else []),
        ("search", f"{sampler}, the best of many: its validation accuracy is optimistic"),
        ("hardware", machine(training)),
        ("code", code(training)),
    ]
    story = f"A Res2Net found by searching the space `{run['space']['name']}` on `{data['name']}`"
    return model_card(record.arch, f"{story} (trial {record.number}).", rows, data)


def tested(folder: Path, record: Record, data_dir: str | None) -> float:
    """Return the top-1 accuracy (%) of a trial's weights on the test split."""
    run = runs.read(folder)
    settings = Settings.from_dict(run["settings"])
    scope = settings.scope
    size = run["data"].get("image_size") if trainers.datasets.data.get(scope.data).resizable else None
    classes = tuple(run["data"]["classes"])
    split = trainers.datasets.data.load_test(scope.data, data_dir or scope.data_dir, image_size=size, classes=classes)
    model = create(record.arch)
    model.load_state_dict(safetensors.torch.load_file(_weights(folder, record)))
    device = device_of("auto")
    data = run["data"]
    described = Data(data["name"], classes, split, split, tuple(data["mean"]), tuple(data["std"]))
    return evaluate(model.to(device), source(split, described, device))[1]


def build_parser() -> Parser:
    """Return the command's options."""
    parser = Parser(
        prog="python -m search.export",
        description="Export a network of a search as a model folder.",
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the folder of a search (its --out)")
    parser.add_argument("--pick", default="best", help="best or knee of the front, or a trial's number (default: best)")
    parser.add_argument("--under", metavar="N", help="only networks of at most this cost (100M; default: no limit)")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the model folder to write")
    parser.add_argument("--test", action="store_true", help="evaluate on the test split, once, and record the accuracy")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too (needs the extra `onnx`)")
    parser.add_argument("--data-dir", metavar="DIR", help="the data set's folder, for --test (default: the search's)")
    return parser


def _main(args: argparse.Namespace) -> None:
    under = parse_count(args.under, "under") if args.under else None
    if args.onnx:
        need_onnx()  # before the test split is read
    record = choose(args.run, args.pick, under)
    check_replaceable(args.to, "`to`")  # before the test split is read
    test_top1 = tested(args.run, record, args.data_dir) if args.test else None
    export(args.run, str(record.number), args.to, test_top1=test_top1, onnx=args.onnx)
    print(
        f"{args.to}: trial {record.number}, {record.attrs['arch']}, "
        + "".join(f"{COSTS[n].format(record.attrs[n])} {COSTS[n].unit}, " for n in SHOWN)
        + f"{record.val_top1:.2f} % on the validation split"
        + (f", {test_top1:.2f} % on the test split" if test_top1 is not None else "")
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
