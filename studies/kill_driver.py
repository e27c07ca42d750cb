"""Kill a search again and again, let it finish, and count what was lost: all counts must be 0.

    python -m studies.kill_driver --kills 50
    python -m studies.kill_driver --kills 20 --what worker --executor tune

Real searches on `shapes`, each in a process group of its own that gets SIGKILL at a random moment: counted from its
start or, for every other one in the mean, from the moment that it has opened its run, so that starts, trainings and
writes are all hit. What the study held at each kill is read from a copy, and compared with what it holds in the end.
Networks are small and images few, so that a trial takes seconds. Linux alone.
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

import res2net
from res2net.errors import Parser, UserError, run_main
from search import runs
from search.checkpoints import CHECKPOINTS
from search.export import ledger_of
from search.groups import EXECUTORS
from search.report.progress import front_table
from search.study.storage import STUDY_FILE, read
from search.study.trials import FAILED, INFEASIBLE, ORPHAN, REPEATED, SCORED, Record
from search.units import format_seconds
from studies.bench import check_positive

PROG = "python -m studies.kill_driver"
MARK = "RES2NET_KILL_DRIVER"  # in the environment of all that a search starts, however far it gets from its group
GRACE = 15.0  # seconds that Ray's processes may take to notice that their driver is gone
TRANSIENT = (ORPHAN, "running", "waiting")  # outcomes of a trial after which its network has to come again


@dataclass(slots=True)
class Seen:
    """What the study held at any kill: networks that had ended, with their score; networks that were asked."""

    ended: dict[str, tuple[str, float | None]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    def add(self, records: Sequence[Record]) -> None:
        """Take in the records at a kill."""
        for r in records:
            if r.key:  # killed before it was described, a trial has no network yet
                self.asked.add(r.key)
            if r.outcome == SCORED:
                self.ended[r.key] = (r.outcome, r.val_top1)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the counts; exit code 1 if one is not 0."""
    return run_main(study, parser, argv)


def study(args: argparse.Namespace) -> int:
    """The command's body."""
    check_positive(args, "trials", "epochs", "train_images")
    if args.what not in ("driver", "worker"):
        raise UserError(f"--what: {args.what!r}; accepted: driver, worker")
    if args.executor not in EXECUTORS:
        raise UserError(f"--executor: {args.executor!r}; accepted: {', '.join(EXECUTORS)}")
    if args.what == "worker" and args.executor != "tune":
        raise UserError("--what: 'worker' needs processes of their own; accepted: with --executor tune")
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
            ended = kill(search, folder, rng, args.kills, kills)
            left.update(search.leftovers())
            seen.add(records_of(folder))
            trials += args.trials // 4 if ended else 0  # it was done before it was killed often enough
            print(f"{sum(kills.values())}/{args.kills} kills, {len(seen.ended)} of {trials} trials", flush=True)
        search = Search([*options, "--trials", str(trials)])
        code = search.process.wait()
        left.update(search.leftovers())
        counts = count(folder, seen, trials) | {"processes left behind": sum(left.values()), "exit code": code}
        show(folder, counts, kills, time.monotonic() - begun)
    return int(any(counts.values()))


def parser() -> Parser:
    """The command's options."""
    out = Parser(prog=PROG, description=__doc__.splitlines()[0])
    out.add_argument("--kills", type=int, default=50, metavar="N", help="how often")
    out.add_argument("--what", default="driver", help="driver (the whole process group), or worker (of Ray's)")
    out.add_argument("--executor", default="local", help=", ".join(EXECUTORS))
    out.add_argument(
        "--workers", type=int, metavar="N", help="trials at a time, with tune (default: the most that fit)"
    )
    out.add_argument("--trials", type=int, default=36, metavar="N", help="a quarter more each time that they are done")
    out.add_argument("--epochs", type=int, default=4, metavar="N", help="full budget of a trial")
    out.add_argument("--train-images", type=int, default=200, metavar="N", help="to train on")
    out.add_argument("--space", default="scale_card_depth_width", help="what is searched")
    out.add_argument("--max-macs", default="2M", metavar="N", help="no network of more MACs")
    out.add_argument("--scheduler", default="none", help="which trials stop early")
    out.add_argument("--seed", type=int, default=0, metavar="N", help="of the search and of the moments")
    out.add_argument("--out", type=Path, metavar="DIR", help="a new folder for the run (default: a temporary one)")
    return out


