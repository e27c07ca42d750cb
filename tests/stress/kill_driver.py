"""Kill a search again and again, let it finish, and count losses and damage: all counts must be 0.

    python -m tests.stress.kill_driver --kills 50
    python -m tests.stress.kill_driver --kills 20 --what worker --executor tune

Real searches on `shapes` run in a process group of their own, which gets SIGKILL at a random moment. Half of the
moments count from the start of the process, half from the opening of the run, so that starts, trainings and writes are
hit. At each kill the study is read from a copy; in the end every record must still be there. Networks are small and
images few, so that a trial takes seconds. Linux only: it finds processes in /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import safetensors.torch
from PIL import Image
from rich.console import Console

import res2net
from res2net.commands import Parser, run_main
from res2net.errors import UserError
from search import runs
from search.checkpoints import CHECKPOINTS
from search.picks import ledger_of
from search.report.progress import front_table
from search.resources import EXECUTORS
from search.study.storage import STUDY_FILE, read
from search.study.trials import FAILED, INFEASIBLE, ORPHAN, REPEATED, SCORED, Record
from search.units import format_seconds
from studies.bench import check_positive, first_line

PROG = "python -m tests.stress.kill_driver"
MARK = "RES2NET_KILL_DRIVER"  # environment variable; finds every process of a search, also those outside its group
GRACE = 15.0  # seconds for Ray's processes to notice that their driver is gone
TRANSIENT = (ORPHAN, "running", "waiting")  # outcomes of a trial whose network must be tried again


@dataclass(slots=True)
class Seen:
    """Records seen at any kill: scored networks with their accuracy, and all proposed networks."""

    ended: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    def add(self, records: Sequence[Record]) -> None:
        """Add the records at a kill."""
        for r in records:
            if r.key:  # a trial has no network if the kill came before its description
                self.asked.add(r.key)
            if r.outcome == SCORED:
                self.ended[r.key] = (r.outcome, r.quality)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the counts; return 1 if one of them is not 0."""
    return run_main(study, parser, argv)


def study(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    check_positive(args, "trials", "epochs", "train_images")
    if args.what not in ("driver", "worker"):
        raise UserError(f"`what`: {args.what!r}; accepted: driver, worker")
    if args.executor not in EXECUTORS:
        raise UserError(f"`executor`: {args.executor!r}; accepted: {', '.join(EXECUTORS)}")
    if args.what == "worker" and args.executor != "tune":
        raise UserError("`what`: 'worker'; accepted: with `executor` tune, whose workers are processes")
    begun, rng = time.monotonic(), random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        folder = args.out or Path(temporary) / "run"
        options = ["--out", str(folder), "--space", args.space, "--train-images", str(args.train_images)]
        options += ["--epochs", str(args.epochs), "--scheduler", args.scheduler, "--executor", args.executor]
        options += ["--max-macs", args.max_macs]
        options += ["--seed", str(args.seed), *(["--workers", str(args.workers)] if args.workers else [])]
        seen, kills, left = Seen(), Counter(), Counter()
        trials = args.trials
        while sum(kills.values()) < args.kills:
            search = Search([*options, "--trials", str(trials)])
            kill = kill_workers if args.what == "worker" else kill_driver
            ended = kill(search, folder, rng, args.within, args.kills, kills)
            left.update(search.leftovers())
            seen.add(records_of(folder))
            trials += args.trials // 4 if ended else 0  # the search ended before it was killed often enough
            print(f"{sum(kills.values())}/{args.kills} kills, {len(seen.ended)} of {trials} trials", flush=True)
        search = Search([*options, "--trials", str(trials)])
        code = search.process.wait()
        left.update(search.leftovers())
        counts = count(folder, seen, trials) | {"processes left behind": sum(left.values()), "exit code": code}
        show(folder, counts, kills, time.monotonic() - begun)
    return int(any(counts.values()))


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--kills", type=int, default=50, metavar="N", help="number of kills")
    out.add_argument("--what", default="driver", help="driver (its process group), or worker (of Ray)")
    out.add_argument("--within", type=float, default=12, metavar="S", help="longest wait for a kill")
    out.add_argument("--executor", default="local", help=", ".join(EXECUTORS))
    out.add_argument("--workers", type=int, metavar="N", help="concurrent trials of tune (default: as many as fit)")
    out.add_argument("--trials", type=int, default=36, metavar="N", help="trials, and a quarter more after each end")
    out.add_argument("--epochs", type=int, default=4, metavar="N", help="epochs of a trial")
    out.add_argument("--train-images", type=int, default=200, metavar="N", help="training images")
    out.add_argument("--space", default="scale_card_depth_width", help="name of a space, or a YAML file")
    out.add_argument("--max-macs", default="2M", metavar="N", help="limit of a network's MACs")
    out.add_argument("--scheduler", default="none", help="scheduler of the search")
    out.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the search and of the moments")
    out.add_argument("--out", type=Path, metavar="DIR", help="a new folder for the run (default: a temporary one)")
    return out


class Search:
    """A search in a process group of its own, and all processes that it starts."""

    def __init__(self, options: Sequence[str]) -> None:
        self.mark = f"{MARK}={os.getpid()}-{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search.run", *options],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {name: value},
        )

    def processes(self) -> dict[int, str]:
        """Return the names of the search's living processes, by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
            except OSError:  # the process ended while it was read
                continue
        return found

    def kill(self) -> None:
        """Send SIGKILL to the group. Processes outside the group must notice by themselves."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def leftovers(self) -> Counter[str]:
        """Kill the processes that outlive the search by `GRACE` seconds; return them."""
        deadline = time.monotonic() + GRACE
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for number in found:
            os.kill(number, signal.SIGKILL)
        return Counter(found.values())


