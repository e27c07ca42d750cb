"""Export a network of a search as an ordinary model folder: `python -m search.export RUN --pick knee --to DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trainers.datasets.data
from res2net.commands import Parser, run_main
from res2net.deploy.export import need_onnx
from res2net.errors import UserError
from res2net.folder import check_replaceable
from search import runs
from search.export_front import export_front, show
from search.included import read_training
from search.int8 import check_int8, int8_of
from search.model_folder import SHOWN, Extras, export
from search.objectives import COSTS
from search.picks import bounds_of, choose, trained
from search.settings import Settings
from search.study.trials import Record
from trainers.datasets.data import Data
from trainers.device import device_of
from trainers.evaluate import evaluate
from trainers.images import source
from trainers.tasks import TASKS


def tested(folder: Path, record: Record, data_dir: str | None) -> float:
    """Return the score (%) of a trial's weights on the test split, by the first metric of the task."""
    run = runs.read(folder)
    settings = Settings.from_dict(run["settings"])
    scope, task = settings.scope, TASKS[settings.scope.task]
    size = run["data"].get("image_size") if trainers.datasets.data.get(scope.data).resizable else None
    classes = tuple(run["data"]["classes"])
    split = trainers.datasets.data.load_test(
        scope.data, data_dir or scope.data_dir, image_size=size, classes=classes, target=task.target
    )
    model, device = trained(folder, record), device_of("auto")
    data = run["data"]
    described = Data(data["name"], classes, split, split, tuple(data["mean"]), tuple(data["std"]), task.target)
    return evaluate(model.to(device), source(split, described, device), task=task)[1]


def build_parser() -> Parser:
    """Return the command's options."""
    parser = Parser(
        prog="python -m search.export",
        description="Export a network of a search as a model folder.",
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the folder of a search (its --out)")
    parser.add_argument("--pick", default="best", help="best or knee of the front, or a trial's number (default: best)")
    parser.add_argument(
        "--under",
        metavar="N",
        help="only networks of at most this cost (100M; 100M,5ms for two objectives; default: no limit)",
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the model folder to write")
    parser.add_argument("--test", action="store_true", help="evaluate on the test split, once, and record the accuracy")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too (needs the extra `onnx`)")
    text = "write model.int8.onnx too, calibrated on training images (needs the extra `onnx`)"
    parser.add_argument("--int8", action="store_true", help=text)
    text = "write every network of the front, each into a folder of its own, and a table front.csv"
    parser.add_argument("--front", action="store_true", help=text)
    text = "the data set's folder, for --test and --int8 (default: the search's)"
    parser.add_argument("--data-dir", metavar="DIR", help=text)
    return parser


def _main(args: argparse.Namespace) -> None:
    under = bounds_of(args.run, args.under)
    if args.onnx or args.int8:
        need_onnx()  # before the test split is read
    if args.int8:
        check_int8(runs.settings_of(args.run).scope, "`int8`")
    if args.front:
        if args.pick != "best":
            raise UserError(f"`pick`: {args.pick} contradicts `front`, which takes all networks; accepted: one of them")
        show(export_front(args.run, args.to, lambda record: _extras(args, record), under), args.to)
        return
    record = choose(args.run, args.pick, under)
    check_replaceable(args.to, "`to`")  # before the test split is read
    if "source" in read_training(args.to):
        raise UserError(f"`to`: {str(args.to)!r} holds a network that trainers.fit trained; accepted: another folder")
    extras = _extras(args, record)
    export(args.run, str(record.number), args.to, extras=extras)
    print(
        f"{args.to}: trial {record.number}, {record.attrs['arch']}, "
        + "".join(f"{COSTS[n].format(record.attrs[n])} {COSTS[n].unit}, " for n in SHOWN)
        + f"{record.quality:.2f} % on the validation split"
        + (f", {extras.test:.2f} % on the test split" if extras.test is not None else "")
        + (f"; {extras.int8.text}" if extras.int8 is not None else "")
    )


def _extras(args: argparse.Namespace, record: Record) -> Extras:
    """Return the extras that the command's options add to an export."""
    test = tested(args.run, record, args.data_dir) if args.test else None
    int8 = None
    if args.int8:
        scope = runs.settings_of(args.run).scope
        data = replace(scope, data_dir=args.data_dir or scope.data_dir).load_data()
        int8 = int8_of(trained(args.run, record), data)
    return Extras(test, args.onnx, int8)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