class Search:
    """A search in a process group of its own, and all that it started."""

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
        """Every process that it started and that is alive, by what it calls itself."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
            except OSError:  # it ended meanwhile
                continue
        return found

    def kill(self) -> None:
        """SIGKILL for the whole group; what left the group has to notice by itself."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def leftovers(self) -> Counter[str]:
        """What is still there some seconds after its end; it is killed, so that the next search has the machine."""
        deadline = time.monotonic() + GRACE
        while (found := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for number in found:
            os.kill(number, signal.SIGKILL)
        return Counter(found.values())


def kill_driver(search: Search, folder: Path, rng: random.Random, most: int, kills: Counter[str]) -> bool:
    """One kill at a random moment; whether the search was done before."""
    before, origin = opened(folder), rng.choice(("start", "open"))
    seconds = rng.uniform(1, 12)
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


def kill_workers(search: Search, folder: Path, rng: random.Random, most: int, kills: Counter[str]) -> bool:
    """One worker after another, until the search is done or enough were killed: then it runs to its end."""
    while sum(kills.values()) < most:
        seconds = rng.uniform(0, 1) if rng.random() < 0.5 else rng.uniform(1, 8)  # trials may be over in less than one
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
    """Processes of Ray's that run trials."""
    return [n for n, name in search.processes().items() if name.startswith("ray::TrialActor")]


def check(search: Search) -> None:
    """`UserError` for a search that failed by itself: what it said is above."""
    if search.process.returncode:
        raise UserError(f"the search ended by itself with exit code {search.process.returncode}; accepted: 0")


def opened(folder: Path) -> int:
    """Sessions that have opened the run."""
    return len(runs.read(folder)["sessions"]) if (folder / runs.RUN_FILE).exists() else 0


def records_of(folder: Path) -> list[Record]:
    """What the study holds, from a copy: reading it must not be what mends it."""
    if not (folder / STUDY_FILE).exists():
        return []
    with tempfile.TemporaryDirectory(prefix="copy-") as copy:
        for path in folder.glob(f"{STUDY_FILE}*"):
            if not path.name.endswith("-shm"):  # made anew from the log
                shutil.copy(path, copy)
        try:
            return list(read(Path(copy)))
        except UserError:  # killed before its tables were there
            return []


def count(folder: Path, seen: Seen, trials: int) -> dict[str, int]:
    """What must be 0 in the end."""
    records = list(read(folder))
    final = {r.key: r for r in records if r.key and r.outcome not in TRANSIENT}
    scored = [r for r in records if r.outcome == SCORED]
    kept = {r.key: (r.outcome, r.val_top1) for r in scored}
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
    """What SQLite itself finds wrong with the database."""
    connection = sqlite3.connect(folder / STUDY_FILE)
    try:
        return sum(row != ("ok",) for row in connection.execute("PRAGMA integrity_check"))
    except sqlite3.DatabaseError:  # so much that it cannot even be looked at
        return 1
    finally:
        connection.close()


def damaged(folder: Path, scored: Sequence[Record]) -> list[str]:
    """Files of the run that whoever needs them cannot read."""
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
        except Exception as error:  # whatever is wrong with it is what is counted
            out.append(name)
            print(f"{name}: {error}", file=sys.stderr)
    return out


def left_behind(folder: Path) -> list[Path]:
    """Files that a run which is done has no use for."""
    return [*folder.rglob(".*.tmp"), *folder.glob(".best.*"), *(folder / CHECKPOINTS).iterdir()]


def show(folder: Path, counts: dict[str, int], kills: Counter[str], seconds: float) -> None:
    """The front, what the kills hit, and the counts."""
    from rich.console import Console

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
