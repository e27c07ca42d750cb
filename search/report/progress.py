"""The progress of a running search: a live display on a terminal, one line per trial elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.driver import Driver
from search.ledger import Ledger
from search.objectives import PARAMS, Objective
from search.running import Running
from search.settings import Settings
from search.study.trials import AGAIN, ESTIMATED, FAILED, INFEASIBLE, ORPHAN, REPEATED, STOPPED, Record
from search.timetable import Timetable
from search.units import format_seconds

FRONT_ROWS = 12
QUIET = 25.0  # after this many seconds without a line, a log shows the state of the search


class Progress(Protocol):
    """A display of a search, called when the search starts, changes and ends. console: where the display writes."""

    console: Console

    def start(self, driver: Driver, title: str) -> None: ...
    def changed(self) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """A display that shows nothing."""

    console = Console(quiet=True)

    def start(self, driver: Driver, title: str) -> None: ...
    def changed(self) -> None: ...
    def stop(self) -> None: ...


class Lines:
    """Print a line for each ended trial, for logs and pipes. After `QUIET` seconds without a line, print the state."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def start(self, driver: Driver, title: str) -> None:
        """Print the title and the plan. Trials of earlier sessions are not printed again."""
        self._driver, self._seen = driver, len(driver.ledger.history)
        self._printed, self._ended = time.monotonic(), threading.Event()
        self._print(title)
        for line in _start(driver):
            self._print(line)
        threading.Thread(target=self._watch, daemon=True).start()

    def changed(self) -> None:
        """Print the trials that ended since the last call."""
        history = self._driver.ledger.history
        for record in history[self._seen :]:
            self._seen += 1
            self._print(self._line(record))

    def stop(self) -> None:
        """Stop printing."""
        self._ended.set()

    def _watch(self) -> None:
        """Print the state whenever nothing was printed for `QUIET` seconds."""
        while not self._ended.wait(max(0.0, self._printed + QUIET - time.monotonic())):
            if time.monotonic() - self._printed >= QUIET:
                self._print(self._state())

    def _spent(self) -> str:
        driver, trials = self._driver, self._driver.settings.budget.trials
        return (
            f"[{driver.ledger.spent:>3}/{trials}]" if trials else f"[{format_seconds(driver.seconds_left or 0)} left]"
        )

    def _state(self) -> str:
        running = [
            f"trial {t.job.number} after epoch {len(t.reports)} of {t.job.config.epochs}"
            + (f": {t.reports[-1].quality:.2f} %" if t.reports else "")
            for t in list(self._driver.running.values())
        ]
        return f"{self._spent()} running: {'; '.join(running) or 'no trial yet'}"

    def _line(self, record: Record) -> str:
        books, spent = self._driver.ledger, self._spent()
        if record.outcome == FAILED:
            return f"{spent} failed: trial {record.number}: {record.attrs['reason']}"
        if record.outcome == STOPPED:
            top1 = record.epochs[record.attrs["epochs"]]
            return f"{spent} trial {record.number} stopped {record.attrs['reason']}, {top1:.2f} %"
        costs = zip(books.rules.costs, books.costs(record), strict=True)
        return (
            f"{spent} trial {record.number:<4} {record.quality:6.2f} %  "
            + "".join(f"{o.format(cost):>6} {o.unit}  " for o, cost in costs)
            + f"{record.attrs['seconds']:6.1f} s  "
            f"{record.attrs['arch']}"
            + ("  shared weights" if record.outcome == ESTIMATED else "")
            + (f"  seed {record.attrs['sample'] + 1} of trial {record.attrs[AGAIN]}" if record.outcome == AGAIN else "")
            + ("  (front)" if record in books.front else "")
        )

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Display:
    """A live picture: the running trials, the front so far, the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def start(self, driver: Driver, title: str) -> None:
        """Start to draw, four times a second."""
        self._driver, self._title, self._begun = driver, title, time.monotonic()
        self._before = driver.ledger.spent
        for line in _start(driver):
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._live = Live(console=self.console, get_renderable=self._picture, refresh_per_second=4, transient=True)
        self._live.start()

    def changed(self) -> None: ...  # the display redraws itself

    def stop(self) -> None:
        """Remove the picture."""
        self._live.stop()

    def _picture(self) -> RenderableType:
        driver = self._driver
        running = running_table(list(driver.running.values()), driver.settings.scope.cost, driver.ledger.rules.quality)
        front = front_table(driver.ledger.front, driver.ledger)
        return Panel(Group(self._overall(), Text(), running, Text(), front), title=self._title, title_align="left")

    def _overall(self) -> RenderableType:
        books, trials = self._driver.ledger, _trials(self._driver)
        shown = (
            (STOPPED, "stopped early"),
            (INFEASIBLE, "over a limit"),
            (REPEATED, "seen before"),
            (FAILED, "failed"),
            (ORPHAN, "orphaned"),
        )
        counts = "  ".join(f"{books.counts[o]} {label}" for o, label in shown if books.counts[o])
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=trials, completed=books.spent, width=30)
        row.add_row(bar, f"{books.spent}/{trials} trials", self._left(), counts)
        return row

    def _left(self) -> str:
        driver, spent = self._driver, self._driver.ledger.spent
        elapsed = time.monotonic() - self._begun
        under_way = sum(len(r.reports) / r.job.config.epochs for r in list(driver.running.values()))
        done = spent - self._before + under_way
        guesses = [driver.seconds_left] if driver.seconds_left is not None else []
        to_do = _trials(driver) - self._before - done
        # Make no guess for confirmations, which take longer than estimates, and none for a plan, which fills its time.
        if driver.timetable is None and done > 0.2 and to_do > 0:
            guesses.append(elapsed / done * to_do)
        return f"{format_seconds(min(guesses))} left" if guesses else f"{format_seconds(elapsed)} so far"


def _trials(driver: Driver) -> int:
    """Return the number of trials of a search: the setting `trials`, or the plan's number."""
    if driver.timetable is None:
        return driver.settings.budget.trials or 0
    return max(driver.ledger.spent + len(driver.running), len(driver.timetable.plan.levels))


