"""Run trials on Ray, through Tune: the only file that imports Ray.

Tune places and runs the trials; it decides nothing and remembers nothing. Its `Searcher` hands on what the driver
proposes, its scheduler asks the driver whether a trial goes on, and a resume is a new Tune run over the same study.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
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
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import RayError
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from res2net.errors import UserError
from search.driver import Driver
from search.worker import Job, Report, Work, guarded
from trainers.datasets.data import Data
from trainers.meta import cores

# Read by Tune as it starts. Results are in the study: no loggers' files, no checks of metrics, no frequent snapshots.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # how many there are at a time is `_Proposals`'s to say
}
ANSWER_SECONDS = 5.0  # for a head to accept a connection
HEALTH_SECONDS = 15.0  # and to say that it is well
HEAD_SECONDS = 15.0  # without an answer, after which a head is taken for dead
LOOK_SECONDS = 2.0  # between two looks at the cluster
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
        return asdict(next(self._reports)) | {"node": ray.get_runtime_context().get_node_id()}


class _Forgetful:
    """What Tune would pickle for a resume of its own, which never happens: the study is the only truth."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Bytes(bytes):
    """Of no text: Tune makes a part of the trial's name of every value in its config."""

    def __str__(self) -> str:
        return ""


class _HeadDied(BaseException):
    """Ray's head does not answer. Not an `Exception`: Tune would clean up, and wait for the head to do so."""


