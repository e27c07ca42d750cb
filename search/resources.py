"""The settings of where trials run and where the study lies."""

from __future__ import annotations

from dataclasses import dataclass

from res2net.errors import UserError
from search.fields import check_choice, check_least, option
from search.study.storage import check_url

EXECUTORS = ("tune", "local")
MAX_GPUS = 16  # the most GPUs of one trial


@dataclass(frozen=True, slots=True)
class Resources:
    """Where trials run and where the study lies."""

    storage: str | None = option(
        None, "keep the study in PostgreSQL, for several drivers (default: SQLite in the run's folder)", "URL"
    )
    study: str | None = option(None, "the study's name in --storage (default: the name of the run's folder)", "NAME")
    executor: str = option(
        "tune",
        "what runs trials: {choices} (tune: Ray Tune; local: processes on this machine, without Ray)",
        "NAME",
        choices=lambda: EXECUTORS,
    )
    workers: int | None = option(
        None,
        "concurrent trials (default: as many as the cores or GPUs allow); with local, 1 means no further process",
        "N",
        common=True,
    )
    cpus_per_trial: int = option(1, "cores and threads of each trial", "N")
    gpus_per_trial: float | None = option(
        None, "GPUs of each trial; 0.25 shares a GPU (default: 1 if there is a GPU)", "X"
    )
    ray_address: str | None = option(
        None, "a running Ray cluster: auto, or HOST:PORT of its head (default: local, start Ray here)", "ADDRESS"
    )

    def __post_init__(self) -> None:
        check_choice("executor", self.executor, EXECUTORS)
        check_least("workers", self.workers)
        check_least("cpus_per_trial", self.cpus_per_trial)
        if self.gpus_per_trial is not None and not 0 <= self.gpus_per_trial <= MAX_GPUS:
            raise UserError(
                f"`gpus_per_trial`: {self.gpus_per_trial} is out of range; accepted: 0 to {MAX_GPUS} (0.25, say)"
            )
        if self.storage is not None:
            check_url(self.storage)
        elif self.study is not None:
            raise UserError("`study`: has no effect without `storage`; accepted: with the URL of a PostgreSQL database")
