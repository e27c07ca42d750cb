"""Start Ray on this machine or join a running cluster, and count the trials that fit on it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping

import ray
from ray.exceptions import RayError

from res2net.errors import UserError
from search.execute import ray_private, room
from search.resources import Resources
from trainers.meta import cores

USAGE_STATS = "RAY_USAGE_STATS_ENABLED"  # set to 0 unless the user sets it, so that Ray sends no statistics
ANSWER_SECONDS = 5.0  # time limit for a head to accept a connection
HEALTH_SECONDS = 15.0  # time limit for a head to answer a health check


def is_cluster(address: str | None) -> bool:
    """Return whether the address belongs to a running cluster."""
    return address not in (None, "local")


@contextlib.contextmanager
def ray_at(address: str | None, bytes_of_data: int = 0) -> Iterator[None]:
    """Use Ray inside the block: the cluster at the address, or a new Ray here. A process already in Ray keeps that Ray.

    bytes_of_data: the size of the data set. Ray's object store holds two copies: the driver's and the workers'.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with environment({USAGE_STATS: os.environ.get(USAGE_STATS, "0")}):
            if is_cluster(address):
                _join(address or "")
            else:
                with environment(room.SLEEPING_THREADS | os.environ):  # Ray's processes inherit it
                    _start(bytes_of_data)
        if on_sigterm is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler would end the process at once, with a core dump
        yield
    finally:
        ray.shutdown()
        _leave_quietly()


def _leave_quietly() -> None:
    """Make this process skip C++ destructors when it exits, and keep its exit code.

    In Ray 2.60, `exit` destroys Ray's core worker while one of its timers still runs: one interrupted search in four
    ended with a segmentation fault. `on_exit` handlers run in reverse order. So this one, registered last, calls
    `_exit` with the process's exit code before the destructors run. By then Python has run its own handlers and
    flushed its files.
    """
    # Only glibc has `on_exit`. Without glibc, the crash was not seen.
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "on_exit"):
        libc.on_exit(libc._exit, None)


def _start(bytes_of_data: int) -> None:
    """Start Ray on this machine; it listens on loopback only."""
    with ray_private.on_loopback_alone():
        ray.init(
            address="local",
            num_cpus=cores(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=2 * bytes_of_data + 200 * 2**20,
        )


def _join(address: str) -> None:
    """Join a running cluster. If none answers, raise `UserError` within seconds: Ray itself would try for minutes."""
    try:
        if "://" in address:  # a Ray client would run Tune, and with it the driver, in another process
            raise ValueError("no head's address")
        host, port = ray_private.head_address(address)
        socket.create_connection((host, port), ANSWER_SECONDS).close()
        if _wants_token(f"{host}:{port}"):
            ray_private.use_token()
        ray.init(address=f"{host}:{port}", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise UserError(
            f"`ray_address`: {address}: {str(error).splitlines()[0]}; "
            "accepted: auto, where a cluster's node runs on this machine, HOST:PORT of its head, or local"
        ) from None


def _wants_token(address: str) -> bool:
    """Return whether the cluster requires a token; raise `ConnectionError` unless a Ray of our version answers.

    This must be known before joining. A search with a token can join a cluster without tokens, but then the workers
    cannot start.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    problem = ""
    for mode in ("disabled", "token"):
        values = {"RAY_AUTH_MODE": mode} | os.environ
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=HEALTH_SECONDS, check=False, env=values
            )
        except subprocess.TimeoutExpired:
            problem = "no Ray answers there, or it wants a token other than the one in ~/.ray/auth_token"
            continue
        if done.returncode == 0:
            return values["RAY_AUTH_MODE"] == "token"
        problem = done.stderr.strip().splitlines()[-1]
    raise ConnectionError(problem)


def check_room(resources: Resources) -> float:
    """Return the GPUs of a trial. Raise `UserError` if resources are missing: see `room.check_room`."""
    return room.check_room(resources, _nodes(), may_grow=is_cluster(resources.ray_address))


def places(cpus: int, gpus: float) -> int:
    """Return how many trials fit on the nodes at once."""
    return room.places(_nodes(), cpus, gpus)


def _nodes() -> list[room.Node]:
    """Return the cores and GPUs of each node of the joined cluster. Without a cluster, this machine is the one node."""
    if ray.is_initialized():
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return room.this_machine()


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block; restore them after it."""
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
