"""One contract for every executor: the study records every end of a trial, and the search continues.

The works are made inside the tests' functions: Ray's workers cannot import a test file, so functions travel by value.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from res2net.errors import UserError
from search.driver import Driver
from search.evaluators import trial_seed
from search.execute.local import execute as execute_local
from search.execute.pool import execute as execute_in_pool
from search.ledger import RETRIES
from search.resources import Resources
from search.study.storage import read
from search.study.trials import FAILED, ORPHAN, SCORED, STOPPED, Record
from search.worker import Job, Report, Work, train_trial
from studies.synthetic import Synthetic, accuracy
from trainers.datasets.data import Data
from trainers.train import TrainingFailed

Execute = Callable[[Driver, Data, Work], None]


def of(folder: Path, *outcomes: str) -> list[Record]:
    return [r for r in read(folder) if r.outcome in outcomes]


@pytest.fixture(params=["local", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pool", "tune"))])
def execute(request: pytest.FixtureRequest) -> Execute:
    return execute_local if request.param == "local" else request.getfixturevalue(f"execute_{request.param}")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) for name in ("pool", "tune")])
def execute_apart(request: pytest.FixtureRequest) -> Execute:
    """Run the trials in processes apart from the driver's."""
    return request.getfixturevalue(f"execute_{request.param}")


@pytest.fixture
def execute_pool() -> Execute:
    by_value = pytest.importorskip("by_value")  # needs Ray

    def run(driver: Driver, data: Data, work: Work, **resources: float) -> None:
        execute_in_pool(driver, data, by_value.ByValue(work), Resources(**{"workers": 2, **resources}))

    return run


@pytest.fixture
def execute_tune(ray_cluster: None) -> Execute:
    from search.execute.tune import execute

    def run(driver: Driver, data: Data, work: Work, **resources: float) -> None:
        execute(driver, data, work, Resources(**resources))

    return run


