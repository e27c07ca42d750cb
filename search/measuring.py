"""Time the networks of a latency table on a device, and fit the sum of pieces to whole networks."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from operator import mul

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from scipy.optimize import nnls

from res2net.arch import Arch
from res2net.cost import cost
from res2net.deploy.timing import (
    LEAST_RUNS,
    LEAST_WHOLE_RUNS,
    ONNX_FORMS,
    SECONDS,
    WARM,
    Run,
    check_form,
    finish,
    measured,
    piece_times,
    runner,
)
from res2net.errors import UserError
from res2net.factory import create
from res2net.latency import Entry, LatencyTable
from res2net.pieces import sequence
from search.carriers import Plan, work
from trainers.device import device_of
from trainers.meta import environment

PROFILE = 1.2  # seconds to write and read a profile of ONNX Runtime, and to run without it
TRIED = 5  # networks that are timed to estimate the pace
Times = dict[str, list[tuple[float, float]]]  # by a piece's key: the median and the spread in ms, for each network


@dataclass(frozen=True, slots=True)
class Target:
    """The conditions of a measurement: how networks run, and on which device."""

    form: str
    device: torch.device
    batch_size: int
    threads: int

    @classmethod
    def of(cls, form: str, device: str, batch_size: int, threads: int) -> Target:
        """Return the target. Raise `UserError` for a wrong value and for a missing device."""
        for name, value in (("batch_size", batch_size), ("threads", threads)):
            if value < 1:
                raise UserError(f"`{name}`: {value} is too small; accepted: at least 1")
        found = device_of(device)
        if found.type == "mps":
            raise UserError(f"`device`: {device!r} cannot be timed; accepted: cpu, cuda, cuda:N")
        check_form(form, found)
        return cls(form, found, batch_size, threads)

    def images(self, arch: Arch, size: int) -> torch.Tensor:
        """Return a batch of normal noise for a network."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch_size, arch.in_channels, size, size, generator=generator).to(self.device)

    def pieces(self, arch: Arch, size: int) -> np.ndarray:
        """Return the times of a network's pieces in ms, `[runs, pieces]`."""
        return piece_times(
            create(arch).to(self.device),
            self.form,
            self.images(arch, size),
            self.threads,
        )

    def runner(self, arch: Arch, size: int, quick: bool = False) -> Run:
        """Return a function that runs a network once. quick: see `res2net.deploy.timing.runner`."""
        return runner(create(arch).eval().to(self.device), self.form, self.images(arch, size), self.threads, quick)

    def whole(self, arch: Arch, size: int) -> float:
        """Return the median of a network's latency in ms."""
        return measured(self.runner(arch, size), self.threads)[0]


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of timing networks.

    build, run: formulas for the seconds to prepare a network, and for the seconds of one run. Each has a constant, a
        factor for the multiply-accumulates, and a factor for the activations, because grouped and narrow convolutions
        take long for few multiply-accumulates.
    profile: additional seconds of a network that is timed piece by piece.
    export: additional seconds to prepare a network that is timed as a whole.
    """

    build: tuple[float, float, float]
    run: tuple[float, float, float]
    profile: float = 0.0
    export: float = 0.0

    @classmethod
    def of(cls, target: Target, archs: Sequence[Arch], size: int) -> Pace:
        """Return the pace, from `TRIED` networks between the least and the most work."""
        ordered = sorted(archs, key=lambda arch: work(arch, size))
        tried = [ordered[round(i * (len(ordered) - 1) / (TRIED - 1))] for i in range(TRIED)]
        rows = []
        for arch in (tried[0], *tried):  # the first preparation loads libraries
            rows.append(np.minimum(cls._tried(target, arch, size), cls._tried(target, arch, size)))
        terms = [_terms(arch, size) for arch in tried]
        build, run_ = (_fitted(terms, seconds) for seconds in zip(*rows[1:], strict=True))
        if target.form not in ONNX_FORMS:
            return cls(build, run_)
        start = time.perf_counter()
        target.runner(tried[TRIED // 2], size)
        return cls(build, run_, PROFILE, time.perf_counter() - start)

    @staticmethod
    def _tried(target: Target, arch: Arch, size: int) -> tuple[float, float]:
        """Return the seconds to prepare a network, and the seconds of one run. Of two tries, the faster one counts."""
        start = time.perf_counter()
        run = target.runner(arch, size, quick=True)
        run()
        finish(target.device)
        built = time.perf_counter()
        run()
        finish(target.device)
        return built - start, time.perf_counter() - built

    def seconds(self, archs: Sequence[Arch], whole: Sequence[Arch], size: int) -> float:
        """Return the seconds to time networks piece by piece, and others as a whole, one after the other."""
        pieces = self._sum(archs, size, WARM, LEAST_RUNS, self.profile)
        return pieces + self._sum(whole, size, 2 * WARM, LEAST_WHOLE_RUNS, self.export)

    def _sum(self, archs: Sequence[Arch], size: int, warm: int, least: int, more: float) -> float:
        total = more * len(archs)
        for arch in archs:
            build, run = (sum(map(mul, line, _terms(arch, size))) for line in (self.build, self.run))
            total += build + warm * run + max(SECONDS, least * run)
        return total


def _terms(arch: Arch, size: int) -> tuple[float, float, float]:
    """Return the terms of a network's time: 1 for the constant, multiply-accumulates, activations."""
    products, _, activations = cost(arch, size)
    return 1.0, float(products), float(activations)


