"""The wheel, installed into an empty environment away from the checkout: its files, its commands, its version."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from res2net.console import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGES = ("res2net", "space", "trainers", "search", "studies")
DISTRIBUTION = f"res2net_search-{version('res2net-search')}"
# Not for users of the wheel: recorded measurements.
LEFT_OUT = ("studies/results/", "studies/LOG.md")
# Run `python -m NAME --help` for each name, in one process that imports torch once.
HELPS = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    sys.argv[1:] = ["--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, f"{name}: {end.code}"
    assert shown.getvalue().startswith(f"usage: python -m {name} "), f"{name}: {shown.getvalue()[:200]}"
"""

pytestmark = pytest.mark.slow


def sources() -> set[str]:
    """Return the files of the packages in the checkout, by their paths in the wheel."""
    found = (p for package in PACKAGES for p in (ROOT / package).rglob("*") if p.is_file())
    names = {p.relative_to(ROOT).as_posix() for p in found if p.suffix != ".pyc"}
    return {name for name in names if not name.startswith(LEFT_OUT)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: a build leaves files in its folder, and packs those that an older build left."""
    copy, out = tmp_path_factory.mktemp("source") / "res2net-search", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment with the wheel. It finds the dependencies, but not the checkout, in the tests' environment.

    A line of a .pth file adds a folder to the path without the .pth files of that folder: an editable install in the
    tests' environment has no effect.
    """
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    pip("--python", str(home / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    packages = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site_packages(home) / "dependencies.pth").write_text(
        "\n".join(packages)
    )  # now: pip would see another install there
    return home


@pytest.fixture
def call(environment: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a program of the environment in an empty folder."""

    def call_(program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(environment / "bin" / program), *words]
        return subprocess.run(command, cwd=tmp_path, env=variables(), capture_output=True, text=True, check=False)

    return call_


def variables() -> dict[str, str]:
    """Return the variables of the environment, without a PYTHONPATH that may name the checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"OMP_NUM_THREADS": "1"}


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, env=variables(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def modules(environment: Path) -> list[str]:
    """Return the installed modules that run as commands."""
    site, found = site_packages(environment), []
    for package in PACKAGES:
        for path in sorted((site / package).rglob("*.py")):
            if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8"):
                found.append(".".join(path.relative_to(site).with_suffix("").parts).removesuffix(".__main__"))
    return found


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    files = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith(f"{DISTRIBUTION}.dist-info/")}
    assert files == sources()


def test_what_is_installed_is_what_is_imported(environment: Path, call: Callable) -> None:
    code = f"import {', '.join(PACKAGES)}; print(*(p.__file__ for p in ({', '.join(PACKAGES)})), res2net.__version__)"
    done = call("python", "-c", code)
    assert done.returncode == 0, done.stderr
    *files, number = done.stdout.split()
    assert files == [str(site_packages(environment) / package / "__init__.py") for package in PACKAGES]
    assert number == version("res2net-search")


def test_the_console_command_lists_its_commands_and_its_version(call: Callable) -> None:
    done = call("res2net-search", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert call("res2net-search", "--version").stdout == f"res2net-search {version('res2net-search')}\n"


def test_every_module_that_runs_as_a_command_shows_its_help(environment: Path, call: Callable) -> None:
    names = modules(environment)
    assert {"res2net", "search.run", "trainers.fit", "studies.bench_front"} <= set(names)
    done = call("python", "-c", HELPS, *names)
    assert done.returncode == 0, done.stderr


def test_from_a_space_to_a_trained_network(call: Callable, tmp_path: Path) -> None:
    images = ["--train-images", "200"]
    for line in (
        "describe --space scale_card_depth --base micro",
        "search --space scale_card_depth --base micro --trials 1 --epochs 1 --executor local --workers 1 --out run",
        "report run",
        "export run --to exported",
        "fit exported --epochs 1 --out trained",
        "evaluate trained",
        "models",
    ):
        words = line.split()
        done = call("res2net-search", *words, *(images if words[0] in ("search", "fit") else []))
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert (tmp_path / "run" / "pareto.csv").is_file()
    assert (tmp_path / "trained" / "model.safetensors").is_file()


def test_a_mistake_names_the_command_that_was_typed(call: Callable) -> None:
    done = call("res2net-search", "fit", "nothing", "--out", "trained")
    assert done.returncode == 2
    assert done.stderr.startswith("res2net-search fit: error: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def overwritten(environment: Path) -> Iterator[Path]:
    """Let another distribution write its own `search` over ours, as pip does without a word."""
    site = site_packages(environment)
    file, record = site / "search" / "__init__.py", site / "other-1.0.dist-info"
    ours = file.read_bytes()
    file.write_text("raise AssertionError('this file is not imported')\n")
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (record / "RECORD").write_text(
        "search/__init__.py,,\nother-1.0.dist-info/METADATA,,\nother-1.0.dist-info/RECORD,,\n"
    )
    yield file
    shutil.rmtree(record)
    file.write_bytes(ours)


def test_another_distribution_over_ours_is_named(overwritten: Path, call: Callable) -> None:
    done = call("res2net-search", "search", "--help")
    assert done.returncode == 2
    assert done.stderr == (
        f"res2net-search: error: the distribution 'other' wrote its own {overwritten}; "
        "install res2net-search in an environment without 'other'\n"
    )


def test_a_package_in_the_current_folder_matters_only_to_ray(call: Callable, tmp_path: Path) -> None:
    hidden = tmp_path / "search" / "__init__.py"
    hidden.parent.mkdir()
    hidden.touch()
    line = "search --space scale --base micro --trials 1 --epochs 1 --train-images 200 --out run"
    done = call("res2net-search", *f"{line} --executor tune".split())
    assert done.returncode == 2
    assert done.stderr.startswith(f"res2net-search search: error: {hidden.resolve()} hides the package 'search' in ")
    assert done.stderr.endswith("; rename it, search from another folder, or take --executor local\n")
    done = call("res2net-search", *f"{line} --executor local --workers 2".split())
    assert done.returncode == 0, done.stderr


def test_a_module_of_the_user_in_the_current_folder_is_found(call: Callable, tmp_path: Path) -> None:
    (tmp_path / "my_data.py").touch()
    done = call("res2net-search", "describe", "--space", "scale", "--data", "my_data:Mine")
    assert done.returncode == 2
    assert "module 'my_data' has no 'Mine'" in done.stderr