def kill_driver(
    search: Search, folder: Path, rng: random.Random, within: float, most: int, kills: Counter[str]
) -> bool:
    """Kill the search at a random moment; return whether it ended before."""
    before, origin = opened(folder), rng.choice(("start", "open"))
    seconds = rng.uniform(1, within)
    while origin == "open" and opened(folder) == before and search.process.poll() is None:
        time.sleep(0.05)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and search.process.poll() is None:
        time.sleep(0.01)
    if search.process.poll() is not None:
        check(search)
        return True
    kills["before it opened its run" if opened(folder) == before else "after it opened its run"] += 1
    search.kill()
    return False


def kill_workers(
    search: Search, folder: Path, rng: random.Random, within: float, most: int, kills: Counter[str]
) -> bool:
    """Kill one worker after another until `most` kills; wait for the search's end. Return True."""
    while sum(kills.values()) < most:
        # Trials may be over in less than a second.
        seconds = rng.uniform(0, 1) if rng.random() < 0.5 else rng.uniform(1, within)
        while not _workers(search) and search.process.poll() is None:
            time.sleep(0.05)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and search.process.poll() is None:
            time.sleep(0.05)
        if search.process.poll() is not None:
            break
        if busy := _workers(search):
            os.kill(rng.choice(sorted(busy)), signal.SIGKILL)
            kills["of workers"] += 1
    search.process.wait()
    check(search)
    return True


def _workers(search: Search) -> list[int]:
    """Return the ids of the processes that run trials in Ray."""
    return [n for n, name in search.processes().items() if name.startswith("ray::TrialActor")]


def check(search: Search) -> None:
    """Raise `UserError` if the search failed by itself; its own error is on stderr."""
    if search.process.returncode:
        raise UserError(f"the search ended by itself with exit code {search.process.returncode}; accepted: 0")


def opened(folder: Path) -> int:
    """Return the number of sessions that have opened the run."""
    return len(runs.read(folder)["sessions"]) if (folder / runs.RUN_FILE).exists() else 0


def records_of(folder: Path) -> list[Record]:
    """Return the study's records, read from a copy: opening the database itself could repair it."""
    if not (folder / STUDY_FILE).exists():
        return []
    with tempfile.TemporaryDirectory(prefix="copy-") as copy:
        for path in folder.glob(f"{STUDY_FILE}*"):
            if not path.name.endswith("-shm"):  # SQLite rebuilds it from the WAL
                shutil.copy(path, copy)
        try:
            return list(read(Path(copy)))
        except UserError:  # killed before the tables were created
            return []


def count(folder: Path, seen: Seen, trials: int) -> dict[str, int]:
    """Return the counts that must be 0 at the end."""
    records = list(read(folder))
    final = {r.key: r for r in records if r.key and r.outcome not in TRANSIENT}
    scored = [r for r in records if r.outcome == SCORED]
    kept = {r.key: (r.outcome, r.quality) for r in scored}
    spent = sum(r.outcome not in (*TRANSIENT, REPEATED, INFEASIBLE) for r in records)
    return {
        "finished trials lost": sum(kept.get(key) != value for key, value in seen.ended.items()),
        "asked and never ended": len(seen.asked - final.keys()),
        "trials doubled": len(scored) - len(kept),
        "trials left RUNNING": sum(r.state == "RUNNING" for r in records),
        "trials left WAITING": sum(r.state == "WAITING" for r in records),
        "trials too few or many": abs(trials - spent),
        "database damaged": integrity(folder),
        "files damaged": len(damaged(folder, scored)),
        "files left behind": len(left_behind(folder)),
    }


def integrity(folder: Path) -> int:
    """Return the number of faults that SQLite's integrity check finds."""
    connection = sqlite3.connect(folder / STUDY_FILE)
    try:
        return sum(row != ("ok",) for row in connection.execute("PRAGMA integrity_check"))
    except sqlite3.DatabaseError:  # too damaged to be checked
        return 1
    finally:
        connection.close()


def damaged(folder: Path, scored: Sequence[Record]) -> list[str]:
    """Return the run's files that cannot be read; print why."""
    checks = {
        runs.RUN_FILE: lambda path: json.loads(path.read_text()),
        "trials.csv": pd.read_csv,
        "pareto.csv": pd.read_csv,
        "pareto.png": lambda path: Image.open(path).verify(),
        "best": res2net.load,
        **{str(runs.weights_path(Path(), r.number)): safetensors.torch.load_file for r in scored},
    }
    out = []
    for name, try_ in checks.items():
        try:
            try_(folder / name)
        except Exception as error:  # any failure to read counts as damage
            out.append(name)
            print(f"{name}: {error}", file=sys.stderr)
    return out


def left_behind(folder: Path) -> list[Path]:
    """Return temporary files and checkpoints that a finished run must not have."""
    return [*folder.rglob(".*.tmp"), *folder.glob(".best.*"), *(folder / CHECKPOINTS).iterdir()]


def show(folder: Path, counts: dict[str, int], kills: Counter[str], seconds: float) -> None:
    """Print the front, the kills and the counts."""
    records = list(read(folder))
    console = Console()
    books = ledger_of(folder)
    console.print(front_table(books.front, books))
    outcomes = Counter(r.outcome for r in records)
    resumed = sum("resumed" in r.attrs.get("note", "") for r in records)
    given_up = [
        r for r in records if r.outcome == FAILED and r.key not in {r.key for r in records if r.outcome == SCORED}
    ]
    print(f"\n{sum(kills.values())} kills in {format_seconds(seconds)}: {dict(kills)}")
    print(f"trials: {dict(outcomes)}; {resumed} resumed from a checkpoint; {len(given_up)} networks given up")
    for name, value in counts.items():
        print(f"{name:<24}{value:>5}")


if __name__ == "__main__":
    sys.exit(main())
