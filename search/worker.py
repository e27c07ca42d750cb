"""Run one trial in any process: take a job, yield a report after each epoch. An exception becomes the last report."""

from __future__ import annotations

import io
import itertools
import json
import math
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Protocol

import safetensors.torch
import torch
from torch import nn

from res2net.arch import Arch
from res2net.cost import cost
from res2net.elastic import ElasticRes2Net
from res2net.factory import create
from res2net.folder import weights_bytes
from res2net.grow import grow
from search.units import format_count
from trainers.datasets.data import Data
from trainers.device import out_of_memory
from trainers.epoch import TrainingFailed
from trainers.recipes import Config
from trainers.resume import unpack
from trainers.start import initialised
from trainers.supernet import Scorer
from trainers.tasks.metrics import metric_of
from trainers.train import Trainer

FIRST_STEPS = 5  # steps that are not representative of the pace: they allocate memory and choose kernels
LOOK_STEPS = 20  # steps between two checks of the time that a training needs
GAINED = 0.01  # a shortened training is lengthened again only by more than this share of the steps left
SAFE = 0.97  # share of the time left that a shortened training plans to use


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a worker needs to run a trial.

    evaluator: how to score the network: a name that the `Work` knows, such as the three of `SharedWork`.
    metric: the metric that gives the score (`trainers.tasks.metrics.metric_of`).
    rungs: the epochs after which a checkpoint is made.
    checkpoint: the last checkpoint from earlier trials of the same network; the trial resumes from it.
    seconds: the time that the worker may spend, from the moment it takes the job; None sets no limit. The training
        stops between two steps, and the validation after an epoch may take a little longer.
    fits: whether a training that would not end within `seconds` is shortened, so that it ends with a score.
    trunk: the epoch after which the weights are reported, for larger networks to grow from; 0 reports none.
    origin: the network and the weights (safetensors) from which this network grows; None for random weights.
    """

    number: int
    arch: Arch
    config: Config
    evaluator: str = "scratch"
    metric: str = "top1"
    rungs: tuple[int, ...] = ()
    checkpoint: bytes | None = None
    seconds: float | None = None
    fits: bool = False
    trunk: int = 0
    origin: tuple[Arch, bytes] | None = None

    def to_json(self) -> str:
        """Return the job as JSON without its checkpoint and the weights of its origin, which are sent separately."""
        plain = ("number", "evaluator", "metric", "rungs", "seconds", "fits", "trunk")
        values = {name: getattr(self, name) for name in plain} | {"arch": self.arch.to_dict()}
        origin = None if self.origin is None else self.origin[0].to_dict()
        return json.dumps(values | {"config": asdict(self.config), "origin": origin})

    @classmethod
    def from_json(cls, text: str, checkpoint: bytes | None = None, weights: bytes | None = None) -> Job:
        """Return the job of `to_json`. weights: the weights of its origin."""
        data = json.loads(text)
        origin = None if data["origin"] is None else (Arch.from_dict(data["origin"]), weights or b"")
        read = {"arch": Arch.from_dict(data["arch"]), "config": Config(**data["config"]), "origin": origin}
        return cls(**data | read | {"rungs": tuple(data["rungs"]), "checkpoint": checkpoint})


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a trial after an epoch, or when its time is over.

    epoch: the epochs done.
    quality: the value of the job's metric on the validation split in %.
    seconds: the training time of all epochs so far.
    node: Ray's id of the node that runs the trial.
    reason: the reason of the failure, if the trial failed.
    lost: whether a retry may succeed (a worker died, other trials held the memory). All other failures would recur.
    weights: the scored weights as safetensors; only the report of the last epoch has them.
    checkpoint: the trial's checkpoint; only reports of epochs in the job's `rungs` and paused reports have one.
    note: a remark about the trial, such as that it was resumed.
    budget: the epochs of a complete training that was shortened to fit its time; else None.
    trunk: the weights after the epoch `Job.trunk` as safetensors: not averaged, and not annealed.
    paused: whether the job's `seconds` ended before the training. A paused report is the last one and has no scores.
    """

    epoch: int
    quality: float = float("nan")
    val_loss: float = float("nan")
    train_loss: float = float("nan")
    seconds: float = 0.0
    images_per_second: float = 0.0
    host: str = ""
    node: str = ""
    reason: str | None = None
    lost: bool = False
    weights: bytes | None = None
    checkpoint: bytes | None = None
    note: str | None = None
    paused: bool = False
    budget: float | None = None
    trunk: bytes | None = None


class Work(Protocol):
    """The function that executors run for a job. It is copied to every worker, so it must be picklable."""

    def __call__(self, job: Job, data: Data) -> Iterator[Report]:
        """Yield a report after each epoch."""
        ...


