"""The runs of `bench_front`: their commands, their measurement, their fronts, and their volume over time."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import optuna
import psutil

from res2net.errors import UserError, unknown
from res2net.files import write_atomic
from search import picks
from search.export import tested as top1_on_test
from search.front import Axis, front, hypervolume
from search.study.storage import sqlite_url
from search.study.trials import SCORED as TRAINED
from trainers.evaluate import EvaluateConfig, evaluate_folder
from trainers.meta import environment

PEER = "peer"  # the entry of stock Ray Tune
SCORED, NETWORKS = "scored.json", "networks"  # in the peer's folder: its accuracies, and model folders of its front
PROGRESS_SECONDS = 20.0
STOP_SECONDS = 20.0  # time limit for an interrupted run to end by itself
# The known entries: the options that each adds to the command of a search, and the options of the peer.
ENTRIES: dict[str, str] = {
    "ours": "",
    PEER: "--epochs 10",
    "local": "--executor local",
    "tune": "--executor tune",
    "scratch": "--evaluator scratch",
    "supernet": "--evaluator supernet",
    "fast": "--recipe fast",
    "micro": "--base micro",
}


@dataclass(frozen=True, slots=True)
class Scored:
    """A trained network.

    seconds: the time from the start of its run until its score was known.
    number: its trial.
    epochs: the epochs that it was trained for.
    network: the network as text.
    """

    seconds: float
    number: int
    macs: int
    val_top1: float
    epochs: float
    network: str


@dataclass(frozen=True, slots=True)
class Span:
    """The budgets of a volume: MACs from `low` to `high`, and the accuracy of a guess (%)."""

    low: float
    high: float
    chance: float

    def volume(self, top1: Sequence[float], macs: Sequence[float]) -> float:
        """Return the volume, from 0 to 1: the hypervolume above chance as a share of the whole range."""
        return hypervolume(top1, Axis(macs, self.low, self.high), chance=self.chance) / 100


@dataclass(frozen=True, slots=True)
class Case:
    """A run to measure.

    time: the time that the command is given, in seconds.
    command: the command, without its output folder.
    """

    entry: str
    time: float
    seed: int
    command: tuple[str, ...]

    def path(self, out: Path, ending: str = "") -> Path:
        """Return the run's folder in `out`, or with an ending, a file beside the folder."""
        return out / f"{self.entry}-{self.time:.10g}s-{self.seed}{ending}"


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run.

    seconds: the wall time from the start of the process to its end.
    busy: how busy the machine's cores were just before the start, in %.
    scored: all trained networks, in the order of their scores.
    test_top1: the test accuracy (%) of each network of the validation front, by trial; None before the test.
    commit, cpu, cores: the code and the hardware.
    """

    case: Case
    seconds: float
    busy: float
    scored: tuple[Scored, ...]
    test_top1: Mapping[int, float] | None
    commit: str | None
    cpu: str
    cores: int

    @property
    def front(self) -> list[Scored]:
        """The front of validation accuracy against MACs, cheapest first."""
        return front_of(self.scored)

    @property
    def late(self) -> float:
        """The seconds past the given time; negative for a run that ended early."""
        return self.seconds - self.case.time

    def volume(self, span: Span, test: bool) -> float:
        """Return the volume of the validation front, by test or by validation accuracy."""
        found = self.front
        top1 = [(self.test_top1 or {})[s.number] if test else s.val_top1 for s in found]
        return span.volume(top1, [s.macs for s in found])

    def to_json(self) -> str:
        """Return the run as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the run that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        case, top1 = values["case"], values["test_top1"]
        return cls(
            **values
            | {
                "case": Case(**case | {"command": tuple(case["command"])}),
                "scored": tuple(Scored(**s) for s in values["scored"]),
                "test_top1": None if top1 is None else {int(number): value for number, value in top1.items()},
            }
        )


def front_of(scored: Sequence[Scored]) -> list[Scored]:
    """Return the networks on the front of validation accuracy against MACs, cheapest first."""
    return [scored[i] for i in front([s.val_top1 for s in scored], [s.macs for s in scored])]


def volume_over_time(scored: Sequence[Scored], span: Span) -> list[tuple[float, float]]:
    """Return (seconds, volume by validation accuracy) at the start and whenever the volume rises."""
    known: list[Scored] = []
    out = [(0.0, 0.0)]
    for s in sorted(scored, key=lambda s: s.seconds):
        known = front_of([*known, s])
        volume = span.volume([k.val_top1 for k in known], [k.macs for k in known])
        if volume > out[-1][1]:
            out.append((s.seconds, volume))
    return out


def entries_of(names: Sequence[str], added: Sequence[str]) -> dict[str, str]:
    """Return the options of each entry to run: first the named entries, then the added entries.

    added: texts such as `NAME=--executor local`. For a known name, these options replace the known ones.
    """
    own = {}
    for text in added:
        name, equals, words = text.partition("=")
        if not equals or not re.fullmatch(r"\w[\w.]*", name):
            raise UserError(
                f"`entry`: {text!r} is no entry; accepted: NAME='options of its command', with a name of letters, "
                "digits, _ and ."
            )
        own[name] = words
    known = ENTRIES | own
    for name in names:
        if name not in known:
            raise unknown("`entries`", name, known)
    return {name: known[name] for name in (*names, *own)}


