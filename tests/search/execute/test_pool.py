"""Worker processes on this machine: the room for them, what they get, and their end with the driver's process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from res2net.errors import UserError
from search.execute import executor_of, pool
from search.resources import Resources
from search.worker import Job, Report
from search.worker_process import read_shared, write_shared
from studies.synthetic import Synthetic
from trainers.datasets.data import Data
from trainers.meta import cores

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from pathlib import Path
import sleeping_work
import trainers.datasets.data
from search import Settings, search
from studies.synthetic import no_images

folder = Path(sys.argv[1])
trainers.datasets.data.load = lambda *_, **__: no_images()
settings = Settings(space="scale", executor="local", workers=2, trials=4, epochs=9)
print(search(settings, folder / "run", work=sleeping_work.Sleeps(folder)).interrupted, flush=True)
"""
WORK = """
import os
import time
from studies.synthetic import Synthetic

class Sleeps:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, job, data):
        for report in Synthetic()(job, data):
            yield report
            (self.folder / f"{os.getpid()}.pid").touch()
            time.sleep(600)
"""

DYING = """
import os
import signal
import time
from studies.synthetic import Synthetic

class Dies:
    # The first job kills its worker. Of the workers that start, those after `good` and up to `last` die.
    def __init__(self, folder, good, last, expected):
        self.folder, self.good, self.last, self.expected = folder, good, last, expected

    def starts(self):
        return len(list(self.folder.glob("*.pid")))

    def __setstate__(self, state):
        self.__dict__.update(state)
        (self.folder / f"{os.getpid()}.pid").touch()
        if self.good < self.starts() <= self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, job, data):
        if job.number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        while self.starts() < self.expected:
            time.sleep(0.05)
        yield from Synthetic()(job, data)
"""


class TestShared:
    @given(st.lists(arrays.arrays(st.sampled_from([np.uint8, np.int64, np.float32]), st.integers(0, 99)), max_size=4))
    def test_a_value_is_read_as_it_was_written(self, values: list[np.ndarray]) -> None:
        with tempfile.TemporaryFile() as file:
            found, text = read_shared(file.fileno(), write_shared(file, (values, "text")))
        assert text == "text"
        for a, b in zip(found, values, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)

    def test_arrays_are_aligned_and_a_write_changes_no_other_process_s(self) -> None:
        with tempfile.TemporaryFile() as file:
            sizes = write_shared(file, [np.zeros(3, np.uint8), np.arange(5)])
            one, two = (read_shared(file.fileno(), sizes)[1] for _ in range(2))
        assert one.ctypes.data % 64 == 0
        one[:] = 7
        assert two.tolist() == [0, 1, 2, 3, 4]
        assert torch.from_numpy(two).sum() == 10

    def test_the_bytes_of_the_images_are_not_in_the_pickle(self, data: Data) -> None:
        with tempfile.TemporaryFile() as file:
            sizes = write_shared(file, (data, Synthetic()))
        assert sizes[0] < 2000 < len(pickle.dumps(data))


