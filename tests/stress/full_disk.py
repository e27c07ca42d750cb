"""Fill the disk of a search, give it room, run the search again, and count what was lost. All counts must be 0.

    python -m tests.stress.full_disk --rooms 0 40 250 400 600 900 5000

Each search gets a small disk with so many KB of free space (`--rooms`). The disk fills up while the search writes the
study, the weights, the tables or the page of the front. The first run must end in one line and exit code 2. Then the
disk grows, and the same command must finish the search. Networks are tiny and images are random.
Linux and root only: the disks are tmpfs mounts in a mount namespace of their own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import trainers.datasets.data
from res2net.commands import Parser, run_main
from res2net.errors import UserError
from search import run, runs
from search.checkpoints import CHECKPOINTS
from search.resources import EXECUTORS
from search.study.storage import read
from search.study.trials import SCORED
from studies.synthetic import TINY_SPACE
from trainers.datasets.data import Data, Split

PROG = "python -m tests.stress.full_disk"
TRIALS = 3
ROOMS = (0, 40, 250, 400, 600, 900, 5000)
SMALLEST = 4  # KB; tmpfs reads a size of 0 as "no limit"
NOT_PERMITTED = 77  # the inner process's exit code where a root of a container may not mount


def main(argv: Sequence[str] | None = None) -> int:
    """Print the counts; return 1 if one of them is not 0."""
    return run_main(stress, parser, argv)


def parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=(__doc__ or "").splitlines()[0])
    out.add_argument("--executor", default="local", help=", ".join(EXECUTORS))
    out.add_argument("--rooms", type=int, nargs="+", default=ROOMS, metavar="KB", help="free space of each search")
    out.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # this process may mount
    return out


def stress(args: argparse.Namespace) -> int:
    """Run the searches in a process that may mount disks; check how the full disks were reported."""
    if args.executor not in EXECUTORS:
        raise UserError(f"`executor`: {args.executor!r}; accepted: {', '.join(EXECUTORS)}")
    if not sys.platform.startswith("linux") or os.geteuid() or shutil.which("unshare") is None:
        raise UserError("mount: not permitted; accepted: Linux, with root and the program unshare")
    if args.inside:
        return fill_all(args.executor, args.rooms)
    options = ["--inside", "--executor", args.executor, "--rooms", *map(str, args.rooms)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = ["unshare", "--mount", sys.executable, __file__, *options]
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, check=False)
    print(done.stderr, end="", file=sys.stderr, flush=True)
    if done.returncode == NOT_PERMITTED:
        raise UserError("mount: not permitted in this container; accepted: one that may mount")
    said = [line for line in done.stderr.splitlines() if line]
    wrong = abs(len(said) - len(args.rooms)) + sum(not is_right(line) for line in said)
    print(f"errors that are not one line about the disk: {wrong}")
    return int(bool(done.returncode or wrong))


def is_right(line: str) -> bool:
    """Return whether a line on stderr reports a full disk and tells the user how to resume."""
    start, end = "python -m search.run: error: --out: the disk of '", "' is full; accepted: the same command, once"
    return line.startswith(start) and end in line


def fill_all(executor: str, rooms: Sequence[int]) -> int:
    """Run a search on a disk of each size; print its counts; return 1 if one is not 0."""
    trainers.datasets.data.load = random_images
    with tempfile.TemporaryDirectory(prefix="full-disk-") as name:
        disk, space = Path(name) / "disk", Path(name) / "space.yaml"
        disk.mkdir()
        space.write_text(TINY_SPACE)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", disk], check=False).returncode:
            return NOT_PERMITTED
        harm = 0
        for room in rooms:
            counts = fill(disk, room, space, executor)
            print(f"{room} KB: " + ", ".join(f"{name}: {n}" for name, n in counts.items()), flush=True)
            harm += sum(counts.values())
        subprocess.run(["umount", disk], check=True)
    return int(harm > 0)


def fill(disk: Path, room: int, space: Path, executor: str) -> dict[str, int]:
    """Run a search with `room` KB, then again with enough; return the counts that must be 0."""
    folder = disk / str(room)
    options = f"--executor {executor} --workers 1 --trials {TRIALS} --epochs 3 --batch-size 20".split()
    options += ["--space", str(space), "--out", str(folder)]
    used = int(subprocess.check_output(["du", "-sk", disk]).split()[0])
    resize(disk, f"{max(SMALLEST, used + room)}k")
    first = run.main(options)
    resize(disk, "100m")
    second = run.main(options)
    records = list(read(folder))
    scored = [r for r in records if r.outcome == SCORED]
    return {
        "wrong exit codes": (first != 2) + (second != 0),
        "lost": TRIALS - len({r.key for r in scored}),
        "doubled": len(scored) - len({r.key for r in scored}),
        "left RUNNING or WAITING": sum(r.state in ("RUNNING", "WAITING") for r in records),
        "without weights": sum(not runs.weights_path(folder, r.number).is_file() for r in scored),
        "files left behind": len([*folder.rglob(".*.tmp"), *(folder / CHECKPOINTS).iterdir()]),
    }


def resize(disk: Path, size: str) -> None:
    """Change the size of a mounted tmpfs."""
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def random_images(*_: object, **__: object) -> Data:
    """Return 40 random images of 8 x 8 pixels as training and validation split."""
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    split = Split(images, np.arange(40) % 10)
    return Data("shapes", tuple("abcdefghij"), split, split, (0.5,) * 3, (0.3,) * 3)


if __name__ == "__main__":
    sys.exit(main())