def train_trial(job: Job, data: Data, start: Callable[[Arch], nn.Module] | None = None) -> Iterator[Report]:
    """Train the job's network and yield a report after each epoch; the last report carries the weights.

    start: returns the network to train; by default a network with random weights.

    If the job has a checkpoint, the reports that it stores come first. Later reports equal an uninterrupted trial's.
    When the job's `seconds` are over, the last report is a paused one, with a checkpoint of the current step.
    """
    end = math.inf if job.seconds is None else time.monotonic() + job.seconds
    trainer, reports, note = _begin(job, data, start or partial(_first_network, job))
    host, seconds = socket.gethostname(), reports[-1].seconds if reports else 0.0
    metric = metric_of(job.metric)
    yield from reports
    clock = Clock(trainer, end, job.fits)
    while not trainer.finished:
        e = trainer.epoch(clock.stop)
        if e is None:
            yield _paused(job, trainer, reports, note)
            return
        seconds += e.seconds
        quality = metric.of(e.val)
        report = Report(e.epoch, quality, e.val_loss, e.train_loss, seconds, e.images_per_second, host, note=note)
        reports.append(report)
        if trainer.finished:
            budget = None if trainer.bend is None else round(trainer.total_steps / trainer.steps_per_epoch, 2)
            report = replace(report, weights=weights_bytes(trainer.scored), budget=budget)
        elif e.epoch in job.rungs or e.epoch == job.trunk:
            report = replace(report, checkpoint=_checkpoint(job, trainer, reports))
        if e.epoch == job.trunk and trainer.keeps_schedule:  # otherwise the training already anneals to end in time
            report = replace(report, trunk=weights_bytes(trainer.model))
        yield report


def _first_network(job: Job, arch: Arch) -> nn.Module:
    """Return the network to train: with random weights, or grown from the job's origin."""
    if job.origin is None:
        return initialised(arch, zero_last=job.config.zero_init_last)
    small, weights = job.origin
    if not weights:
        raise TrainingFailed("the weights from which the network grows are gone")
    model = create(small)
    model.load_state_dict(safetensors.torch.load(weights))
    return grow(model, arch, job.config.seed)


class Clock:
    """The time of a job: it stops a training, or shortens a training so that it ends in time.

    end: the time (`time.monotonic`) by which the training must end.
    """

    def __init__(self, trainer: Trainer, end: float, fits: bool) -> None:
        self.trainer, self.end, self.fits = trainer, end, fits and end < math.inf
        self.calls, self.before, self.epochs = 0, time.monotonic(), trainer.done_epochs
        self.steps, self.stepping = 0, 0.0  # measured steps, and their seconds
        self.scoring = 0.0  # seconds between the last step of an epoch and the first step of the next one

    def stop(self) -> bool:
        """Return whether the time is over. The trainer calls this method before each step."""
        now = time.monotonic()
        self.calls += 1
        self._measure(now)
        if self.fits and self.steps and self.calls % LOOK_STEPS == 0:
            self._fit(now)
        return now >= self.end

    def _steps_in(self, seconds: float) -> int:
        """Return the number of further steps that fit into the time together with their validations, at least 1."""
        each, of_epoch = self.stepping / self.steps, self.trainer.steps_per_epoch
        found, before = 0, self.trainer.done_steps % of_epoch
        for epochs in itertools.count(1):  # the last epoch may be short, but has a validation like the others
            steps = min(int((seconds - epochs * self.scoring) / each), epochs * of_epoch - before)
            if steps <= found:
                return max(1, found)
            found = steps
        raise AssertionError("more epochs never fit")

    def _measure(self, now: float) -> None:
        gap, epochs = now - self.before, self.trainer.done_epochs
        if epochs != self.epochs:
            self.scoring = max(0.0, gap - self.stepping / max(1, self.steps))
        elif self.calls > FIRST_STEPS:
            self.steps, self.stepping = self.steps + 1, self.stepping + gap
        self.before, self.epochs = now, epochs

    def _fit(self, now: float) -> None:
        """Shorten the training if its remaining steps would take longer than the time left.

        If the pace turns out better later, the training gets some of these steps back.
        """
        trainer, done = self.trainer, self.trainer.done_steps
        left = self._steps_in(SAFE * (self.end - now))
        total = min(done + left, trainer.planned_steps)
        if total < trainer.total_steps or total > trainer.total_steps + GAINED * left:
            trainer.end_after(total)


def _begin(job: Job, data: Data, start: Callable[[Arch], nn.Module]) -> tuple[Trainer, list[Report], str | None]:
    """Return the trainer, the reports so far and a note. If the job has a checkpoint, restore the trainer from it."""

    def anew() -> Trainer:
        torch.manual_seed(job.config.seed)
        return Trainer(start(job.arch), data, job.config, task=metric_of(job.metric).task)

    trainer = anew()
    if job.checkpoint is None:
        return trainer, [], None
    try:
        reports = _restore(job, trainer)
    except Exception as error:  # torch raises many kinds for truncated and foreign files
        return anew(), [], f"started anew: its checkpoint cannot be used ({type(error).__name__}: {_first_line(error)})"
    done = trainer.done_epochs
    note = f"resumed after epoch {done}" if trainer.unfinished is None else f"resumed in epoch {done + 1}"
    return trainer, [replace(report, note=note) for report in reports], note