def _start(driver: Driver) -> list[str]:
    """Return lines of text about the networks that a search starts from, and about its plan."""
    out = [f"starts with {network.text}" for network in driver.lineage.included]
    table, left = driver.timetable, driver.seconds_left
    if table is None:
        return out
    if table.started and left is not None:
        begun = f"{len(table.started)} of {len(table.plan.levels)} trainings have begun"
        out.append(f"resumes this plan with {format_seconds(max(0.0, left))} left; {begun}")
    return out + plan_lines(table, driver.settings)


def plan_lines(table: Timetable, settings: Settings) -> list[str]:
    """Return the plan of a search as a few lines of text."""
    plan, cost = table.plan, settings.scope.cost
    workers = f"{plan.workers} worker{'s' if plan.workers > 1 else ''}"
    out = [
        f"plan: {format_seconds(plan.seconds)} of training by {workers}; the first score after "
        f"{format_seconds(plan.first)}; expected volume {plan.volume:.0f} %, {plan.idle:.0%} idle"
        + ("; each network grows from the one before" if plan.grown else "; each network from scratch")
    ]
    for level in plan.levels:
        out.append(
            f"  at {format_seconds(level.start):>12}: {cost.format(level.cost):>6} {cost.unit}, "
            f"{level.epochs:5.1f} epochs in {format_seconds(level.seconds)}"
        )
    if settings.budget.repeat > 1:
        out.append(f"  then the networks of the front again, with {settings.budget.repeat} seeds in all")
    elif plan.explore:
        out.append(
            f"  then about {plan.explore} networks that {settings.budget.sampler} proposes, the worst stopped early"
        )
    return out


def running_table(running: Sequence[Running], objective: Objective, quality: Objective) -> Table:
    """Return a row for each running trial, with its epochs as a bar."""
    table = _table(
        ("running", False),
        (objective.unit, True),
        ("epochs", False),
        ("", True),
        (quality.name, True),
        ("network", False),
    )
    for r in running:
        last, epochs = r.reports[-1] if r.reports else None, r.job.config.epochs
        bar = ProgressBar(total=epochs, completed=len(r.reports), width=14)
        score = f"{last.quality:.1f} %" if last else "-"
        done = f"{len(r.reports)}/{epochs}"
        table.add_row(f"trial {r.job.number}", objective.format(r.cost), bar, done, score, str(r.job.arch))
    return table


def front_table(records: Sequence[Record], ledger: Ledger) -> Table:
    """Return a row for each record of a front, cheapest first. A long front shows only its dearest records."""
    shown = list(dict.fromkeys((*ledger.rules.costs, PARAMS)))
    several = any(len(r.seeds) > 1 for r in records)
    seeds = [("+-", True), ("n", True)] if several else []
    units = [(o.unit, True) for o in shown]
    table = _table(("front", False), *units, (ledger.rules.quality.name, True), *seeds, ("network", False))
    table.columns[-1].no_wrap = False  # in a narrow window, this column alone becomes narrower
    for r in records[-FRONT_ROWS:]:
        costs = [o.format(r.attrs[o.name]) for o in shown]
        spread = (f"{r.spread:.2f}" if len(r.seeds) > 1 else "", str(len(r.seeds)))
        table.add_row(f"trial {r.number}", *costs, f"{r.quality:.2f} %", *(spread if several else ()), r.attrs["arch"])
    if (hidden := len(records) - FRONT_ROWS) > 0:
        table.add_row(f"({hidden} cheaper)")
    return table


def _table(*columns: tuple[str, bool]) -> Table:
    """Return an empty table. columns: for each column, a name and whether values are aligned to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    return table


def default(console: Console) -> Progress:
    """Return the default display: a live one on a terminal, else one line per trial."""
    return Display(console) if console.is_terminal else Lines(console)
