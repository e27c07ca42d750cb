"""One contract for every executor: whatever happens to a trial, the study says so and the search goes on."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search.driver import Driver
from search.execute_local import execute as execute_local
from search.study import FAILED, ORPHAN, SCORED, Record, arch_of, read
from search.worker import Job, Report, Work
from studies.synthetic import Synthetic, accuracy
from trainers.data import Data
from trainers.train import TrainingFailed

Execute = Callable[[Driver, Data, Work], None]


# Work is made inside functions: what cannot be imported is sent to Ray's workers by value.
def work_that(act: Callable[[Job, Report], Report]) -> Work:
    def work(job: Job, data: Data) -> Iterator[Report]:
        for report in Synthetic()(job, data):
            yield act(job, report)

    return work


def dies_once(marker: Path) -> Work:
    """The first worker that comes here is killed after an epoch."""

    def work(job: Job, data: Data) -> Iterator[Report]:
        for report in Synthetic()(job, data):
            if report.epoch == 2 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield report

    return work


def of(folder: Path, *outcomes: str) -> list[Record]:
    return [r for r in read(folder) if r.outcome in outcomes]


@pytest.fixture(params=["local", pytest.param("tune", marks=pytest.mark.slow)])
def execute(request: pytest.FixtureRequest) -> Execute:
    return execute_local if request.param == "local" else request.getfixturevalue("execute_tune")


@pytest.fixture
def execute_tune(ray_cluster: None) -> Execute:
    from search.execute_tune import execute

    return execute


class TestEveryExecutor:
    def test_all_trials_run(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        with open_driver(make_settings(trials=8)) as driver:
            execute(driver, data, Synthetic())
            assert driver.running == {}
        scored = of(tmp_path, SCORED)
        assert len(scored) == len({r.key for r in scored}) == 8
        for record in scored:
            arch = arch_of(record)
            assert record.epochs == {1: accuracy(arch, 1), 2: accuracy(arch, 2)}
            assert record.val_top1 == accuracy(arch, 2)
            assert record.attrs["epochs"] == 2

    def test_the_job_arrives_whole(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data
    ) -> None:
        kept: dict[int, tuple[Job, bytes]] = {}

        def echo(job: Job, report: Report) -> Report:
            return Report(report.epoch, 1.0, 1.0, 1.0, weights=job.to_json().encode())

        with open_driver(
            make_settings(trials=3), on_scored=lambda job, weights: kept.update({job.number: (job, weights)})
        ) as driver:
            execute(driver, data, work_that(echo))
        assert len(kept) == 3
        assert all(Job.from_json(weights.decode()) == job for job, weights in kept.values())

    def test_a_trial_that_raises_is_recorded_and_the_search_goes_on(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        def raises(job: Job, report: Report) -> Report:
            if job.number in (0, 2) and report.epoch == 2:
                raise RuntimeError("no luck\nand no more lines")
            return report

        with open_driver(make_settings(trials=5)) as driver:
            execute(driver, data, work_that(raises))
        failed = of(tmp_path, FAILED)
        assert [r.number for r in failed] == [0, 2]
        for record in failed:
            assert record.state == "FAIL"
            assert record.attrs["reason"].startswith("RuntimeError: no luck (raises, test_executors.py:")
            assert list(record.epochs) == [1]
        assert len(of(tmp_path, SCORED)) == 3

    def test_training_that_failed_says_why_in_its_own_words(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        def diverges(job: Job, report: Report) -> Report:
            if job.number == 0:
                raise TrainingFailed("training loss is nan in epoch 1 of 2")
            return report

        with open_driver(make_settings(trials=2)) as driver:
            execute(driver, data, work_that(diverges))
        assert [r.attrs["reason"] for r in of(tmp_path, FAILED)] == ["training loss is nan in epoch 1 of 2"]
        assert len(of(tmp_path, SCORED)) == 1

    def test_an_accuracy_that_is_no_number_is_a_failure(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        def is_nan(job: Job, report: Report) -> Report:
            return Report(report.epoch, math.nan, 1.0, 1.0) if job.number == 0 and report.epoch == 2 else report

        with open_driver(make_settings(trials=3)) as driver:
            execute(driver, data, work_that(is_nan))
            assert driver.running == {}
        (failed,) = of(tmp_path, FAILED)
        assert "nan" in failed.attrs["reason"]
        assert len(of(tmp_path, SCORED)) == 2

    def test_weights_arrive_bit_for_bit(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data
    ) -> None:
        kept: dict[int, bytes] = {}

        def heavy(job: Job, report: Report) -> Report:
            block = hashlib.sha512(str(job.number).encode()).digest()
            return Report(report.epoch, 1.0, 1.0, 1.0, weights=block * 2**14 if report.epoch == 2 else None)

        with open_driver(
            make_settings(trials=3), on_scored=lambda job, weights: kept.update({job.number: weights})
        ) as driver:
            execute(driver, data, work_that(heavy))
        assert len(kept) == 3
        for number, weights in kept.items():
            assert weights == hashlib.sha512(str(number).encode()).digest() * 2**14

    def test_work_sees_the_images(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data
    ) -> None:
        kept = []

        def work(job: Job, data: Data) -> Iterator[Report]:
            total = hashlib.sha256(data.train.images.tobytes() + data.val.labels.tobytes()).digest()
            yield Report(1, 1.0, 1.0, 1.0, weights=total)

        with open_driver(make_settings(trials=1, epochs=1), on_scored=lambda _, weights: kept.append(weights)) as driver:
            execute(driver, data, work)
        assert kept == [hashlib.sha256(data.train.images.tobytes() + data.val.labels.tobytes()).digest()]

    def test_an_interruption_leaves_nothing_running_and_the_search_can_go_on(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        settings = make_settings(trials=6, epochs=3)
        changes: list[int] = []

        def interrupt() -> None:
            changes.append(driver.spent)
            if len(changes) == 10:
                raise KeyboardInterrupt

        with open_driver(settings, on_change=interrupt) as driver:
            with pytest.raises(KeyboardInterrupt):
                execute(driver, data, Synthetic())
            driver.release_all("the search was interrupted")
        orphans = of(tmp_path, ORPHAN)
        assert len(orphans) == len(of(tmp_path, "waiting"))
        assert of(tmp_path, "running") == []
        with open_driver(settings) as driver:
            execute(driver, data, Synthetic())
        assert len(of(tmp_path, SCORED)) == 6
        assert of(tmp_path, "running", "waiting") == []

    def test_a_search_that_is_done_runs_nothing(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        for _ in range(2):
            with open_driver(make_settings(trials=2)) as driver:
                execute(driver, data, Synthetic())
        assert len(list(read(tmp_path))) == 2

    def test_a_space_that_is_used_up_ends_the_search(
        self, execute: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        with open_driver(make_settings(trials=30, epochs=1, max_macs=200_000)) as driver:
            execute(driver, data, Synthetic())
        assert driver.why_stopped.startswith("every network of the space")
        assert all(r.macs <= 200_000 for r in of(tmp_path, SCORED))


@pytest.mark.slow
class TestTune:
    def test_a_worker_that_is_killed_is_recorded_and_its_network_asked_again(
        self, execute_tune: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        with open_driver(make_settings(trials=6)) as driver:
            execute_tune(driver, data, dies_once(tmp_path / "died"))
        (failed,) = of(tmp_path, FAILED)
        assert "the worker died" in failed.attrs["reason"]
        assert "\n" not in failed.attrs["reason"]
        (again,) = [r for r in of(tmp_path, SCORED) if "retry_of" in r.attrs]
        assert (again.attrs["retry_of"], again.key) == (failed.number, failed.key)
        assert len(of(tmp_path, SCORED)) == 5

    @pytest.mark.parametrize("workers", [1, 2])
    def test_no_more_trials_run_than_there_are_workers(
        self, workers: int, execute_tune: Execute, open_driver: Callable, make_settings: Callable, data: Data
    ) -> None:
        running = []
        with open_driver(make_settings(trials=5), on_change=lambda: running.append(len(driver.running))) as driver:
            execute_tune(driver, data, Synthetic(), workers=workers)
        assert max(running) == workers

    def test_proposals_of_one_worker_are_those_of_the_local_executor(
        self,
        execute_tune: Execute,
        open_driver: Callable,
        make_settings: Callable,
        data: Data,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        settings, folders = make_settings(trials=9), []
        for run, keywords in ((execute_local, {}), (execute_tune, {"workers": 1})):
            folders.append(tmp_path_factory.mktemp("run"))
            with open_driver(settings, folder=folders[-1]) as driver:
                run(driver, data, Synthetic(), **keywords)
        local, tune = ([(r.params, r.val_top1) for r in of(folder, SCORED)] for folder in folders)
        assert local == tune

    def test_more_gpus_than_there_are_is_one_line(
        self, execute_tune: Execute, open_driver: Callable, make_settings: Callable, data: Data, tmp_path: Path
    ) -> None:
        with open_driver(make_settings()) as driver, pytest.raises(ValueError, match=r"--gpus-per-trial: 16"):
            execute_tune(driver, data, Synthetic(), gpus_per_trial=16)
        assert list(read(tmp_path)) == []

    def test_the_environment_is_as_before(
        self, execute_tune: Execute, open_driver: Callable, make_settings: Callable, data: Data
    ) -> None:
        before = dict(os.environ)
        with open_driver(make_settings(trials=1)) as driver:
            execute_tune(driver, data, Synthetic())
        assert dict(os.environ) == before


def test_a_local_search_imports_no_ray(tiny_space: Path, tmp_path: Path) -> None:
    code = f"""
import sys
import numpy as np
import trainers.data
from search import Settings, search
from studies.synthetic import Synthetic
from trainers.data import Data, Split

split = Split(np.zeros((10, 3, 8, 8), np.uint8), np.arange(10))
trainers.data.load = lambda *_, **__: Data("shapes", tuple("abcdefghij"), split, split, (0.5,) * 3, (0.5,) * 3)
settings = Settings(space={str(tiny_space)!r}, executor="local", trials=2, epochs=1)
search(settings, {str(tmp_path / "run")!r}, work=Synthetic(weights=True))
print([name for name in sys.modules if name.partition(".")[0] == "ray"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
