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
from res2net.deploy.export import export_onnx, need_onnx
from res2net.errors import Parser, UserError, run_main
from res2net.files import write_atomic, write_folder
from res2net.folder import ARCH_FILE, CARD_FILE, ONNX_FILE, TRAINING_FILE, WEIGHTS_FILE, check_replaceable, load
from search import runs
from search.front import front, knee
from search.settings import Settings
from search.study.study import ESTIMATED, SCORED, Record, arch_of, read, where
from search.units import format_count, parse_count
from trainers.card import code, machine, model_card
from trainers.datasets.data import Data
from trainers.device import device_of
from trainers.evaluate import evaluate
from trainers.images import Images


def front_of(folder: Path, estimates: bool = False) -> list[Record]:
    """The front of a run's folder, cheapest first: of trained networks, or of `estimates` by shared weights."""
    outcome, epochs = (ESTIMATED, 0) if estimates else (SCORED, runs.settings_of(folder).epochs)
    records = [r for r in _records(folder) if r.outcome == outcome and r.attrs["epochs"] == epochs]
    if not records:
        raise UserError(f"run folder {str(folder)!r}: no trial has its full budget yet; accepted: a run with one")
    return [records[i] for i in front([r.val_top1 or 0.0 for r in records], [r.macs for r in records])]


def _records(folder: Path) -> list[Record]:
    settings = runs.settings_of(folder)
    return list(read(folder, settings.storage, settings.study))


def choose(folder: Path, pick: str, under: int | None = None) -> Record:
    """The trial that `pick` names: `best` or `knee` of the front (within `under` MACs), or a trial's number."""
    if pick not in ("best", "knee"):
        if under is not None:
            raise UserError(f"--under: says nothing with --pick {pick}; accepted: with best or knee")
        return _numbered(folder, pick)
    records = front_of(folder)
    within = [r for r in records if under is None or r.macs <= under]
    if not within:
        raise UserError(f"--under: nothing on the front has {under} MACs; accepted: {records[0].macs} or more")
    if pick == "best":
        return within[-1]
    return within[knee([r.val_top1 or 0.0 for r in within], [r.macs for r in within])]


def _numbered(folder: Path, pick: str) -> Record:
    scored = {str(r.number): r for r in _records(folder) if r.outcome == SCORED}
    if pick not in scored:
        shown = ", ".join(scored) or "none yet"
        raise UserError(f"--pick: {pick!r} is not a scored trial; accepted: best, knee, or one of {shown}")
    return scored[pick]


def export(
    folder: Path, pick: str, to: Path, under: int | None = None, test_top1: float | None = None, onnx: bool = False
) -> Record:
    """Write the model folder of a trial: `arch.json`, `model.safetensors`, `training.json`, a model card.

    With `onnx` also `model.onnx`, for images of the size that it was trained on and a batch of any size.
    """
    record = choose(folder, pick, under)
    weights = _weights(folder, record)
    check_replaceable(to, "--to")
    run = runs.read(folder)
    training = _training(run, record, test_top1)

    def fill(temporary: Path) -> None:
        write_atomic(temporary / ARCH_FILE, arch_of(record).to_json())
        write_atomic(temporary / WEIGHTS_FILE, weights.read_bytes())
        write_atomic(temporary / TRAINING_FILE, json.dumps(training, indent=2) + "\n")
        write_atomic(temporary / CARD_FILE, card(record, run, training))
        model = load(temporary)  # refuses weights that do not fit before they take a name
        if onnx:
            pixels = run["data"].get("image_size", runs.space_of(folder).image_size)  # earlier runs lack it
            export_onnx(model, temporary / ONNX_FILE, image_size=pixels)

    write_folder(to, fill)
    return record


def _weights(folder: Path, record: Record) -> Path:
    """The file of a trial's weights; `UserError` if it is gone."""
    path = runs.weights_path(folder, record.number)
    settings = runs.settings_of(folder)
    if not path.is_file() and settings.storage:
        there = where(settings.storage, settings.study or "", record)
        raise UserError(
            f"--pick: the weights of trial {record.number} are where it was trained, in {there['folder']!r} on "
            f"{there['host']}; accepted: that folder there, or a trial of this one's"
        )
    if not path.is_file():
        raise UserError(
            f"--pick: the weights of trial {record.number} are not in {str(path.parent)!r} (those of dominated "
            f"networks go first where they take over 2 GiB); accepted: best, knee, or a trial of the front"
        )
    return path


