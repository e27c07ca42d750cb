"""Searches on a Ray cluster: its nodes are raylets on this machine, and some are killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search.study.storage import read
from search.study.trials import FAILED, ORPHAN, SCORED, Record

pytest.importorskip("ray")

from res2net.errors import UserError
from search.execute import cluster
from search.execute import tune as execute_tune
from search.resources import Resources

ROOT = Path(__file__).parents[2]
# Ray gives its workers a niceness of 15, with which they hardly start where others are busy. By default Ray takes
# 30 s to declare a node dead and 60 s to give up on the head.
RAY = {
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | RAY
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

# A search without training. From the fourth trial on, each trial writes `waits-N` after its first epoch and waits for
# the file `go`. Its images must be memory-mapped (not writeable).
SEARCH = """
import sys, time
from pathlib import Path
import numpy as np
import trainers.datasets.data
from res2net.commands import Parser, run_main
from search import Settings, search
from studies.synthetic import Synthetic
from trainers.datasets.data import Data, Split

folder, trials, address = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
split = Split(np.zeros((2000, 3, 32, 32), np.uint8), np.arange(2000) % 10)
trainers.datasets.data.load = lambda *_, **__: Data("shapes", tuple("abcdefghij"), split, split, (0.5,) * 3, (0.5,) * 3)

def work(job, data):
    if data.train.images.flags.writeable:
        raise RuntimeError("a copy of the data")
    for report in Synthetic()(job, data):
        if report.epoch == 2 and job.number >= 3:
            (folder.parent / f"waits-{job.number}").touch()
            while not (folder.parent / "go").exists():
                time.sleep(0.1)
        yield report

