"""Run trials on Ray, through Tune.

Tune only places and runs the trials; the driver decides, and the study stores. Tune's searcher passes on the driver's
jobs. Tune's scheduler asks the driver whether a trial continues. A resume is a new Tune run over the same study.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import ray
import torch
from ray import PlacementGroupID, cloudpickle, tune
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from res2net.clash import check_ours
from res2net.errors import UserError
from res2net.quiet import quiet
from search.driver import Driver
from search.execute.cluster import ANSWER_SECONDS, check_room, environment, is_cluster, places, ray_at
from search.execute.late import is_late, release_late
from search.execute.ray_private import host_and_port
from search.resources import Resources
from search.worker import Job, Report, Work, guarded
from trainers.datasets.data import Data, Split

# Tune reads these as it starts. The study holds the results, so Tune writes no logs, checks no metrics and takes no
# frequent snapshots of itself.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # `_Proposals` limits the concurrent trials
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new output draws boxes over our display
}
HEAD_SECONDS = 15.0  # a head that has not answered for this long counts as dead
LOOK_SECONDS = 2.0  # time between two checks of the cluster
REPORT_FIELDS = [f.name for f in fields(Report)]


class TrialActor(tune.Trainable):
    """A worker process. One step is one epoch. Trials reuse the process, because a start takes seconds.

    Its first trial is empty, so that the driver chooses a job only when the process is ready.
    """

    def setup(self, config: dict[str, Any], data: Data, work: Work, threads: int) -> None:
        """Keep the data and the work, and start the first trial."""
        torch.set_num_threads(threads)
        self._data, self._work = data, work
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial."""
        self._reports = None
        if new_config["job"] is None:
            return True
        # The bytes are popped, because Tune copies the whole config into each result.
        job = Job.from_json(new_config["job"], self.config.pop("checkpoint", None), self.config.pop("origin", None))
        self._reports = guarded(self._work, job, self._data)
        return True

    def step(self) -> dict[str, Any]:
        """Return the next report, or nothing in the empty trial."""
        if self._reports is None:
            return {}
        return asdict(next(self._reports)) | {"node": ray.get_runtime_context().get_node_id()}


class _Forgetful:
    """An object that is pickled without its state. Tune pickles objects only for Tune's resume, which is never used."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Bytes(bytes):
    """Bytes with an empty `str()`: Tune copies every value of a config into the trial's name."""

    def __str__(self) -> str:
        return ""


class _Ended(BaseException):
    """The search has ended. Raise it to leave Tune's loop: Tune itself would wait until all workers have answered."""


class _HeadDied(BaseException):
    """Ray's head does not answer. A `BaseException`, because after an `Exception` Tune would wait for the head."""


class _Head(Callback):
    """Watch the cluster's head, and count the trials that fit on the cluster, in every round of Tune's loop.

    Calls to a dead head hang, and Ray kills this process a minute after the head's death. So the head is tested by a
    plain connection before any call.
    """

    def __init__(self, workers: int | None, cpus: int, gpus: float) -> None:
        self._workers, self._cpus, self._gpus = workers, cpus, gpus
        self._address = host_and_port(ray.get_runtime_context().gcs_address)
        self._looked = self._answered = 0.0
        self.places = 0

    def look(self) -> None:
        """Check the cluster if a check is due; raise `_HeadDied` if its head is dead."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        try:
            socket.create_connection(self._address, ANSWER_SECONDS).close()
        except OSError:
            self.places = 0  # any further call to the head would hang
            if time.monotonic() - self._answered > HEAD_SECONDS:
                raise _HeadDied from None
        else:
            self._answered = time.monotonic()
            # At least 1: if all nodes have left, one trial waits for a new node.
            self.places = self._workers or max(1, places(self._cpus, self._gpus))
        self._looked = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        self.look()


class _Proposals(_Forgetful, Searcher):
    """Pass the driver's jobs to Tune, as many at a time as fit on the cluster.

    An empty trial starts each worker. The driver is asked for a job only when a worker is ready, because the job's time
    begins then.
    """

    def __init__(self, driver: Driver, numbers: dict[str, int], head: _Head) -> None:
        super().__init__()
        self._driver, self._numbers, self._head = driver, numbers, head
        self._started, self._starting = 0, set[str]()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        self._head.look()
        if is_late(self._driver):
            raise _Ended
        if self._started < self._head.places:
            self._started += 1
            self._starting.add(trial_id)
            return {"job": None}
        if len(self._driver.running) + len(self._starting) >= self._head.places:
            return None
        job = self._driver.next_job()
        if job is None:
            if not self._driver.running:
                raise _Ended
            return None
        self._numbers[trial_id] = job.number
        carried = {"checkpoint": job.checkpoint, "origin": None if job.origin is None else job.origin[1]}
        return {"job": job.to_json()} | {name: _Bytes(value) for name, value in carried.items() if value is not None}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self._starting.discard(trial_id)  # `_Decisions` has told the driver about the end of a job

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Decisions(_Forgetful, FIFOScheduler):
    """Ask the driver after each epoch whether the trial continues; tell the driver about dead workers."""

    def __init__(self, driver: Driver, numbers: dict[str, int]) -> None:
        super().__init__()
        self._driver, self._numbers = driver, numbers

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Return None, so that Tune starts all trials in order.

        Tune's own choice would give a ready worker to an empty trial, and discard the worker that starts for it.
        """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if trial.trial_id not in self._numbers:  # an empty trial: its worker is ready
            return TrialScheduler.STOP
        report = Report(**{name: result[name] for name in REPORT_FIELDS})
        continues = self._driver.on_report(self._numbers[trial.trial_id], report)
        return TrialScheduler.CONTINUE if continues else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        if trial.trial_id not in self._numbers:  # the worker died before its first job; the next job starts a new one
            return
        # Tune has just written this file; `get_pickled_error` reads a copy that does not exist yet.
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        text = str(error).strip().split("\n")[0]
        self._driver.on_lost(self._numbers[trial.trial_id], f"the worker died: {type(error).__name__}: {text}")


