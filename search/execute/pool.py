"""Run trials in several worker processes on this machine. The driver stays in this process. Needs no Ray.

The processes start at once, before the first job, and run many jobs each. The data set is written once, to a temporary
file without a name, and is mapped by all workers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import IO

import torch

from res2net.errors import UserError
from search.driver import Driver
from search.execute.late import is_late, release_late, seconds_to_wait
from search.execute.room import SLEEPING_THREADS, check_room, places, this_machine
from search.resources import Resources
from search.worker import Job, Report, Work
from search.worker_process import write_shared
from trainers.datasets.data import Data

VISIBLE = "CUDA_VISIBLE_DEVICES"
STARTS = 3  # how often a dead worker is replaced in a row: the system may kill each replacement for lack of memory


def count(resources: Resources) -> int:
    """Return how many workers run: the setting, or as many as fit on this machine. Raise `UserError` if none fits."""
    nodes = this_machine()
    gpus = check_room(resources, nodes)
    return resources.workers or max(1, places(nodes, resources.cpus_per_trial, gpus))


def execute(driver: Driver, data: Data, work: Work, resources: Resources) -> None:
    """Run the driver's jobs until none is left, `count` at a time. Kill workers that exceed the search's time."""
    with tempfile.TemporaryFile() as file, _started(file, data, work, resources) as workers:
        while _start_jobs(driver, workers) and not is_late(driver):
            wait([worker.connection for worker in workers], seconds_to_wait(driver))
            for worker in list(workers):
                if worker.connection.poll() and (cause := _hear(driver, worker)) is not None:
                    _replace(workers, worker, cause)
    release_late(driver)


def _start_jobs(driver: Driver, workers: list[_Worker]) -> bool:
    """Give jobs to idle workers. Return whether to wait for a worker's message; False if the search has ended."""
    for worker in workers:
        if worker.ready and worker.number is None:
            if (job := driver.next_job()) is None:
                return any(w.number is not None for w in workers)
            worker.start(job)
    return True


def _hear(driver: Driver, worker: _Worker) -> str | None:
    """Handle a worker's next message. Return the cause of the worker's end; None while it lives."""
    try:
        message = worker.connection.recv()
    except (EOFError, OSError):
        cause = worker.end()
        if worker.number is not None:
            driver.on_lost(worker.number, f"the worker died: {cause}")
        return cause
    if isinstance(message, Report):
        assert worker.number is not None
        worker.answer(driver.on_report(worker.number, message))
    elif message is None:
        worker.ready = True
    else:
        worker.end()
        return message
    return None


def _replace(workers: list[_Worker], worker: _Worker, cause: str) -> None:
    """Start a worker in the place of a dead one, or drop the place after `STARTS` workers that died as they started.

    Raise `UserError` if no worker has ever started, or if no place is left.
    """
    some_started = any(w.ready or w.starts for w in workers)
    place = workers.index(worker)
    if worker.ready or (some_started and worker.starts < STARTS):
        workers[place] = worker.replaced()
    else:
        del workers[place]
    if not some_started or not workers:
        raise _cannot_start(cause)


def _cannot_start(reason: str) -> UserError:
    return UserError(f"`workers`: a worker process cannot start: {reason}; accepted: 1, which needs no such process")


class _Worker:
    """A worker process, seen from the driver's process.

    ready: whether the process has loaded the data. number: the trial that it runs.
    starts: the number of replacements in a row, up to this one, since a worker of this place was ready.
    """

    def __init__(self, file: IO[bytes], sizes: list[int], threads: int, visible: str) -> None:
        self._how = file, sizes, threads, visible
        self.ready, self.number, self.starts = False, None, 0
        self.connection, theirs = Pipe()
        numbers = theirs.fileno(), file.fileno()
        # The search's own path finds the user's modules. The main program is not imported again, as `multiprocessing`
        # would: a script of the user may lack the guard against a second run.
        code = f"import sys; sys.path[:] = {sys.path}; import search.worker_process as worker"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"{code}; worker.serve({numbers[0]}, {numbers[1]}, {sizes}, {threads})"],
                stdin=subprocess.PIPE,  # ends with this process: see `worker_process`
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=SLEEPING_THREADS | os.environ | {"OMP_NUM_THREADS": str(threads), VISIBLE: visible},
                pass_fds=numbers,
                start_new_session=True,  # a terminal sends Ctrl-C to all processes of a session; workers wait for ours
            )

    def start(self, job: Job) -> None:
        """Send a job. If the worker is dead, the wait for its next message detects this."""
        self.number = job.number
        with contextlib.suppress(OSError):
            self.connection.send(job)

    def answer(self, continues: bool) -> None:
        """Answer a report: whether the trial continues. After a False, the worker is idle."""
        if not continues:
            self.number = None
        with contextlib.suppress(OSError):
            self.connection.send(continues)

    def end(self) -> str:
        """Kill the process if it is alive. Return the cause of its end in words."""
        with self._process:  # closes its input, and waits for its end
            self._process.kill()
        self.connection.close()
        code = self._process.returncode
        return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"

    def replaced(self) -> _Worker:
        """Return a new worker with the same resources."""
        worker = _Worker(*self._how)
        worker.starts = 1 if self.ready else self.starts + 1
        return worker


@contextlib.contextmanager
def _started(file: IO[bytes], data: Data, work: Work, resources: Resources) -> Iterator[list[_Worker]]:
    """Start the workers, and kill them at the end of the block. file: the temporary file of the data."""
    n, gpus = count(resources), check_room(resources, this_machine())
    try:
        sizes = write_shared(file, (data, work))
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # `pickle` raises all of them
        raise _cannot_start(str(error)) from None
    workers: list[_Worker] = []
    try:
        for place in range(n):
            workers.append(_Worker(file, sizes, resources.cpus_per_trial, visible_gpus(place, gpus)))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def visible_gpus(place: int, gpus: float) -> str:
    """Return `CUDA_VISIBLE_DEVICES` for a worker, empty without GPUs. place: the number of the worker, from 0."""
    if gpus == 0:
        return ""
    known = os.environ.get(VISIBLE)
    names = known.split(",") if known else [str(i) for i in range(torch.cuda.device_count())]
    if gpus < 1:
        return names[place // int(1 / gpus)]
    return ",".join(names[place * int(gpus) : (place + 1) * int(gpus)])