class TestEveryExecutor:
    def test_every_trial_gets_its_job_and_the_data_and_hands_back_its_weights(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        kept: dict[int, tuple[Job, bytes]] = {}

        def work(job: Job, data: Data) -> Iterator[Report]:
            images = hashlib.sha256(data.train.images.tobytes() + data.val.labels.tobytes()).digest()
            for report in Synthetic()(job, data):
                weights = job.to_json().encode() + images * 2**15 if report.epoch == 2 else None
                yield replace(report, weights=weights)

        with open_driver(
            make_settings(trials=8), on_scored=lambda job, weights: kept.update({job.number: (job, weights)})
        ) as driver:
            execute(driver, data, work)
            assert driver.running == {}
        scored = of(tmp_path, SCORED)
        assert len(scored) == len({r.key for r in scored}) == 8
        for record in scored:
            arch = record.arch
            assert record.epochs == {1: accuracy(arch, 1), 2: accuracy(arch, 2)}
            assert record.quality == accuracy(arch, 2)
            assert record.attrs["epochs"] == 2
        images = hashlib.sha256(data.train.images.tobytes() + data.val.labels.tobytes()).digest()
        assert all(weights == job.to_json().encode() + images * 2**15 for job, weights in kept.values())
        assert kept.keys() == {r.number for r in scored}

    def test_failures_are_recorded_with_their_reason_and_other_networks_run(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        space = make_settings().scope.get_space(10)
        raises, diverges, is_nan = (
            space.arch({"scale": scale, "cardinality": 1, "depth": 1}).key() for scale in (1, 2, 4)
        )

        def work(job: Job, data: Data) -> Iterator[Report]:
            key = job.arch.key()
            for report in Synthetic()(job, data):
                if report.epoch == 2 and key == raises:
                    raise RuntimeError("no luck\nand no more lines")
                if report.epoch == 2 and key == diverges:
                    raise TrainingFailed("training loss is nan in epoch 2 of 2")
                yield replace(report, quality=math.nan) if report.epoch == 2 and key == is_nan else report

        with open_driver(make_settings(trials=30)) as driver:
            execute(driver, data, work)
            assert driver.running == {}
        assert len({r.key for r in of(tmp_path, SCORED)}) == 9
        failed = of(tmp_path, FAILED)
        assert all(r.state == "FAIL" and r.epochs.keys() == {1} for r in failed)
        reasons = {r.key: r.attrs["reason"] for r in failed}
        assert reasons.keys() == {raises, diverges, is_nan}
        assert reasons[raises].startswith("RuntimeError: no luck (work, test_executors.py:")
        assert reasons[diverges] == "training loss is nan in epoch 2 of 2"
        assert "nan" in reasons[is_nan]

    def test_reports_arrive_in_order_and_a_stopped_trial_trains_no_further(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                (tmp_path / f"trained-{job.number}-{report.epoch}").touch()
                yield report

        settings = make_settings(trials=12, epochs=4, scheduler="asha", eta=2, sampler="random")
        reported: dict[int, list[int]] = {}
        with open_driver(settings) as driver:
            judge = driver.on_report

            def on_report(number: int, report: Report) -> bool:
                reported.setdefault(number, []).append(report.epoch)
                return judge(number, report)

            driver.on_report = on_report
            execute(driver, data, work)
        assert all(epochs == list(range(1, len(epochs) + 1)) for epochs in reported.values())
        assert {len(reported[r.number]) for r in of(tmp_path, SCORED)} == {4}
        assert {len(reported[r.number]) for r in of(tmp_path, STOPPED)} <= {1, 2}
        assert of(tmp_path, STOPPED)
        trained = {path.name for path in tmp_path.glob("trained-*")}
        assert trained == {f"trained-{n}-{epoch}" for n, epochs in reported.items() for epoch in epochs}

    def test_an_interruption_leaves_nothing_running_and_the_search_resumes(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        settings = make_settings(trials=6, epochs=3)
        changes: list[int] = []

        def interrupt() -> None:
            changes.append(driver.ledger.spent)
            if len(changes) == 10:
                raise KeyboardInterrupt

        with open_driver(settings, on_change=interrupt) as driver:
            with pytest.raises(KeyboardInterrupt):
                execute(driver, data, Synthetic())
            driver.release_all("the search was interrupted")
        assert len(of(tmp_path, ORPHAN)) == len(of(tmp_path, "waiting"))
        assert of(tmp_path, "running") == []
        with open_driver(settings) as driver:
            execute(driver, data, Synthetic())
        assert len(of(tmp_path, SCORED)) == 6
        assert of(tmp_path, "running", "waiting") == []

    def test_a_search_ends_where_nothing_is_left_and_then_runs_nothing(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        with open_driver(make_settings(trials=30, epochs=1, max_macs=200_000)) as driver:
            execute(driver, data, Synthetic())
        assert driver.why_stopped.startswith("every network of the space")
        before = list(read(tmp_path))
        scored = of(tmp_path, SCORED)
        assert {r.key for r in scored} == {r.key for r in before if r.attrs["macs"] <= 200_000}
        with open_driver(make_settings(trials=len(scored), epochs=1, max_macs=200_000)) as driver:
            execute(driver, data, Synthetic())
        assert list(read(tmp_path)) == before


class TestWorkerProcesses:
    """The contract of the executors whose workers are processes of their own."""

    def test_as_many_trials_run_at_once_as_there_are_workers(
        self, execute_apart: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        def waits(job: Job, data: Data) -> Iterator[Report]:
            (tmp_path / f"here-{job.number}").touch()
            while len(list(tmp_path.glob("here-*"))) < 2:
                time.sleep(0.05)
            yield from Synthetic()(job, data)

        running = []
        with open_driver(make_settings(trials=4), on_change=lambda: running.append(len(driver.running))) as driver:
            execute_apart(driver, data, waits, workers=2)
        assert max(running) == 2
        assert len(of(tmp_path, SCORED)) == 4

    def test_a_worker_that_is_killed_is_recorded_and_its_network_asked_again(
        self, execute_apart: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        def dies(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                if report.epoch == 2 and job.number == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield report

        with open_driver(make_settings(trials=6)) as driver:
            execute_apart(driver, data, dies, workers=2)
        (failed,) = of(tmp_path, FAILED)
        assert failed.number == 0
        assert failed.attrs["reason"].startswith(
            ("the worker died: ActorDiedError: The actor died", "the worker died: signal 9 ")
        )
        assert "\n" not in failed.attrs["reason"]
        (again,) = [r for r in of(tmp_path, SCORED) if "retry_of" in r.attrs]
        assert (again.attrs["retry_of"], again.key) == (failed.number, failed.key)
        assert len(of(tmp_path, SCORED)) == 5

    def test_a_network_whose_worker_died_resumes_from_its_rung_bit_for_bit(
        self, execute_apart: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        kept: dict[int, bytes] = {}

        def dies(job: Job, data: Data) -> Iterator[Report]:
            for report in train_trial(job, data):
                if report.epoch == 3 and job.number == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield report

        with open_driver(
            make_settings(trials=3, epochs=4), on_scored=lambda job, weights: kept.update({job.number: weights})
        ) as driver:
            execute_apart(driver, data, dies, workers=1)
            assert driver.checkpoints == {}
        (again,) = [r for r in of(tmp_path, SCORED) if "retry_of" in r.attrs]
        assert (again.attrs["retry_of"], again.attrs["note"]) == (1, "resumed after epoch 1")
        config = make_settings(epochs=4).scoring.train_config(trial_seed(0, again.arch))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the worker has
        whole = list(train_trial(Job(0, again.arch, config), data))
        torch.set_num_threads(threads)
        assert again.epochs == {r.epoch: r.quality for r in whole}
        assert kept[again.number] == whole[-1].weights

    def test_a_network_that_always_kills_its_worker_is_given_up(
        self, execute_apart: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        """Though each of its retries resumes from a checkpoint."""

        def deadly(job: Job, data: Data) -> Iterator[Report]:
            for report in train_trial(job, data):
                if report.epoch == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield report

        with open_driver(make_settings(trials=1 + RETRIES, epochs=4)) as driver:
            execute_apart(driver, data, deadly, workers=1)
            assert driver.checkpoints == {}
        failed = of(tmp_path, FAILED)
        assert len(failed) == 1 + RETRIES
        assert len({r.key for r in failed}) == 1
        assert all(r.attrs["reason"].startswith("the worker died: ") for r in failed)
        assert [r.attrs.get("note") for r in failed] == [None] + ["resumed after epoch 1"] * RETRIES
        assert of(tmp_path, "running", "waiting") == []

    def test_one_worker_does_what_the_driver_s_own_process_does(
        self,
        execute_apart: Execute,
        open_driver: Callable,
        make_settings: Callable,
        data: Data,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        settings, folders, environment = make_settings(trials=9), [], dict(os.environ)
        for run, keywords in ((execute_local, {}), (execute_apart, {"workers": 1})):
            folders.append(tmp_path_factory.mktemp("run"))
            with open_driver(settings, folder=folders[-1]) as driver:
                run(driver, data, Synthetic(), **keywords)
        local, apart = ([(r.params, r.quality) for r in of(folder, SCORED)] for folder in folders)
        assert local == apart
        assert dict(os.environ) == environment

    @pytest.mark.timeout(120)  # the work sleeps longer
    def test_workers_that_ignore_the_time_are_ended_and_their_trials_resume(
        self, execute_apart: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        def sleeps(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                yield report
                time.sleep(600)

        def end_soon() -> None:
            driver.ends = time.monotonic() + 1

        with open_driver(make_settings(trials=2, time=600), on_change=end_soon) as driver:
            execute_apart(driver, data, sleeps, workers=2)
            assert driver.running == {}
        assert {r.attrs["reason"] for r in of(tmp_path, ORPHAN)} == {"the time was up"}
        with open_driver(make_settings(trials=2)) as driver:
            execute_local(driver, data, Synthetic())
        assert len(of(tmp_path, SCORED)) == 2
        assert of(tmp_path, "running", "waiting") == []

    def test_a_trial_has_the_threads_of_the_setting(
        self, execute_apart: Execute, open_driver: Callable, make_settings: Callable, data: Data
    ) -> None:
        def work(job: Job, data: Data) -> Iterator[Report]:
            for report in Synthetic()(job, data):
                yield replace(report, weights=str(torch.get_num_threads()).encode())

        kept: set[bytes] = set()
        before = dict(os.environ)
        with open_driver(make_settings(trials=2), on_scored=lambda job, weights: kept.add(weights)) as driver:
            execute_apart(driver, data, work, workers=1, cpus_per_trial=2)
        assert kept == {b"2"}
        assert dict(os.environ) == before

    def test_more_gpus_than_there_are_is_one_line(
        self, execute_apart: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        with open_driver(make_settings()) as driver, pytest.raises(UserError, match=r"^`gpus_per_trial`: 16"):
            execute_apart(driver, data, Synthetic(), gpus_per_trial=16)
        assert list(read(tmp_path)) == []


@pytest.mark.slow
def test_a_local_search_imports_no_ray(tiny_space: Path, tmp_path: Path) -> None:
    code = f"""
import sys
import numpy as np
import trainers.datasets.data
from search import Settings, search
from studies.synthetic import Synthetic
from trainers.datasets.data import Data, Split

split = Split(np.zeros((10, 3, 8, 8), np.uint8), np.arange(10))
trainers.datasets.data.load = lambda *_, **__: Data("shapes", tuple("abcdefghij"), split, split, (0.5,) * 3, (0.5,) * 3)
settings = Settings(space={str(tiny_space)!r}, executor="local", workers=1, trials=2, epochs=1)
search(settings, {str(tmp_path / "run")!r}, work=Synthetic(weights=True))
print([name for name in sys.modules if name.partition(".")[0] == "ray"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