def _training(run: dict[str, Any], record: Record, test_top1: float | None) -> dict[str, Any]:
    session = run["sessions"][record.attrs.get("session", -1)]  # earlier runs did not say which
    return {
        "trial": record.number,
        "val_top1": record.val_top1,
        "test_top1": test_top1,
        "macs": record.macs,
        "params": record.attrs["params"],
        "epochs": record.attrs["epochs"],
        "seconds": record.attrs["seconds"],
        "data": run["data"],
        "settings": run["settings"],
        "versions": session["versions"],
        "hardware": session["hardware"],
        "commit": session["commit"],
    }


def card(record: Record, run: dict[str, Any], training: dict[str, Any]) -> str:
    """The model card: what it is, what it scored and how, and how to use it."""
    data, tested = run["data"], training["test_top1"]
    settings = Settings.from_dict(run["settings"])
    sampler = f"{settings.sampler}, seed {settings.seed}"
    budget = f"{record.attrs['epochs']} epochs of {data['train_images']:,} images"
    rows = [
        ("top-1, validation split", f"{record.val_top1:.2f} % (n = 1, {data['val_images']:,} images, last epoch)"),
        *([("top-1, test split", f"{tested:.2f} %")] if tested is not None else []),
        ("multiply-accumulates", f"{record.macs:,}"),
        ("parameters", f"{record.attrs['params']:,}"),
        ("trained", f"{budget}, batch {settings.batch_size}, lr {settings.final_lr:g}"),
        *([("started from", "weights that all networks of the space share")] if settings.tunes else []),
        ("search", f"{sampler}, the best of many: its validation accuracy is optimistic"),
        ("hardware", machine(training)),
        ("code", code(training)),
    ]
    story = f"A Res2Net found by searching the space `{run['space']['name']}` on `{data['name']}`"
    return model_card(arch_of(record), f"{story} (trial {record.number}).", rows, data)


def tested(folder: Path, record: Record, data_dir: str | None) -> float:
    """Top-1 (%) of a trial's weights on the test split."""
    from res2net.model import create

    run = runs.read(folder)
    settings = Settings.from_dict(run["settings"])
    resizable = trainers.datasets.data.get(settings.data).resizable
    size = run["data"].get("image_size") if resizable else None
    classes = tuple(run["data"]["classes"])
    there = data_dir or settings.data_dir
    split = trainers.datasets.data.load_test(settings.data, there, image_size=size, classes=classes)
    model = create(arch_of(record))
    model.load_state_dict(safetensors.torch.load_file(_weights(folder, record)))
    device = device_of("auto")
    data = run["data"]
    described = Data(data["name"], classes, split, split, tuple(data["mean"]), tuple(data["std"]))
    return evaluate(model.to(device), Images(split, described, device))[1]


def build_parser() -> Parser:
    parser = Parser(prog="python -m search.export", description="Export a network of a search as a model folder.")
    parser.add_argument("run", type=Path, help="the folder of a search (its --out)")
    parser.add_argument("--pick", default="best", help="best or knee of the front, or a trial's number")
    parser.add_argument("--under", metavar="MACS", help="only networks of at most so many MACs (100M)")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the model folder to write")
    parser.add_argument("--test", action="store_true", help="read the test split, once, and write the accuracy down")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too (needs the extra `onnx`)")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set is, for --test, if not where it was")
    return parser


def _main(args: argparse.Namespace) -> None:
    under = parse_count(args.under, "--under") if args.under else None
    if args.onnx:
        need_onnx()  # said before the test split is read
    record = choose(args.run, args.pick, under)
    check_replaceable(args.to, "--to")  # before the test split is read
    test_top1 = tested(args.run, record, args.data_dir) if args.test else None
    export(args.run, str(record.number), args.to, test_top1=test_top1, onnx=args.onnx)
    print(
        f"{args.to}: trial {record.number}, {record.attrs['arch']}, {format_count(record.macs)} MACs, "
        f"{format_count(record.attrs['params'])} params, {record.val_top1:.2f} % on the validation split"
        + (f", {test_top1:.2f} % on the test split" if test_top1 is not None else "")
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
