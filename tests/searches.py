"""Fixtures of small searches: a tiny space, random images, and drivers over both.

The conftest files of `search/` and `stress/` import them by name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from optuna.storages import RDBStorage

import trainers.datasets.data
from search import run
from search.api import open_study
from search.driver import Driver
from search.execute.local import execute
from search.settings import Settings
from search.study.storage import sqlite_url
from search.worker import Work
from studies.synthetic import TINY_SPACE, Synthetic
from trainers.datasets.data import Data, Split

DIRECTIONS = {"val_top1": "maximize", "macs": "minimize"}


@pytest.fixture(scope="session", autouse=True)
def copied_databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start each new SQLite study as a copy of an empty one: Optuna takes 0.1 s to create its tables."""
    empty, create = tmp_path_factory.mktemp("empty") / "study.db", RDBStorage.__init__
    RDBStorage(f"sqlite:///{empty}").engine.dispose()

    def copy_first(self: RDBStorage, url: str, *args: object, **kwargs: object) -> None:
        path = Path(url.removeprefix("sqlite:///"))
        if url.startswith("sqlite:///") and path.parent.is_dir() and not path.exists():
            shutil.copy(empty, path)
        create(self, url, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RDBStorage, "__init__", copy_first)
        yield


@pytest.fixture(scope="session")
def data() -> Data:
    """Return 60 random images of 8 x 8 pixels, named as a data set that needs no files."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        return Split(rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8), np.arange(n) % 10)

    return Data("shapes", tuple("abcdefghij"), split(40), split(20), (0.5, 0.5, 0.5), (0.3, 0.3, 0.3))


@pytest.fixture
def loaded(data: Data, monkeypatch: pytest.MonkeyPatch) -> Data:
    """Make `search.search` load the random images."""
    monkeypatch.setattr(trainers.datasets.data, "load", lambda *args, **kwargs: data)
    return data


@pytest.fixture(scope="session")
def tiny_space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the YAML file of a space with 12 networks that build in milliseconds; return its path."""
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(TINY_SPACE)
    return path


@pytest.fixture
def make_settings(tiny_space: Path) -> Callable[..., Settings]:
    """Return a function that makes the settings of a short local search; keywords change them."""

    def make(**changes: object) -> Settings:
        defaults = {"space": str(tiny_space), "executor": "local", "workers": 1, "trials": 5, "epochs": 2}
        defaults["batch_size"] = 20
        return Settings(**{**defaults, **changes})

    return make


@pytest.fixture
def open_driver(tmp_path: Path) -> Callable[..., contextlib.AbstractContextManager[Driver]]:
    """Return a context manager: a driver over the study in a folder (default: the test's)."""

    @contextlib.contextmanager
    def open_(settings: Settings, folder: Path = tmp_path, **callbacks: Callable) -> Iterator[Driver]:
        space = settings.scope.get_space(10)
        study = open_study(sqlite_url(folder), folder.name, settings, space)
        try:
            yield Driver(settings, space, study, **callbacks)
        finally:
            study.close()

    return open_


@pytest.fixture
def run_driver(open_driver: Callable, data: Data) -> Callable[..., Driver]:
    """Return a function that runs a local search without training; the returned driver's study is closed."""

    def run(settings: Settings, work: Work | None = None, **keywords: object) -> Driver:
        with open_driver(settings, **keywords) as driver:
            execute(driver, data, work or Synthetic())
        return driver

    return run


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start one Ray for all tests of a worker: `search.execute.tune` uses a running Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a user's own module; return its name, which no other test's module has."""

    def write(source: str) -> str:
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        name = f"own_{secrets.token_hex(4)}"
        (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        return name

    return write


@pytest.fixture
def refused(loaded: Data, tiny_space: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[[str], str]:
    """Return a function that runs `search.run` with wrong options: it returns the one line of error."""

    def run_(options: str) -> str:
        arguments = f"--space {tiny_space} --executor local --workers 1 --out {tmp_path / 'run'} {options}"
        assert run.main(arguments.split()) == 2
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert not (tmp_path / "run").exists()
        return error.removeprefix("python -m search.run: error: ")

    return run_
