"""What a person sees while a search runs: a live display on a terminal, one line a trial elsewhere."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.driver import Driver, Running
from search.study.study import ESTIMATED, FAILED, INFEASIBLE, ORPHAN, REPEATED, STOPPED, Record
from search.units import format_count, format_seconds

FRONT_ROWS = 12


class Progress(Protocol):
    """Told when a search begins, when something changed, and when it ends; `console` is where it writes."""

    console: Console

    def start(self, driver: Driver, title: str) -> None: ...
    def changed(self) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """Shows nothing."""

    console = Console(quiet=True)

    def start(self, driver: Driver, title: str) -> None: ...
    def changed(self) -> None: ...
    def stop(self) -> None: ...


class Lines:
    """One line for each trial that ended: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def start(self, driver: Driver, title: str) -> None:
        self._driver, self._seen = driver, len(driver.history)
        self._print(title)

    def changed(self) -> None:
        driver = self._driver
        for record in driver.history[self._seen :]:
            self._seen += 1
            spent = f"[{driver.spent:>3}/{driver.settings.trials}]"
            if record.outcome == FAILED:
                self._print(f"{spent} failed: trial {record.number}: {record.attrs['reason']}")
                continue
            if record.outcome == STOPPED:
                top1 = record.epochs[record.attrs["epochs"]]
                self._print(f"{spent} trial {record.number} stopped {record.attrs['reason']}, {top1:.2f} %")
                continue
            note = "  shared weights" if record.outcome == ESTIMATED else ""
            self._print(
                f"{spent} trial {record.number:<4} {record.val_top1:6.2f} %  "
                f"{format_count(record.macs):>6} MACs  {record.attrs['seconds']:6.1f} s  {record.attrs['arch']}"
                + note
                + ("  (front)" if record in driver.front else "")
            )

    def stop(self) -> None: ...

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class Display:
    """A live picture: what runs, the front so far, what is left."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def start(self, driver: Driver, title: str) -> None:
        self._driver, self._title, self._begun = driver, title, time.monotonic()
        self._before = driver.spent
        self._live = Live(console=self.console, get_renderable=self._picture, refresh_per_second=4, transient=True)
        self._live.start()

    def changed(self) -> None: ...  # it redraws by itself

    def stop(self) -> None:
        self._live.stop()

    def _picture(self) -> RenderableType:
        driver = self._driver
        return Panel(
            Group(self._overall(), Text(), running_table(list(driver.running.values())), Text(), front_table(driver)),
            title=self._title,
            title_align="left",
        )

    def _overall(self) -> RenderableType:
        driver, trials = self._driver, self._driver.settings.trials
        row = Table.grid(padding=(0, 2))
        counts = "  ".join(
            f"{driver.counts[o]} {label}"
            for o, label in (
                (STOPPED, "stopped early"),
                (INFEASIBLE, "over a limit"),
                (REPEATED, "seen before"),
                (FAILED, "failed"),
                (ORPHAN, "asked again"),
            )
            if driver.counts.get(o)
        )
        row.add_row(
            ProgressBar(total=trials, completed=driver.spent, width=30),
            f"{driver.spent}/{trials} trials",
            self._left(),
            counts,
        )
        return row

    def _left(self) -> str:
        driver = self._driver
        elapsed = time.monotonic() - self._begun
        done = (
            driver.spent
            - self._before
            + sum(len(r.reports) / r.job.config.epochs for r in list(driver.running.values()))
        )
        guesses = [driver.seconds_left] if driver.seconds_left is not None else []
        to_do = driver.settings.trials - self._before - done
        if done > 0.2 and to_do > 0:  # what confirms estimates takes longer than they did: no guess
            guesses.append(elapsed / done * to_do)
        return f"{format_seconds(min(guesses))} left" if guesses else f"{format_seconds(elapsed)} so far"


def running_table(running: list[Running]) -> Table:
    """A row for each trial under way, with its epochs as a bar."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name, right in (
        ("running", False),
        ("MACs", True),
        ("epochs", False),
        ("", True),
        ("val top-1", True),
        ("network", False),
    ):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for r in running:
        last = r.reports[-1] if r.reports else None
        epochs = r.job.config.epochs
        bar = ProgressBar(total=epochs, completed=len(r.reports), width=14)
        score = f"{last.val_top1:.1f} %" if last else "-"
        table.add_row(
            f"trial {r.job.number}",
            format_count(r.cost.macs),
            bar,
            f"{len(r.reports)}/{epochs}",
            score,
            str(r.job.arch),
        )
    return table


def front_table(driver: Driver) -> Table:
    """The front so far, cheapest first."""
    return table_of_front(driver.front)


def table_of_front(records: list[Record]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name, right in (("front", False), ("MACs", True), ("params", True), ("val top-1", True), ("network", False)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    hidden = len(records) - FRONT_ROWS
    for r in records[-FRONT_ROWS:]:
        table.add_row(
            f"trial {r.number}",
            format_count(r.macs),
            format_count(r.attrs["params"]),
            f"{r.val_top1:.2f} %",
            r.attrs["arch"],
        )
    if hidden > 0:
        table.add_row(f"({hidden} cheaper)")
    return table


def default(console: Console) -> Progress:
    """The live display on a terminal, lines elsewhere."""
    return Display(console) if console.is_terminal else Lines(console)
