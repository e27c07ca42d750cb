"""Measure the networks of a search's front on this device, end to end: `python -m search.measure RUN`.

For each network: the latency of each form and batch size, the peak memory of a batch, and the accuracy in int8 on the
validation images. The values become columns of `pareto.csv`, and the plots show them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from res2net.commands import Parser, run_main
from res2net.deploy.export import need_onnx
from res2net.deploy.memory import peak_of
from res2net.deploy.timing import FORMS, ONNX_FORMS, TORCH_FORMS, check_form, measured, runner
from res2net.errors import UserError, unknown
from res2net.latency import LatencyTable
from search import runs
from search.fields import check_least
from search.int8 import check_int8, int8_of
from search.lock import locked
from search.measured import INT8_TOP1, MEMORY, Measured, column
from search.picks import front_of, ledger_of, trained, weights_of
from search.report.files import write
from search.study.trials import Record
from trainers.datasets.data import Data
from trainers.device import device_of
from trainers.meta import environment
from trainers.tasks import TASKS
from trainers.tasks.task import Task

PROG = "python -m search.measure"
BATCHES, CPU = (1, 8), torch.device("cpu")
INT8_FORM = "onnx-int8"
SHOWN = "optimized"  # the form that plots show, at the first batch size


def measure(
    folder: Path,
    forms: Sequence[str],
    batches: Sequence[int] = BATCHES,
    device: torch.device = CPU,
    threads: int = 1,
    data: Data | None = None,
    console: Console | None = None,
) -> Measured:
    """Measure the front of a run, write the values to its folder, and return them.

    forms: some of `res2net.deploy.timing.FORMS`. data: the data of the search, for the accuracy in int8; None leaves
    the accuracy out. Raise `UserError` for a run without a trained network, and while the search runs.
    """
    for form in forms:
        if form not in FORMS:
            raise unknown("`forms`", form, FORMS)
        check_form(form, device)
    with locked(folder):  # latency is never measured beside running trials
        settings, space = runs.settings_of(folder), runs.space_of(folder)
        records = front_of(folder, ledger_of(folder), ())
        for record in records:
            weights_of(folder, record)
        rows: dict[str, dict[str, float]] = {}
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        bar = Progress(*columns, console=console, disable=console is None)
        with bar:
            task = bar.add_task("measuring", total=len(records) * (len(forms) * len(batches) + 1 + (data is not None)))
            for record in records:
                rows[record.key] = {}
                bar.update(task, description=f"trial {record.number}")
                for name, value in _values(folder, record, forms, batches, device, threads, data):
                    rows[record.key][name] = value
                    bar.advance(task, 0 if name.endswith("_iqr") else 1)
        here = environment()
        gpu = here["hardware"]["gpus"][device.index or 0] if device.type == "cuda" else here["hardware"]["cpu"]
        found = Measured(
            f"{device.type} ({gpu}), {threads} thread{'s' if threads > 1 else ''}",
            here["versions"],
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            _shown(settings.scope.latency, forms, batches),
            rows,
        )
        found.write(folder)
        write(folder, runs.records_of(folder), ledger_of(folder), space, settings)
    return found


def _shown(table: LatencyTable | None, forms: Sequence[str], batches: Sequence[int]) -> str:
    """Return the column for the plots: the latency that the search predicted, if it was measured, else `SHOWN`."""
    if table is not None and table.form in forms and table.batch_size in batches:
        return column(table.form, table.batch_size)
    return column(SHOWN if SHOWN in forms else forms[0], batches[0])


def _values(
    folder: Path,
    record: Record,
    forms: Sequence[str],
    batches: Sequence[int],
    device: torch.device,
    threads: int,
    data: Data | None,
) -> Iterator[tuple[str, float]]:
    """Yield the name and the value of each measurement of a network. Spreads come before their medians."""
    model: nn.Module = trained(folder, record).to(device)
    size = runs.read(folder)["data"].get("image_size", runs.space_of(folder).image_size)
    generator = torch.Generator().manual_seed(0)
    for form in forms:
        for batch in batches:
            images = torch.randn(batch, record.arch.in_channels, size, size, generator=generator).to(device)
            median, spread = measured(runner(model, form, images, threads), threads)
            yield f"{column(form, batch)}_iqr", spread
            yield column(form, batch), median
    # Use a new process: memory that earlier networks have freed would hide the memory that this network needs.
    what = weights_of(folder, record), record.arch, str(device), max(batches), size
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield MEMORY, pool.submit(peak_of, *what).result()
    if data is not None:
        yield INT8_TOP1, int8_of(model.cpu(), data).top1


def build_parser() -> Parser:
    """Return the command's options."""
    parser = Parser(
        prog=PROG,
        description="Measure the networks of a search's front on this device: latency, memory, accuracy in int8.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a search (its --out)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N (default: auto)")
    known = ", ".join(FORMS)
    text = f"how networks run: {known} (default: all that the device, the packages and the task allow)"
    parser.add_argument("--forms", nargs="+", metavar="NAME", help=text)
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=list(BATCHES), metavar="N", help="images together"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="cores that a network uses (default: 1)")
    text = "the data set's folder, for the accuracy in int8 (default: the search's)"
    parser.add_argument("--data-dir", metavar="DIR", help=text)
    return parser


def _main(args: argparse.Namespace) -> None:
    for name, value in (("threads", args.threads), *(("batch_sizes", n) for n in args.batch_sizes)):
        check_least(name, value)
    device, console = device_of(args.device), Console()
    scope, data = runs.settings_of(args.run).scope, None
    forms = args.forms or _forms(device, TASKS[scope.task])
    if INT8_FORM in forms:
        check_int8(scope, f"`forms`: {INT8_FORM}")
        data = replace(scope, data_dir=args.data_dir or scope.data_dir).load_data(console)
    found = measure(args.run, forms, args.batch_sizes, device, args.threads, data, console)
    by_key = {record.key: record for record in ledger_of(args.run).front}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("front", "form", *(f"ms, batch {batch}" for batch in args.batch_sizes)):
        table.add_column(name, justify="right" if name.startswith("ms") else "left", no_wrap=True)
    for key, row in found.rows.items():
        for form in forms:
            values = (f"{row[column(form, batch)]:.3g}" for batch in args.batch_sizes)
            table.add_row(f"trial {by_key[key].number}" if form == forms[0] else "", form, *values)
        table.add_row("", "peak memory", f"{row[MEMORY]:.3g} MB")
        if data is not None:
            table.add_row("", "top-1 in int8", f"{row[INT8_TOP1]:.2f} %")
    console.print(table)
    text = f"{found.device}; ms: medians of whole batches; columns of {args.run}/pareto.csv"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _forms(device: torch.device, task: Task) -> list[str]:
    """Return the forms that the device and the installed packages have for networks of a task."""
    found: list[str] = list(TORCH_FORMS)
    if device.type == "cpu" and not task.detects:  # ONNX files cannot have a varying number of outputs
        with contextlib.suppress(UserError):
            need_onnx()
            found += ONNX_FORMS
    return [form for form in found if task.name == "classification" or form != INT8_FORM]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_main(_main, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
