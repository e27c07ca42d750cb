"""Train the weights that all networks of a space share: `python -m search.supernet --out DIR`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from res2net.commands import Parser, run_main
from res2net.options import add_options, fields_of, written
from search.groups import Scope, Scoring
from search.settings import Settings
from search.shared_weights import PROG, train
from trainers.ddp import joined

SCOPE = ("space", "base", "per_stage", "data", "data_dir", "task", "train_images", "image_size", "seed")
SCORING = ("batch_size", "lr")


def build_parser() -> Parser:
    """Return the command's options: the settings of a search that decide the shared weights."""
    parser = Parser(prog=PROG, description="Train the weights that all networks of a space share.")
    add_options(parser, fields_of(Scope, SCOPE))
    epochs = Scoring().supernet_epochs
    parser.add_argument("--epochs", type=int, default=epochs, metavar="N", help="epochs to train in all")
    add_options(parser, fields_of(Scoring, SCORING))
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="the folder to write; the same command resumes there",
    )
    return parser


def _main(args: argparse.Namespace) -> int:
    options = vars(args)
    out = options.pop("out")
    settings = Settings(evaluator="supernet", **options)
    with joined("auto") as (group, device):
        console = Console(quiet=group.rank > 0)
        data = settings.scope.load_data(console)
        space = settings.scope.get_space(data.num_classes, data.image_size, data.in_channels)
        try:
            train(settings.scope, settings.scoring, space, data, out, console, group, device)
        except KeyboardInterrupt:
            text = f"interrupted; the same command resumes after the last whole epoch in {out}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
            return 130
    # Repeat the space, the data set and the seed: a search with other values would refuse these weights.
    search = ["python", "-m", "search.run", "--evaluator", "supernet", "--supernet", str(out)]
    text = f"search with it: {shlex.join([*search, *written(settings.values(), SCOPE)])}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