class _DropBytes(Callback):
    """Remove weights and checkpoints from Tune's records of a trial, once the driver or the worker has them."""

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        for kept in (result, trial.config, trial.evaluated_params):
            for name in ("weights", "checkpoint", "origin", "trunk"):
                kept.pop(name, None)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.on_trial_result(iteration, trials, trial, {})


def execute(driver: Driver, data: Data, work: Work, resources: Resources) -> None:
    """Run jobs until the driver has no more jobs: `workers` at a time, or as many as fit on the cluster.

    Workers that exceed the search's time are killed.
    If the cluster's head is found dead, release the running trials for a resume, and raise `UserError`. While Tune
    waits for a trial, the head is not checked. If the head dies then, Ray ends this process within about a minute, and
    a resume takes over the trials.
    """
    cpus = resources.cpus_per_trial
    with ray_at(resources.ray_address, sum(s.images.nbytes for s in (data.train, data.val) if isinstance(s, Split))):
        gpus = check_room(resources)
        actor = tune.with_parameters(TrialActor, data=data, work=work, threads=cpus)
        numbers: dict[str, int] = {}
        head = _Head(resources.workers, cpus, gpus)
        try:
            with (
                tempfile.TemporaryDirectory(prefix="tune-") as folder,
                environment(TUNE_ENVIRONMENT),
                quiet("ray.tune", logging.CRITICAL),  # tracebacks of dead workers: the display shows the reason
                _released(),
            ):
                tune.Tuner(
                    tune.with_resources(actor, {"cpu": cpus, "gpu": gpus}),
                    tune_config=tune.TuneConfig(
                        search_alg=_Proposals(driver, numbers, head),
                        scheduler=_Decisions(driver, numbers),
                        num_samples=-1,
                        reuse_actors=True,
                        trial_dirname_creator=lambda trial: trial.trial_id,
                    ),
                    run_config=tune.RunConfig(
                        name="trials",
                        storage_path=folder,
                        callbacks=[_DropBytes(), head],
                        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                        verbose=0,
                    ),
                ).fit()
        except _Ended:
            release_late(driver)
        except _HeadDied:
            driver.release_all("Ray's head died")
            raise UserError(
                "Ray's head does not answer any more; ended trials are kept, and the same command resumes the search"
            ) from None


def check(resources: Resources) -> None:
    """Raise `UserError` if the cluster does not answer, or if the cluster (else this machine) lacks the resources.

    Also if the workers would import other packages than ours: Ray lets them look into the current folder first.
    """
    remedy = "rename it, search from another folder, or take `executor` local"
    check_ours(("search", "space", "trainers"), [os.getcwd(), *sys.path], remedy)
    if is_cluster(resources.ray_address):
        with ray_at(resources.ray_address):
            check_room(resources)
    else:
        check_room(resources)


def room(resources: Resources) -> int:
    """Return how many trials run at a time on this machine, or on the cluster as it is now."""
    with ray_at(resources.ray_address) if is_cluster(resources.ray_address) else contextlib.nullcontext():
        fits = max(1, places(resources.cpus_per_trial, check_room(resources)))
    return min(fits, resources.workers or fits)


@contextlib.contextmanager
def _released() -> Iterator[None]:
    """After an error in the block, release Tune's placement groups: a longer-lived cluster would keep them reserved."""
    before = set(placement_group_table())
    try:
        yield
    except _HeadDied:  # no head is left to release them
        raise
    except BaseException:
        for group in set(placement_group_table()) - before:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
        raise