settings = Settings(space="scale_card", per_stage=True, trials=trials, sampler="random", ray_address=address)
sys.exit(run_main(lambda _: print(search(settings, folder, work=work).why_stopped), lambda: Parser(prog="search"), []))
"""


class Nodes:
    """The process of a cluster; its commands are those of `raylets.py`."""

    def __init__(self, *cpus: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("raylets.py")), *map(str, cpus)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        for _ in range(3):  # on a busy machine a node may need longer than the 30 s that Ray allows
            self._process = subprocess.Popen(command, env=ENVIRONMENT, **pipes)
            if line := self._process.stdout.readline():
                break
        self.address, *self.ids = line.split()

    def do(self, line: str) -> str:
        """Give a command; return the id of its node."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Start a head without cores and three nodes with one core each."""
    cluster = Nodes(1, 1, 1)
    yield cluster
    cluster.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that starts a search in the folder `run`."""
    started = []

    def start_(address: str, trials: int) -> subprocess.Popen:
        command = [sys.executable, "-c", SEARCH, str(tmp_path / "run"), str(trials), address]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=ENVIRONMENT, **pipes))
        return started[-1]

    yield start_
    for process in started:
        process.kill()
        process.wait()


def of(folder: Path, *outcomes: str) -> list[Record]:
    return [r for r in read(folder / "run") if r.outcome in outcomes]


def wait_for(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.3)


def waiting(folder: Path) -> int:
    """Return the number of trials that have begun to wait."""
    return len(list(folder.glob("waits-*")))


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestNodes:
    def test_a_node_dies_and_another_joins_and_no_trial_is_lost_or_doubled(
        self, nodes: Nodes, start: Callable, tmp_path: Path
    ) -> None:
        search = start(nodes.address, 14)
        wait_for(search, lambda: waiting(tmp_path) == 3)
        dead = nodes.do("kill 1")
        wait_for(search, lambda: of(tmp_path, FAILED))
        new = nodes.do("add 1")
        wait_for(search, lambda: waiting(tmp_path) == 4)  # with the retry of the lost trial
        (tmp_path / "go").touch()
        out, error = search.communicate(timeout=120)
        assert (search.returncode, error) == (0, "")
        assert out.endswith("all trials are done\n")  # Ray's lines about the lost raylet come before
        scored, failed = of(tmp_path, SCORED), of(tmp_path, FAILED)
        assert (len(scored), len(failed)) == (13, 1)
        assert failed[0].attrs["reason"].startswith("the worker died: ")
        assert [r.attrs["retry_of"] for r in scored if r.key == failed[0].key] == [failed[0].number]
        assert len({r.key for r in scored}) == 13
        assert {r.attrs["node"] for r in scored} - {dead} == {*nodes.ids, new} - {dead}
        assert not any(r.state in ("RUNNING", "WAITING") for r in read(tmp_path / "run"))

    def test_the_head_dies_and_the_same_search_goes_on(self, nodes: Nodes, start: Callable, tmp_path: Path) -> None:
        search = start(nodes.address, 8)
        wait_for(search, lambda: waiting(tmp_path) == 3)
        before = {r.number for r in of(tmp_path, SCORED)}
        nodes.do("kill head")
        search.communicate(timeout=120)  # where Tune waits for a trial, Ray ends the process after its timeout
        assert search.returncode != 0
        assert {r.number for r in of(tmp_path, SCORED)} == before
        (tmp_path / "go").touch()
        again = start("local", 8)
        out, error = again.communicate(timeout=200)
        assert (again.returncode, out) == (0, "all trials are done\n"), error
        assert len({r.key for r in of(tmp_path, SCORED)}) == len(of(tmp_path, SCORED)) == 8
        assert len(of(tmp_path, ORPHAN)) == 3
        assert not any(r.state in ("RUNNING", "WAITING") for r in read(tmp_path / "run"))


class TestAddress:
    @pytest.fixture(autouse=True)
    def no_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Hide the Ray that other tests of this process share, and keep it running."""
        monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
        monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)

    @pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "nonsense", "127.0.0.1:80", "127.0.0.1:port"])
    def test_what_is_no_address(self, address: str) -> None:
        with pytest.raises(UserError, match=f"^`ray_address`: {address}: .*; accepted: auto"):
            execute_tune.check(Resources(ray_address=address))

    def test_nothing_listens_there(self) -> None:
        with socket.socket() as free:
            free.bind(("", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
            with pytest.raises(UserError, match=f"^`ray_address`: {address}: .*refused; accepted: auto"):
                execute_tune.check(Resources(ray_address=address))

    def test_something_else_listens_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster, "HEALTH_SECONDS", 2.0)
        with socket.create_server(("", 0)) as server:
            threading.Thread(target=server.accept, daemon=True).start()
            with pytest.raises(UserError, match=r"no Ray answers there, .*; accepted: auto"):
                execute_tune.check(Resources(ray_address=f"127.0.0.1:{server.getsockname()[1]}"))


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "expected"),
    [
        ([{"CPU": 4.0}, {"CPU": 2.0}, {}], 1, 0, 6),
        ([{"CPU": 4.0}, {"CPU": 3.0}], 2, 0, 3),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], 1, 1.0, 2),
        ([{"CPU": 8.0, "GPU": 2.0}], 1, 0.6, 2),  # a share is of one GPU
        ([{"CPU": 8.0, "GPU": 2.0}], 1, 0.25, 8),
        ([{"CPU": 8.0, "GPU": 4.0}], 3, 2.0, 2),
    ],
)
def test_places_are_counted_node_by_node(
    nodes: list[dict[str, float]], cpus: int, gpus: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_nodes", lambda: nodes)
    assert cluster.places(cpus, gpus) == expected


LISTEN = """
import ray
from search.execute.cluster import ray_at

with ray_at(None):
    ray.get([ray.remote(lambda: 0).remote() for _ in range(2)])  # starts two workers
    print("there", flush=True)
    input()
"""


@LINUX
@pytest.mark.slow
def test_a_ray_of_our_own_listens_on_loopback_alone() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        assert process.stdout.readline() == "there\n"
        found = listening(process.pid)
    finally:
        process.communicate("\n", timeout=60)
    assert len(found) >= 5
    assert set(found) <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, as IPv4 and as IPv6


def listening(pid: int) -> list[str]:
    """Return the hexadecimal address of each TCP socket on which a process or a descendant listens."""
    tables = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    address_of = {f"socket:[{row[9]}]": row[1].split(":")[0] for row in tables if row[3] == "0A"}
    links = [os.readlink(fd) for p in (pid, *descendants(pid)) for fd in Path(f"/proc/{p}/fd").iterdir()]
    return [address_of[link] for link in dict.fromkeys(links) if link in address_of]


def descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [p for child in map(int, children) for p in (child, *descendants(child))]
