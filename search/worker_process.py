"""The program of a worker process of `--executor local`: take jobs from a connection, send reports.

This module imports neither Optuna nor pandas, so that a worker starts as fast as torch does.
"""

from __future__ import annotations

import mmap
import os
import pickle
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import IO, Any

import torch

from search.worker import Work, guarded
from trainers.datasets.data import Data

ALIGNMENT = 64  # bytes; arrays in the shared file start at multiples of a cache line


def write_shared(file: IO[bytes], value: Any) -> list[int]:
    """Write a value to a file from which any number of processes map its arrays; return the sizes of its parts.

    The first part is the pickle, without the bytes of arrays; each further part is one array. If `pickle`
    cannot write the value, its error is raised unchanged.
    """
    arrays: list[pickle.PickleBuffer] = []
    parts = [memoryview(pickle.dumps(value, protocol=5, buffer_callback=arrays.append)), *(a.raw() for a in arrays)]
    for part in parts:
        file.write(part)
        file.write(bytes(-len(part) % ALIGNMENT))
    file.flush()
    return [len(part) for part in parts]


def read_shared(number: int, sizes: Sequence[int]) -> Any:
    """Return the value in a shared file. number: the descriptor of the file. sizes: as `write_shared` returned them.

    Arrays are not read but mapped. All processes share their memory, until a process writes to its own copy.
    """
    whole = memoryview(mmap.mmap(number, 0, access=mmap.ACCESS_COPY))
    parts, start = [], 0
    for size in sizes:
        parts.append(whole[start : start + size])
        start += size + -size % ALIGNMENT
    return pickle.loads(parts[0], buffers=parts[1:])


def serve(connection: int, shared: int, sizes: Sequence[int], threads: int) -> None:
    """Run jobs until the driver's process ends. connection, shared: file descriptors from the driver's process.

    The first message is None, or the reason why the data or the work cannot be loaded. Then each received job is
    answered by reports, and each report by whether the trial continues. After a False, the next job follows.
    """
    for inherited in (connection, shared):
        os.set_inheritable(inherited, False)  # a process that the work starts must not keep the connection open
    threading.Thread(target=_end_with_driver, daemon=True).start()
    torch.set_num_threads(threads)
    pipe = Connection(connection)
    try:
        data, work = read_shared(shared, sizes)
    except Exception as error:  # unpickling runs any code of the user's modules
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])
        return
    pipe.send(None)
    while True:
        _run(pipe, data, work)


def _run(pipe: Connection, data: Data, work: Work) -> None:
    """Run one job. If the driver's process has ended, sending or receiving raises an error, which ends this process."""
    for report in guarded(work, pipe.recv(), data):
        pipe.send(report)
        if not pipe.recv():
            return


def _end_with_driver() -> None:
    """End this process when the driver's process ends, even by a kill and in the middle of an epoch."""
    sys.stdin.buffer.read()  # nothing is written to this pipe; the read returns when the driver's end is closed
    os._exit(1)