def _fitted(terms: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Fit factors of at least 0 for the terms, by least squares of relative errors."""
    rows = np.array(terms)
    scale, times = rows.max(0), np.array(seconds)
    constant, products, activations = (nnls(rows / scale / times[:, None], np.ones(len(times)))[0] / scale).tolist()
    return constant, products, activations


def timed(found: Plan, target: Target, pace: Pace, late: float | None, console: Console) -> tuple[Times, list[float]]:
    """Return the times of pieces, and the latencies of the plan's `whole` networks in ms.

    Whole networks are timed between the others, so that a drift of the clock rate affects both in the same way.
    late: the time (`time.monotonic`) by which the work must end. If it is too short for all networks, the last ones are
        left out.
    """
    size, archs, whole = found.image_size, found.archs, list(found.whole)
    least = len(archs) if late is None else found.least()
    times: Times = defaultdict(list)
    latencies: list[float] = []
    began = time.monotonic()
    columns = TextColumn("timing networks"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=pace.seconds(archs, whole, size))

        def time_whole() -> None:
            arch = whole.pop(0)
            latencies.append(target.whole(arch, size))
            bar.advance(task, pace.seconds([], [arch], size))

        for i, arch in enumerate(archs):
            now, done = time.monotonic(), bar.tasks[task].completed
            # Correct the estimate by the time that earlier networks took.
            left = pace.seconds([arch], whole, size) * ((now - began) / done if done else 1.0)
            if late is not None and i >= least and now + left > late:
                break
            low, middle, high = np.percentile(target.pieces(arch, size), (25, 50, 75), axis=0)
            for piece, ms, spread in zip(sequence(arch, size), middle, high - low, strict=True):
                times[piece.key].append((float(ms), float(spread)))
            bar.advance(task, pace.seconds([arch], [], size))
            if whole and (i + 1) * (len(found.whole) + 1) // len(archs) > len(latencies):
                time_whole()
        while whole:
            time_whole()
    return times, latencies


def table_of(target: Target, size: int, times: Times) -> LatencyTable:
    """Return the table without a fit. A piece that was timed in several networks gets the median of its times."""
    env = environment()
    known = {"torch": env["versions"]["torch"]}
    if target.form in ONNX_FORMS:
        known["onnxruntime"] = version("onnxruntime")
    hardware = env["hardware"]
    entries: list[Entry] = [
        (key, *(statistics.median(values) for values in zip(*found, strict=True)))  # type: ignore[misc]
        for key, found in times.items()
    ]
    name = hardware["cpu"] if target.device.type == "cpu" else torch.cuda.get_device_name(target.device)
    return LatencyTable(
        target.device.type,
        name,
        target.form,
        target.batch_size,
        target.threads,
        size,
        tuple(known.items()),
        tuple(entries),
    )


def fit(rows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the overhead in ms and the factor, both at least 0, that fit whole networks best.

    rows: for each network, the sum of its pieces and its latency in ms. The squares of relative errors are minimised.
    """
    sums, latencies = np.array(rows, dtype=float).T
    found, _ = nnls(np.stack([1 / latencies, sums / latencies], axis=1), np.ones(len(rows)))
    return float(found[0]), float(found[1])