def _paused(job: Job, trainer: Trainer, reports: list[Report], note: str | None) -> Report:
    """Return the last report of a trial whose time is over."""
    assert trainer.unfinished is not None
    seconds = (reports[-1].seconds if reports else 0.0) + trainer.unfinished.seconds
    checkpoint = _checkpoint(job, trainer, reports)
    host, done = socket.gethostname(), trainer.done_epochs
    return Report(done, seconds=seconds, host=host, checkpoint=checkpoint, note=note, paused=True)


def _checkpoint(job: Job, trainer: Trainer, reports: list[Report]) -> bytes:
    """Return a checkpoint as the bytes of `torch.save`. A later trial of the same network can resume from it."""
    rows = [asdict(replace(report, note=None)) for report in reports]
    buffer = io.BytesIO()
    torch.save({"job": _identity(job), "trainer": trainer.state_dict(), "reports": rows}, buffer)
    return buffer.getvalue()


def _restore(job: Job, trainer: Trainer) -> list[Report]:
    """Restore the trainer from the job's checkpoint; return the reports so far."""
    state = unpack(job.checkpoint or b"")
    # Checkpoints of earlier versions lack newer fields of the config; `Config` adds their defaults.
    if state["job"] | {"config": asdict(Config(**state["job"]["config"]))} != _identity(job):
        raise ValueError("it is of another network or training")
    # Earlier versions called the quality `val_top1`.
    rows = [{"quality" if name == "val_top1" else name: v for name, v in row.items()} for row in state["reports"]]
    reports = [Report(**row) for row in rows]
    if [r.epoch for r in reports] != list(range(1, state["trainer"]["done_epochs"] + 1)):
        raise ValueError("its reports are not of its epochs")
    trainer.load_state_dict(state["trainer"])
    return reports


def _identity(job: Job) -> dict[str, object]:
    """Return the settings that must match before a trial may resume from another trial's checkpoint."""
    return {"arch": job.arch.key(), "config": asdict(job.config), "evaluator": job.evaluator}


class SharedWork:
    """Score trials with shared weights. Each process holds one copy of the weights.

    `Job.evaluator` names how the network is scored: by training from scratch, by tuning the network's slice of the
    shared weights, or by an estimate with that slice.
    """

    def __init__(self, model: ElasticRes2Net) -> None:
        self.model = model
        self._scorer: Scorer | None = None

    def __call__(self, job: Job, data: Data) -> Iterator[Report]:
        """Yield the job's reports."""
        ways = {"scratch": train_trial, "inherit": self._tune, "supernet": self._estimate}
        return ways[job.evaluator](job, data)

    def _tune(self, job: Job, data: Data) -> Iterator[Report]:
        return train_trial(job, data, self.model.extract)

    def _estimate(self, job: Job, data: Data) -> Iterator[Report]:
        begun = time.monotonic()
        if self._scorer is None:  # once per process: a scorer loads calibration and validation images
            self._scorer = Scorer(self.model, data, job.config, metric_of(job.metric).task)
        scores = self._scorer(job.arch)
        quality = metric_of(job.metric).of(scores)
        yield Report(1, quality, scores.loss, seconds=time.monotonic() - begun, host=socket.gethostname())


def guarded(work: Work, job: Job, data: Data) -> Iterator[Report]:
    """Yield the work's reports. An exception becomes a last report with the reason, so the search continues."""
    epoch, ended = 0, False
    try:
        for report in work(job, data):
            epoch, ended = report.epoch, report.paused or report.budget is not None
            yield report
        if epoch < job.config.epochs and not ended:
            yield Report(epoch, reason=f"its reports ended after epoch {epoch} of {job.config.epochs}")
    except Exception as error:  # any failure of a trial is a result of the search
        yield Report(epoch, reason=reason_of(error, job, data), lost=out_of_memory(error))


def reason_of(error: BaseException, job: Job, data: Data) -> str:
    """Return a failure's reason on one line for the study. For an unknown kind of error, add the place in the code."""
    if isinstance(error, TrainingFailed):
        return str(error)
    if out_of_memory(error):
        activations = format_count(cost(job.arch, data.image_size).activations)
        return (
            f"out of memory with batches of {job.config.batch_size} and {activations} activations an image "
            f"(a lower --max-activations excludes such networks): {_first_line(error)}"
        )
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].name}, {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {_first_line(error)}{where}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
