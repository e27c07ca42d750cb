"""Kill one of several drivers of a study in PostgreSQL; count lost, doubled, unfinished and surplus trials.

    python -m tests.stress.many_drivers --drivers 3

Each driver is a process of `search.run` that trains tiny networks on a few images. One driver gets SIGKILL in the
middle of a trial and is started again in its folder, while the others continue. The exit code is 1 if a count is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from res2net.commands import Parser, run_main
from res2net.errors import UserError
from search import runs
from search.study.storage import home_of, read
from search.study.trials import FAILED, ORPHAN, SCORED, Record
from studies.bench import check_positive, first_line
from studies.synthetic import TINY_SPACE

from .postgres import server

PROG = "python -m tests.stress.many_drivers"
STUDY = "many"
# 48 networks of well below a million MACs.
SPACE = TINY_SPACE.replace("defaults:\n  width: 64", "  width: [32, 48, 64, 80]")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the counts; return 1 if one of them is not 0."""
    return run_main(bench, parser, argv)


def bench(args: argparse.Namespace) -> int:
    """Run the command."""
    check_positive(args, "drivers", "trials", "seconds")
    with contextlib.ExitStack() as stack:
        url = args.storage or stack.enter_context(server()).url
        folder = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="many-")))
        begun = time.monotonic()
        records = search(folder, url, args.drivers, args.trials, begun + args.seconds)
        found, each = counts(records, args.trials), Counter(r.attrs["driver"] for r in records if r.outcome == SCORED)
        print(f"{args.drivers} drivers, one killed: {len(records)} trials, {time.monotonic() - begun:.0f} s")
        print(f"scored by each session: {', '.join(str(n) for n in each.values())}")
        print(", ".join(f"{name}: {n}" for name, n in found.items()))
    return int(any(found.values()))


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--drivers", type=int, default=3, metavar="N", help="concurrent drivers")
    out.add_argument("--trials", type=int, default=24, metavar="N", help="trials of all drivers, at most 48")
    out.add_argument("--storage", metavar="URL", help="database (default: a temporary server)")
    out.add_argument("--out", type=Path, metavar="DIR", help="parent of the drivers' folders (default: temporary)")
    out.add_argument("--seconds", type=int, default=900, metavar="S", help="time limit of all drivers")
    return out


def search(folder: Path, url: str, drivers: int, trials: int, deadline: float) -> list[Record]:
    """Run all drivers to their end, killing one; return the study's records."""
    folder.mkdir(parents=True, exist_ok=True)
    space = folder / "space.yaml"
    space.write_text(SPACE)
    options = f"--executor local --workers 1 --trials {trials} --epochs 2 --train-images 200 --batch-size 20".split()
    options += ["--space", str(space), "--storage", url, "--study", STUDY]
    processes = [start(folder / str(i), options) for i in range(drivers)]
    try:
        while not (victim := busy(folder, url)) or processes[victim[0]].poll() is not None:
            if time.monotonic() > deadline or all(p.poll() is not None for p in processes):
                raise UserError(f"drivers: none was in a trial before the time limit: {errors(processes)}")
            time.sleep(0.1)
        processes[victim[0]].send_signal(signal.SIGKILL)
        processes[victim[0]].wait()
        print(f"killed: driver {victim[0]} in trial {victim[1]}", flush=True)
        processes[victim[0]] = start(folder / str(victim[0]), options)
        for process in processes:
            process.wait(max(1.0, deadline - time.monotonic()))
        if any(p.returncode for p in processes):
            raise UserError(f"drivers: {errors(processes)}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return list(read(folder, url, STUDY))


def start(out: Path, options: list[str]) -> subprocess.Popen:
    """Start a driver with its own folder."""
    command = [sys.executable, "-m", "search.run", *options, "--out", str(out)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)


def busy(folder: Path, url: str) -> tuple[int, int] | None:
    """Return a training driver and its trial's number, once three trials are scored; None before."""
    if not any((path / runs.RUN_FILE).exists() for path in folder.iterdir()):
        return None
    with contextlib.suppress(UserError):  # the study is not there yet
        records = list(read(folder, url, STUDY))
        training = [r for r in records if r.state == "RUNNING" and r.epochs]
        if training and sum(r.outcome == SCORED for r in records) >= 3:
            return driver_of(folder, url, training[0]), training[0].number
    return None


def driver_of(folder: Path, url: str, record: Record) -> int:
    """Return the index of the driver that runs a trial."""
    return int(Path(home_of(url, STUDY, record)["folder"]).name)


def errors(processes: list[subprocess.Popen]) -> str:
    """Return the stderr of the processes that have ended."""
    return "; ".join(p.communicate()[1].strip() or "no error" for p in processes if p.poll() is not None)


def counts(records: list[Record], trials: int) -> dict[str, int]:
    """Return the counts that must be 0.

    lost: orphaned trials without a retry, and missing trials. doubled: networks scored twice.
    """
    retried = {r.attrs.get("retry_of") for r in records}
    scores = Counter(r.key for r in records if r.outcome == SCORED)
    spent = sum(r.outcome in (SCORED, FAILED) for r in records)
    return {
        "lost": sum(r.outcome == ORPHAN and r.number not in retried for r in records) + max(0, trials - spent),
        "doubled": sum(n - 1 for n in scores.values()),
        "left running or waiting": sum(r.state in ("RUNNING", "WAITING") for r in records),
        "beyond --trials": max(0, spent - trials),
    }


if __name__ == "__main__":
    sys.exit(main())
