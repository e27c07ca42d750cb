"""One trial, wherever it runs: a job in, a report after every epoch out. What it raises becomes its last report."""

from __future__ import annotations

import json
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import nn

from res2net.arch import Arch
from res2net.elastic import ElasticRes2Net
from res2net.files import weights_bytes
from res2net.model import create
from trainers.data import Data
from trainers.supernet import Scorer
from trainers.train import Config, Trainer, TrainingFailed


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to run a trial. `evaluator` is one of `search.settings.EVALUATORS`."""

    number: int
    arch: Arch
    config: Config
    evaluator: str = "scratch"

    def to_json(self) -> str:
        values = {"number": self.number, "arch": self.arch.to_dict(), "config": asdict(self.config)}
        return json.dumps(values | {"evaluator": self.evaluator})

    @classmethod
    def from_json(cls, text: str) -> Job:
        data = json.loads(text)
        return cls(data["number"], Arch.from_dict(data["arch"]), Config(**data["config"]), data["evaluator"])


@dataclass(frozen=True, slots=True)
class Report:
    """A trial's state after an epoch. `weights` (safetensors) are set once it has all epochs, `reason` if it failed.

    node: Ray's id of the node it ran on.
    lost: the failure may not come again (memory that another trial held, a worker that died); all others would.
    """

    epoch: int
    val_top1: float = float("nan")
    val_loss: float = float("nan")
    train_loss: float = float("nan")
    seconds: float = 0.0
    images_per_second: float = 0.0
    host: str = ""
    node: str = ""
    reason: str | None = None
    lost: bool = False
    weights: bytes | None = None


class Work(Protocol):
    """What executors run: called with a job and the data, it yields a report an epoch."""

    def __call__(self, job: Job, data: Data) -> Iterator[Report]: ...


def train_trial(job: Job, data: Data, start: Callable[[Arch], nn.Module] | None = None) -> Iterator[Report]:
    """Train the job's network, from scratch or from what `start` gives; the last report carries the weights."""
    torch.manual_seed(job.config.seed)
    trainer = Trainer((start or create)(job.arch), data, job.config)
    host, seconds = socket.gethostname(), 0.0
    for _ in range(job.config.epochs):
        e = trainer.epoch()
        seconds += e.seconds
        weights = weights_bytes(trainer.model) if e.epoch == job.config.epochs else None
        yield Report(e.epoch, e.val_top1, e.val_loss, e.train_loss, seconds, e.images_per_second, host, weights=weights)


class SharedWork:
    """Trials that score or start from the weights of a supernet, of which each process has one copy."""

    def __init__(self, model: ElasticRes2Net) -> None:
        self.model = model
        self._scorer: Scorer | None = None

    def __call__(self, job: Job, data: Data) -> Iterator[Report]:
        if job.evaluator == "scratch":
            yield from train_trial(job, data)
        elif job.evaluator == "inherit":
            yield from train_trial(job, data, self.model.extract)
        else:
            begun = time.monotonic()
            if self._scorer is None:
                self._scorer = Scorer(self.model, data, job.config)
            loss, top1 = self._scorer(job.arch)
            yield Report(1, top1, loss, seconds=time.monotonic() - begun, host=socket.gethostname())


def guarded(work: Work, job: Job, data: Data) -> Iterator[Report]:
    """The work's reports; whatever it raises is a last report with the reason, so that the search goes on."""
    epoch = 0
    try:
        for report in work(job, data):
            epoch = report.epoch
            yield report
        if epoch < job.config.epochs:
            yield Report(epoch, reason=f"it ended after epoch {epoch} of {job.config.epochs}")
    except Exception as error:  # any failure of a trial is a result of the search
        yield Report(epoch, reason=reason_of(error, job), lost=out_of_memory(error))


def reason_of(error: BaseException, job: Job) -> str:
    """One line for the study: what happened, and where if it is not a known kind."""
    if isinstance(error, TrainingFailed):
        return str(error)
    if out_of_memory(error):
        return f"out of memory with batches of {job.config.batch_size}: {_first_line(error)}"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].name}, {frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {_first_line(error)}{where}"


def out_of_memory(error: BaseException) -> bool:
    texts = ("can't allocate memory", "not enough memory")  # of torch on a CPU, which raises a RuntimeError
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
