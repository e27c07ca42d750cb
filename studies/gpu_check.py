"""Check everything that CUDA touches, within a given time: the marked tests, then measurements in order of worth.

    python -m studies.gpu_check --minutes 8 --out DIR
    python -m studies.gpu_check --minutes 8 --out DIR --dry-run    # on any machine: tiny sizes, no figures of worth

It needs one GPU and no network. The folder gets a table (NAME.csv) and the output (NAME.txt) of each part, a table of
the parts (parts.csv), and one block for the log (log.md). A part that fails is reported with the end of its output, and
the next part runs. Parts that no longer fit into the time are listed. The exit code is 1 if a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from res2net.commands import Parser, run_main
from res2net.errors import UserError
from res2net.files import write_atomic
from studies.bench import first_line
from studies.gpu_parts import PARTS
from trainers.meta import environment

PROG = "python -m studies.gpu_check"
# Seconds that each part needs at least; a part that has less is left out. With tiny sizes, every part is tried.
LEAST = {"tests": 30, "networks": 30, "small": 30, "supernet": 20, "search": 200, "latency": 30, "files": 60}
TESTS_SHARE = 0.4  # most of the time that the tests may take
SHOWN = 15  # last lines of a failed part's output
# A CPU compiles for minutes. In a dry run, `torch.compile` returns its argument.
DRY_RUN = {"TORCHDYNAMO_DISABLE": "1"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended. end: done, failed, out of time, or skipped. note: the end of its output, or the reason."""

    part: str
    end: str
    seconds: float = 0.0
    note: str = ""


def check(args: argparse.Namespace) -> int:
    """Run the parts and write the results after each; return the exit code."""
    if not args.minutes > 0:
        raise UserError(f"`minutes`: {args.minutes:g}; accepted: a number above 0")
    if not torch.cuda.is_available() and not args.dry_run:
        raise UserError("no CUDA device is here; accepted: a machine with one, or `dry_run`")
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"`out`: {str(args.out)!r} is not empty; accepted: a new folder")
    args.out.mkdir(parents=True, exist_ok=True)
    end, outcomes, console = time.monotonic() + 60 * args.minutes, list[Outcome](), Console()
    for name in PARTS:
        left = end - time.monotonic()
        most = min(left, TESTS_SHARE * 60 * args.minutes) if name == "tests" else left
        least = 0 if args.dry_run else LEAST[name]
        if left <= least:
            outcomes.append(Outcome(name, "skipped", note=f"{max(0, left):.0f} s were left; it needs {least} s"))
        else:
            outcomes.append(run_part(name, args, most))
        found = outcomes[-1]
        console.print(f"{name}: {found.end} ({found.seconds:.0f} s)", highlight=False)
        table = pd.DataFrame([asdict(outcome) for outcome in outcomes])
        write_atomic(args.out / "parts.csv", table.to_csv(index=False))
        write_atomic(args.out / "log.md", block(outcomes, args))
    return int(any(outcome.end == "failed" for outcome in outcomes))


def run_part(name: str, args: argparse.Namespace, most: float) -> Outcome:
    """Run a part in a process of its own for at most `most` seconds; return how it ended."""
    command = [sys.executable, "-m", "studies.gpu_parts", name, "--out", str(args.out)]
    command += ["--dry-run"] if args.dry_run else []
    log, start = args.out / f"{name}.txt", time.monotonic()
    with log.open("w") as file:
        env = os.environ | (DRY_RUN if args.dry_run else {})
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            code = process.wait(most)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # the part, and the commands that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = round(time.monotonic() - start, 1)
    if code == 0:
        return Outcome(name, "done", seconds)
    lines = log.read_text(errors="replace").splitlines()[-SHOWN:]
    return Outcome(name, "out of time" if code is None else "failed", seconds, "\n".join(lines))


def block(outcomes: Sequence[Outcome], args: argparse.Namespace) -> str:
    """Return the results as one block of Markdown."""
    env = environment()
    hardware = env["hardware"]
    where = ", ".join(hardware["gpus"]) or "no GPU"
    dry = " --dry-run" if args.dry_run else ""
    lines = [
        f"## {datetime.date.today()}: GPU check, {where}",
        f"`{PROG} --minutes {args.minutes:g}{dry}`: torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"{hardware['cpu']} ({hardware['cores']} cores), commit {env['commit']}.",
        "",
        *markdown(pd.DataFrame([{"part": o.part, "end": o.end, "s": o.seconds} for o in outcomes])),
    ]
    for outcome in outcomes:
        path = args.out / f"{outcome.part}.csv"
        lines += ["", f"### {outcome.part}: {outcome.end}"]
        lines += ["", *markdown(pd.read_csv(path))] if path.exists() else []
        lines += ["", "```", *outcome.note.splitlines(), "```"] if outcome.note else []
    return "\n".join(lines) + "\n"


def markdown(table: pd.DataFrame) -> list[str]:
    """Return the lines of a table in Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(object).fillna("").to_numpy().tolist()]
    return [f"| {' | '.join(map(str, row))} |" for row in rows]


def build_parser() -> Parser:
    """Return the command's options."""
    out = Parser(prog=PROG, description=first_line(__doc__))
    out.add_argument("--minutes", type=float, default=8.0, metavar="N", help="the time of all parts together")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results, new or empty")
    out.add_argument("--dry-run", action="store_true", help="tiny sizes on any device: a look at the code of each part")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; return the exit code."""
    return run_main(check, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