def case_of(entry: str, words: str, options: Mapping[str, object], seconds: float, seed: int) -> Case:
    """Return the case of an entry. options: the options that all commands share; None leaves one out."""
    module = "studies.front_peer" if entry == PEER else "search.run"
    given = [x for name, value in options.items() if value is not None for x in (f"--{name}", str(value))]
    command = ("-m", module, *given, "--time", f"{seconds:.10g}s", "--seed", str(seed), *shlex.split(words))
    return Case(entry, seconds, seed, command)


def recorded(case: Case, out: Path) -> Run | None:
    """Return the recorded run of a case, or None. Raise `UserError` if the record is of another command."""
    path = case.path(out, ".json")
    if not path.exists():
        return None
    run = Run.from_json(path.read_text())
    if run.case != case:
        raise UserError(
            f"`out`: {str(path)!r} is a run of another command ({shlex.join(run.case.command)}); "
            "accepted: the same options, or a new folder"
        )
    return run


def record(run: Run, out: Path) -> None:
    """Write a run beside its folder."""
    write_atomic(run.case.path(out, ".json"), run.to_json())


def measure(case: Case, out: Path, say: Callable[[str], object]) -> Run | None:
    """Run a case's command in a new process and return the run. Return None if the command fails.

    First delete an unfinished run of an earlier benchmark, because a resumed search would have more time.
    say: prints a line.
    """
    folder, log = case.path(out), case.path(out, ".log")
    shutil.rmtree(folder, ignore_errors=True)
    busy = psutil.cpu_percent(interval=1)
    began, start = time.time(), time.monotonic()
    code = _run([sys.executable, *case.command, "--out", str(folder)], log, folder.name, say)
    seconds = time.monotonic() - start
    if code:
        say(f"{folder.name}: exit code {code} after {seconds:.0f} s: {_last_line(log)}")
        return None
    found = (read_peer if case.entry == PEER else read_search)(folder)
    scored = sorted((replace(s, seconds=s.seconds - began) for s in found), key=lambda s: s.seconds)
    here = environment()
    hardware = here["hardware"]
    return Run(case, seconds, busy, tuple(scored), None, here["commit"], hardware["cpu"], hardware["cores"])


def _run(command: Sequence[str], log: Path, label: str, say: Callable[[str], object]) -> int:
    """Run a command, write its output to `log`, report its progress, and return its exit code."""
    start = time.monotonic()
    with log.open("wb") as output:
        # Use a new session, so that Ctrl-C reaches the command only from this process, and not also from the terminal.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while True:
                try:
                    return process.wait(PROGRESS_SECONDS)
                except subprocess.TimeoutExpired:
                    say(f"{label}: {time.monotonic() - start:.0f} s; {_last_line(log)}")
        finally:
            _stop(process)


def _stop(process: subprocess.Popen) -> None:
    """End a process that still runs: first by an interrupt, then by a kill of all processes of its session."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    """Return the last line of a log that holds a letter or a digit. Skip the frames of the peer's tables."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if re.search(r"\w", line)]
    return lines[-1] if lines else ""


def read_search(folder: Path) -> list[Scored]:
    """Return the trained networks of a search that may be on its front. `seconds` is the time since the epoch (Unix).

    Leave out estimates by shared weights, because their networks were not trained.
    """
    url = sqlite_url(folder)
    study = optuna.load_study(study_name=optuna.get_all_study_names(url)[0], storage=url)
    ended = {trial.number: trial.datetime_complete for trial in study.trials}
    out = []
    books = picks.ledger_of(folder)
    for r in books.history:
        when = ended[r.number]
        if r.outcome == TRAINED and books.qualifies(r) and r.quality is not None and when is not None:
            macs, epochs = int(r.attrs["macs"]), float(r.attrs["epochs"])
            out.append(Scored(when.timestamp(), r.number, macs, r.quality, epochs, str(r.attrs["arch"])))
    return out


def read_peer(folder: Path) -> list[Scored]:
    """Return the accuracies that the peer wrote. `seconds` is the time since the epoch (Unix)."""
    return [Scored(**s) for s in json.loads((folder / SCORED).read_text())]


def tested(run: Run, data: str, data_dir: str | None, out: Path) -> Run:
    """Return the run with the test accuracies of its validation front. Nothing else reads the test split."""
    folder = run.case.path(out)
    found: dict[int, float] = {}
    if run.case.entry == PEER:
        for s in run.front:
            config = EvaluateConfig(folder / NETWORKS / str(s.number), data, data_dir, precision="fp32")
            found[s.number] = evaluate_folder(config).top1
    else:
        records = {r.number: r for r in picks.ledger_of(folder).history}
        for s in run.front:
            found[s.number] = top1_on_test(folder, records[s.number], data_dir)
    return replace(run, test_top1=found)