class _Head(Callback):
    """What is known of the cluster: whether its head lives, and the trials that it has places for.

    Looked at as Tune goes round: a minute after the head's death Ray kills this process, and until then asking hangs.
    """

    def __init__(self, workers: int | None, cpus: int, gpus: float) -> None:
        self._workers, self._cpus, self._gpus = workers, cpus, gpus
        host, port = services.extract_ip_port(ray.get_runtime_context().gcs_address)
        self._address = (host, port)
        self._looked = self._answered = 0.0
        self.places = 0

    def look(self) -> None:
        """Look at the cluster if that is due; `_HeadDied` if it has none any more."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        try:
            socket.create_connection(self._address, ANSWER_SECONDS).close()
        except OSError:
            self.places = 0  # to ask it for anything more would hang
            if time.monotonic() - self._answered > HEAD_SECONDS:
                raise _HeadDied from None
        else:
            self._answered = time.monotonic()
            self.places = self._workers or max(1, places(self._cpus, self._gpus))  # one waits where all nodes left
        self._looked = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        self.look()


class _Proposals(_Forgetful, Searcher):
    """Hands the driver's jobs to Tune, as many as the cluster has places for."""

    def __init__(self, driver: Driver, numbers: dict[str, int], head: _Head) -> None:
        super().__init__()
        self._driver, self._numbers, self._head = driver, numbers, head

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self._head.look()
        if len(self._driver.running) >= self._head.places:
            return None
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
    driver: Driver,
    data: Data,
    work: Work,
    workers: int | None = None,
    cpus_per_trial: int = 1,
    gpus_per_trial: float | None = None,
    ray_address: str | None = None,
) -> None:
    """Run jobs until the driver has no more: `workers` at a time, or as many as there are places in the cluster then.

    `UserError` if the cluster's head is found dead; what ran is given up, so that a resume asks it again. Where Tune is
    waiting for a trial, nothing is found: Ray ends the process within about a minute, and a resume does the same.
    """
    with _ray(ray_address, sum(s.images.nbytes for s in (data.train, data.val))):
        gpus = _check_room(workers, cpus_per_trial, gpus_per_trial, elastic=_is_cluster(ray_address))
        actor = tune.with_parameters(TrialActor, data=data, work=work, threads=cpus_per_trial)
        numbers: dict[str, int] = {}
        head = _Head(workers, cpus_per_trial, gpus)
        try:
            with (
                tempfile.TemporaryDirectory(prefix="tune-") as folder,
                _environment(TUNE_ENVIRONMENT),
                _quiet(),
                _released(),
            ):
                tune.Tuner(
                    tune.with_resources(actor, {"cpu": cpus_per_trial, "gpu": gpus}),
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
        except _HeadDied:
            driver.release_all("Ray's head died")
            raise UserError(
                "Ray's head does not answer any more; what had ended is kept, and the same command goes on"
            ) from None


def check(
    workers: int | None = None,
    cpus_per_trial: int = 1,
    gpus_per_trial: float | None = None,
    ray_address: str | None = None,
) -> None:
    """`UserError` for a cluster that does not answer, and for more than there is in it (or on this machine)."""
    if _is_cluster(ray_address):
        with _ray(ray_address):
            _check_room(workers, cpus_per_trial, gpus_per_trial, elastic=True)
    else:
        _check_room(workers, cpus_per_trial, gpus_per_trial)


def _check_room(workers: int | None, cpus: int, gpus: float | None, elastic: bool = False) -> float:
    """The GPUs of a trial: as asked, or a whole one where there is any; `UserError` for what no node has.

    elastic: nodes may come, so `workers` may be more than there are places for now.
    """
    most = {kind: max(node.get(kind, 0) for node in _nodes()) for kind in ("CPU", "GPU")}
    if cpus > most["CPU"]:
        raise UserError(f"--cpus-per-trial: {cpus} is more than the {most['CPU']:g} cores here; accepted: at most that")
    if gpus is None:
        gpus = float(most["GPU"] > 0)
    if gpus > most["GPU"]:
        raise UserError(
            f"--gpus-per-trial: {gpus:g} is more than the {most['GPU']:g} GPUs here; accepted: at most that"
        )
    room = max(1, places(cpus, gpus))
    if workers is not None and workers > room and not elastic:
        there = f"{most['CPU']:g} cores" + (f" and {most['GPU']:g} GPUs, {gpus:g} a trial" if gpus else "")
        raise UserError(f"--workers: {workers} trials at a time is more than {there} allow; accepted: at most {room}")
    return gpus


def places(cpus: int, gpus: float) -> int:
    """Trials that the nodes have room for: a trial is on one node, and a share of a GPU on one GPU."""
    total = 0
    for node in _nodes():
        there = node.get("GPU", 0)
        by_gpus = (int(there) * int(1 / gpus) if gpus < 1 else int(there / gpus)) if gpus else math.inf
        total += min(int(node.get("CPU", 0) / cpus), by_gpus)
    return total


def _nodes() -> list[dict[str, float]]:
    """Cores and GPUs of each node: of the cluster if the process is in one, else of this machine."""
    if ray.is_initialized():
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [{"CPU": cores(), "GPU": torch.cuda.device_count()}]


def _is_cluster(address: str | None) -> bool:
    return address not in (None, "local")


@contextlib.contextmanager
def _ray(address: str | None, bytes_of_data: int = 0) -> Iterator[None]:
    """The cluster at the address, or a Ray of our own on this machine; the process's if it is in one already."""
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if _is_cluster(address):
            _join(address)
        else:
            _start(bytes_of_data)
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own ends the process there and then, with a core dump
        yield
    finally:
        ray.shutdown()


def _start(bytes_of_data: int) -> None:
    """Start Ray on this machine, listening on loopback alone.

    That is what Ray does where it supports no clusters; asked for 127.0.0.1, it takes the machine's address instead.
    """
    supported, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        ray.init(
            address="local",
            num_cpus=cores(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=2 * bytes_of_data + 200 * 2**20,
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = supported


def _join(address: str) -> None:
    """Join a running cluster; `UserError` in seconds if there is none: Ray would try for minutes."""
    try:
        if "://" in address:  # Ray's client, with which Tune and so the study would be in another process
            raise ValueError("no head's address")
        host, port = services.extract_ip_port(services.canonicalize_bootstrap_address_or_die(address))
        socket.create_connection((host, port), ANSWER_SECONDS).close()
        if _wants_token(f"{host}:{port}"):
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # which Ray does for `auto` alone
        ray.init(address=f"{host}:{port}", log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise UserError(
            f"--ray-address: {address}: {str(error).splitlines()[0]}; "
            "accepted: auto, where a cluster's node runs on this machine, HOST:PORT of its head, or local"
        ) from None


def _wants_token(address: str) -> bool:
    """Whether the cluster takes only who has its token; `ConnectionError` unless a Ray of our version answers there.

    With a token in one that knows none, a search would join, but no trial's process could be started.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    problem = ""
    for mode in ("disabled", "token"):
        environment = {"RAY_AUTH_MODE": mode} | os.environ
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=HEALTH_SECONDS, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            problem = "no Ray answers there, or it wants a token that ~/.ray/auth_token is not"
            continue
        if done.returncode == 0:
            return environment["RAY_AUTH_MODE"] == "token"
        problem = done.stderr.strip().splitlines()[-1]
    raise ConnectionError(problem)


@contextlib.contextmanager
def _released() -> Iterator[None]:
    """Take back what Tune reserved if it is interrupted: in a cluster that outlives the search, nothing else would."""
    before = set(placement_group_table())
    try:
        yield
    except _HeadDied:  # there is nobody to give it back to
        raise
    except BaseException:
        for group in set(placement_group_table()) - before:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Tune's tracebacks of workers that died: the study has the reason, and the display shows it."""
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


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