class TestRoom:
    def test_by_default_as_many_workers_as_cores_allow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        assert pool.count(Resources()) == cores()
        assert pool.count(Resources(cpus_per_trial=cores())) == 1
        assert executor_of(Resources(executor="local")).places() == cores()

    @pytest.mark.parametrize(("gpus", "expected"), [(None, 2), (0.5, 4), (2, 1), (0, 64)])
    def test_by_default_as_many_workers_as_gpus_allow(
        self, gpus: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("search.execute.room.cores", lambda: 64)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert pool.count(Resources(gpus_per_trial=gpus)) == expected

    @pytest.mark.parametrize(
        ("gpus", "known", "expected"),
        [
            (0, None, ["", "", ""]),
            (1, None, ["0", "1", "2"]),
            (0.5, None, ["0", "0", "1"]),
            (0.3, None, ["0", "0", "0"]),
            (2, None, ["0,1", "2,3", "4,5"]),
            (1, "3,5,7", ["3", "5", "7"]),
        ],
    )
    def test_each_worker_sees_its_own_gpus(
        self, gpus: float, known: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
        monkeypatch.delenv(pool.VISIBLE, raising=False)
        if known:
            monkeypatch.setenv(pool.VISIBLE, known)
        assert [pool.visible_gpus(place, gpus) for place in range(3)] == expected

    @pytest.mark.parametrize("name", ["workers", "cpus_per_trial", "gpus_per_trial"])
    def test_more_than_there_is_room_for_is_one_line(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        many: Any = {name: 16 if name == "gpus_per_trial" else cores() + 1}
        with pytest.raises(UserError, match=rf"^`{name}`: \d+ .*; accepted: .*$"):
            executor_of(Resources(executor="local", **many)).check()


class TestStart:
    def test_a_work_that_cannot_be_copied_is_one_line_before_any_trial(
        self, open_driver: Callable, make_settings: Callable, data: Data
    ) -> None:
        def closure(job: Job, data: Data) -> Iterator[Report]:
            yield from Synthetic()(job, data)

        with open_driver(make_settings()) as driver:
            with pytest.raises(UserError, match=r"^`workers`: .*closure.*; accepted: 1, .*$"):
                pool.execute(driver, data, closure, Resources(workers=2))
            assert driver.study.records() == []

    @pytest.mark.slow
    def test_threads_that_wait_sleep_in_workers_alone(
        self, open_driver: Callable, make_settings: Callable, data: Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                yield replace(report, weights=os.environ["OMP_WAIT_POLICY"].encode())

        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        kept: set[bytes] = set()
        by_value = pytest.importorskip("by_value").ByValue(work)  # needs Ray
        with open_driver(make_settings(trials=1), on_scored=lambda job, weights: kept.add(weights)) as driver:
            pool.execute(driver, data, by_value, Resources(workers=1))
        assert kept == {b"PASSIVE"}
        assert "OMP_WAIT_POLICY" not in os.environ

    @pytest.mark.slow
    @pytest.mark.parametrize(("workers", "last", "starts"), [(1, 2, 3), (2, 99, 2 + pool.STARTS)])
    def test_a_search_survives_replacements_that_die_as_they_start(
        self,
        workers: int,
        last: int,
        starts: int,
        open_driver: Callable,
        make_settings: Callable,
        data: Data,
        write_module: Callable,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("search.execute.room.cores", lambda: 2)
        work = import_module(write_module(DYING)).Dies(tmp_path, workers, last, starts)
        with open_driver(make_settings(trials=4)) as driver:
            pool.execute(driver, data, work, Resources(workers=workers))
            assert driver.ledger.spent == 4
        assert work.starts() == starts

    @pytest.mark.slow
    def test_a_work_that_workers_cannot_load_is_one_line(
        self, open_driver: Callable, make_settings: Callable, data: Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Here(Synthetic):
            pass

        Here.__qualname__ = "Here"  # as `pickle` names a class of a module
        monkeypatch.setattr(sys.modules[__name__], "Here", Here, raising=False)
        with open_driver(make_settings()) as driver:
            with pytest.raises(UserError, match=r"^`workers`: .*; accepted: 1, .*$"):
                pool.execute(driver, data, Here(), Resources(workers=2))
            assert driver.study.records() == []


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_driver_s_process(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "sleeping_work.py").write_text(WORK)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        workers = wait_for(lambda: found if len(found := list(tmp_path.glob("*.pid"))) == 2 else None)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (out, error) == ("True\n" if number == signal.SIGINT else "", "")
    wait_for(lambda: not any(alive(int(path.stem)) for path in workers))
    assert not list(tmp_path.glob("tmp*"))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(condition: Callable[[], Any]) -> Any:
    """Return the condition's first true value."""
    while not (found := condition()):
        time.sleep(0.1)
    return found
