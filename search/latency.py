"""Measure the latency table of a space, once, before a search: `python -m search.latency --space S --out table.json`.

The table has the time of every stem, block and head of the space. Then the latency of a network is a sum: it needs no
device and never changes. Measure on an idle device. The command needs neither Ray nor Optuna.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

import space as spaces
import trainers.datasets.data
from res2net.arch import Arch
from res2net.commands import Parser, run_main
from res2net.deploy.timing import FORMS
from res2net.errors import UserError
from res2net.files import write_atomic
from res2net.latency import COMMAND, LatencyTable
from search.carriers import Plan, missing, plan
from search.measuring import Pace, Target, fit, table_of, timed
from search.units import format_seconds, parse_seconds
from space import Space
from trainers.start import read_arch

FORM = "optimized"
# Beside another measurement, a table of small networks was off by 9.5 % instead of 4.5 % (median).
PROBED, BUSY = 0.3, 20.0  # seconds for which the processor is watched, and % of it that other programs may use
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


def make(
    space: Space,
    form: str = FORM,
    device: str = "cpu",
    batch_size: int = 1,
    threads: int = 1,
    seconds: float | None = None,
    networks: Sequence[Arch] = (),
    console: Console | None = None,
    share: float = 1.0,
) -> LatencyTable:
    """Measure the latency table of a space.

    form: how networks run, one of `FORMS`.
    seconds: the time limit. If it is too short for all blocks, some are measured and the others are interpolated. None:
        no limit.
    share: the part of `seconds` that the work may take. The rest is for a search.
    networks: more networks whose pieces the table must have. They need not be members.
    console: shows the estimate and the progress.

    Raise `UserError` for a wrong value, and if `seconds` is too short for a table that covers the space.
    """
    start = time.monotonic()
    target = Target.of(form, device, batch_size, threads)
    console = console or Console(quiet=True)
    found = plan(space, networks)
    pace = Pace.of(target, found.others or found.first, space.image_size)
    _announce(found, target, pace, seconds, share, console)
    late = None if seconds is None else start + share * seconds
    times, latencies = timed(found, target, pace, late, console)
    table = table_of(target, space.image_size, times)
    rows = [(table.of(arch, space.image_size), ms) for arch, ms in zip(found.whole, latencies, strict=True)]
    overhead, factor = fit(rows)
    return replace(table, overhead=overhead, factor=factor)


def load(path: str | Path) -> LatencyTable:
    """Return the table of a file. Raise `UserError` if the file holds no table."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"latency table {str(path)!r}: {error}; accepted: a file that {COMMAND} wrote") from None
    try:
        return LatencyTable.from_dict(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check(table: LatencyTable, space: Space, networks: Sequence[Arch] = ()) -> None:
    """Raise `UserError` unless the table has the latency of all members of a space, and of more networks."""
    if table.image_size != space.image_size:
        raise UserError(
            f"latency table: image size {table.image_size}; accepted: {space.image_size}, as in space {space.name!r}"
        )
    lacking = missing(table, plan(space, networks).needed)
    if lacking:
        raise UserError(
            f"latency table: {len(lacking)} pieces of space {space.name!r} over base {space.base} are missing, first "
            f"{lacking[0].key!r}; accepted: a table of this space ({COMMAND})"
        )


def _announce(found: Plan, target: Target, pace: Pace, seconds: float | None, share: float, console: Console) -> None:
    """Print how long the work will take, and whether the processor is busy.

    Raise `UserError` if the bound is too short for a table of the space.
    """
    size, pieces = found.image_size, len(found.needed)
    total = pace.seconds(found.archs, found.whole, size)
    if seconds is None or total <= share * seconds:
        text = f"{pieces} pieces in {len(found.archs)} networks: about {format_seconds(total)}"
    else:
        needed = pace.seconds(found.archs[: found.least()], found.whole, size)
        if needed > share * seconds:
            part = f" for a latency table, which may take {share:.0%} of it" if share < 1 else ""
            wanted = f"at least {format_seconds(math.ceil(needed / share))}"
            raise UserError(f"`time`: {format_seconds(seconds)} is too short{part}; accepted: {wanted}")
        text = (
            f"{pieces} pieces would take about {format_seconds(total)}: some are measured within "
            f"{format_seconds(share * seconds)}, the others are interpolated"
        )
    console.print(text, **PLAIN)
    if target.device.type != "cpu" or console.quiet:
        return
    if (used := psutil.cpu_percent(PROBED)) > BUSY:
        warning = f"warning: other programs use {used:.0f} % of the processor; latencies may be off by 10 % and more"
        console.print(warning, **PLAIN)


def build_parser() -> Parser:
    """Return the command's options."""
    parser = Parser(prog=COMMAND, description="Measure the latency table of a space on an idle device.")
    add = parser.add_argument
    add("--space", default="scale_card_depth", metavar="NAME", help=f"{', '.join(spaces.names())}, or a YAML file")
    add("--base", metavar="NAME", help=f"{', '.join(spaces.BASES)}; none: the one that suits the data set")
    add("--per-stage", action="store_true", help="give every stage its own values")
    text = "the data set, which sets classes, channels and image size (default: shapes, at the base's image size)"
    add("--data", metavar="NAME", help=text)
    add("--data-dir", metavar="DIR", help="the folder of the data set's files")
    add("--image-size", type=int, metavar="N", help="side of the images in pixels; none: the data set's")
    add("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N")
    add("--batch-size", type=int, default=1, metavar="N", help="images of a batch")
    add("--form", default=FORM, metavar="NAME", help=f"how networks run: {', '.join(FORMS)}")
    add("--threads", type=int, default=1, metavar="N", help="threads of a CPU")
    add("--networks", default="", metavar="A,B", help="more networks: names (python -m res2net) or arch.json files")
    add("--time", metavar="T", help="measure fewer blocks if all would take longer (90s, 30m); none: no limit")
    add("--out", required=True, type=Path, metavar="FILE", help="the table's file, JSON")
    return parser


def _networks(text: str) -> tuple[Arch, ...]:
    """Return the networks of the option `--networks`. Raise `UserError` for an item that is not a Res2Net."""
    found = []
    for item in filter(None, map(str.strip, text.split(","))):
        try:
            arch, _ = read_arch(item)
        except UserError as error:
            raise UserError(f"`networks`: {error}") from None
        if not isinstance(arch, Arch):
            raise UserError(f"`networks`: {item} is of kind {arch.kind!r}; accepted: a Res2Net")
        found.append(arch)
    return tuple(found)


def _space(args: argparse.Namespace) -> Space:
    """Return the space, with the classes, the image size and the channels of the data set."""
    name = args.data or "shapes"
    dataset = trainers.datasets.data.get(name)
    if args.image_size is not None:
        dataset.check_image_size(args.image_size)
    if args.base is not None and args.base not in spaces.BASES:
        raise UserError(f"`base`: unknown value {args.base!r}; accepted: {', '.join(spaces.BASES)}")
    classes, size, channels = len(trainers.datasets.data.classes_of(name, args.data_dir)), None, None
    if args.data is not None:
        size, channels = trainers.datasets.data.form_of(name, args.data_dir, image_size=args.image_size)
    base = args.base or dataset.base(size)
    return spaces.get(args.space, base, args.per_stage, num_classes=classes, image_size=size, in_channels=channels)


def _main(args: argparse.Namespace) -> None:
    seconds = None if args.time is None else parse_seconds(args.time, "time")
    if not args.out.parent.is_dir():
        raise UserError(f"`out`: no folder {str(args.out.parent)!r}; accepted: a file in an existing folder")
    target = Target.of(args.form, args.device, args.batch_size, args.threads)  # wrong values end before any work
    space, networks = _space(args), _networks(args.networks)
    console = Console()
    start = time.monotonic()
    table = make(space, target.form, args.device, target.batch_size, target.threads, seconds, networks, console)
    write_atomic(args.out, table.to_json())
    took, total = format_seconds(time.monotonic() - start), len(plan(space, networks).needed)
    console.print(f"{args.out}: {len(table.entries)} of {total} pieces measured in {took}; {table.text}", **PLAIN)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
