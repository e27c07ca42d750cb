"""Run trials on Ray, through Tune: the only file that imports Ray.

Tune places and runs the trials; it decides nothing and remembers nothing. Its `Searcher` hands on what the driver
proposes, its scheduler asks the driver whether a trial goes on, and a resume is a new Tune run over the same study.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

# Read by Ray when it is imported. No statistics leave the machine, no boxes are drawn over our progress display.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
import torch
from ray import PlacementGroupID, cloudpickle, tune
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from res2net.errors import UserError
from search.driver import Driver
from search.worker import Job, Report, Work, guarded
from trainers.data import Data
from trainers.meta import cores

# Read by Tune as it starts. Results are in the study: no loggers' files, no checks of metrics, no frequent snapshots.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
REPORT_FIELDS = [f.name for f in fields(Report)]


class TrialActor(tune.Trainable):
    """A worker: one step is one epoch; kept for the next trial, as starting a process costs a second."""

    def setup(self, config: dict[str, Any], data: Data, work: Work, threads: int) -> None:
        torch.set_num_threads(threads)
        self._data, self._work = data, work
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        job = Job.from_json(new_config["job"], self.config.pop("checkpoint", None))  # each result repeats the config
        self._reports = guarded(self._work, job, self._data)
        return True

    def step(self) -> dict[str, Any]:
        return asdict(next(self._reports))


class _Forgetful:
    """What Tune would pickle for a resume of its own, which never happens: the study is the only truth."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Bytes(bytes):
    """Of no text: Tune makes a part of the trial's name of every value in its config."""

    def __str__(self) -> str:
        return ""


class _Proposals(_Forgetful, Searcher):
    """Hands the driver's jobs to Tune."""

    def __init__(self, driver: Driver, numbers: dict[str, int]) -> None:
        super().__init__()
        self._driver, self._numbers = driver, numbers

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        job = self._driver.next_job()
        if job is None:
            return None if self._driver.running else Searcher.FINISHED
        self._numbers[trial_id] = job.number
        return {"job": job.to_json()} | ({"checkpoint": _Bytes(job.checkpoint)} if job.checkpoint is not None else {})

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass  # the scheduler told the driver

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Decisions(_Forgetful, FIFOScheduler):
    """Asks the driver after each epoch, and tells it of workers that died."""

    def __init__(self, driver: Driver, numbers: dict[str, int]) -> None:
        super().__init__()
        self._driver, self._numbers = driver, numbers

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = Report(**{name: result[name] for name in REPORT_FIELDS})
        go_on = self._driver.on_report(self._numbers[trial.trial_id], report)
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        # Tune has just written it there; `get_pickled_error` looks where the file is copied to only later.
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        text = str(error).strip().split("\n")[0]
        self._driver.on_lost(self._numbers[trial.trial_id], f"the worker died: {type(error).__name__}: {text}")


class _DropBytes(Callback):
    """Takes weights and checkpoints out of what Tune keeps of a trial, once the driver or the worker has them."""

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        for kept in (result, trial.config, trial.evaluated_params):
            kept.pop("weights", None)
            kept.pop("checkpoint", None)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.on_trial_result(iteration, trials, trial, {})


def execute(
    driver: Driver, data: Data, work: Work, workers: int | None = None, gpus_per_trial: float | None = None
) -> None:
    """Run jobs until the driver has no more, as many at a time as cores or GPUs allow."""
    with _cluster(data), _released():
        gpus = check_gpus(gpus_per_trial)
        workers = check_workers(workers, gpus)
        threads = max(1, cores() // workers) if not gpus else 1
        actor = tune.with_parameters(TrialActor, data=data, work=work, threads=threads)
        numbers: dict[str, int] = {}
        with tempfile.TemporaryDirectory(prefix="tune-") as folder, _environment(TUNE_ENVIRONMENT):
            tune.Tuner(
                tune.with_resources(actor, {"cpu": 1, "gpu": gpus}),
                tune_config=tune.TuneConfig(
                    search_alg=_Proposals(driver, numbers),
                    scheduler=_Decisions(driver, numbers),
                    num_samples=-1,
                    max_concurrent_trials=workers,
                    reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="trials",
                    storage_path=folder,
                    callbacks=[_DropBytes()],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                    verbose=0,
                ),
            ).fit()


def check_gpus(per_trial: float | None) -> float:
    """GPUs for a trial: as asked, or a whole one where there is any; `UserError` for more than there are."""
    there = _resources().get("GPU", 0)
    if per_trial is None:
        return float(there > 0)
    if per_trial > there:
        raise UserError(f"--gpus-per-trial: {per_trial:g} is more than the {there:g} GPUs here; accepted: at most that")
    return per_trial


def check_workers(asked: int | None, gpus: float) -> int:
    """Trials at a time: as asked, or as many as there is room for; `UserError` for more than that."""
    there = _resources()
    cpus = int(there.get("CPU", 1))
    most = max(1, min(cpus, int(there.get("GPU", 0) / gpus)) if gpus else cpus)
    if asked is not None and asked > most:
        room = f"{cpus} cores" + (f" and {there.get('GPU', 0):g} GPUs, {gpus:g} a trial" if gpus else "")
        raise UserError(f"--workers: {asked} trials at a time is more than {room} allow; accepted: at most {most}")
    return asked or most


def _resources() -> dict[str, float]:
    """Cores and GPUs: the cluster's if the process is in one, else this machine's."""
    if ray.is_initialized():
        return ray.cluster_resources()
    return {"CPU": cores(), "GPU": torch.cuda.device_count()}


@contextlib.contextmanager
def _cluster(data: Data) -> Iterator[None]:
    """Ray on this machine, unless the process is in a cluster already."""
    if ray.is_initialized():
        yield
        return
    images = sum(s.images.nbytes for s in (data.train, data.val))
    ray.init(
        address="local",
        num_cpus=cores(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=2 * images + 200 * 2**20,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _released() -> Iterator[None]:
    """Take back what Tune reserved if it is interrupted: in a cluster that outlives the search, nothing else would."""
    before = set(placement_group_table())
    try:
        yield
    except BaseException:
        for group in set(placement_group_table()) - before:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
        raise


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {k: os.environ.get(k) for k in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
