"""The description of the environment is plain JSON, and asking for it never fails."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from trainers import meta


def test_it_is_json_and_says_what_matters() -> None:
    found = json.loads(json.dumps(meta.environment()))
    assert found["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["versions"]["python"].startswith("3.")
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["cpu"]
    assert len(found["hardware"]["gpus"]) == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "900000 100000\n"}, 3),
        ({"cpu.max": "max 100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu.max": ""}, 3),
        ({}, 3),
    ],
)
def test_cores_are_at_most_a_container_s_quota(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(meta, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert meta.cores() == expected


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(meta, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert meta.cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert meta.cores() == 1


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True, text=True).stdout


class TestCommit:
    @pytest.fixture
    def checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Return a repository that contains this module."""
        (tmp_path / "trainers").mkdir()
        (tmp_path / "trainers/meta.py").write_text("# here\n")
        git(tmp_path, "init", "-q")
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-q", "-m", "one")
        monkeypatch.setattr(meta, "__file__", str(tmp_path / "trainers/meta.py"))
        return tmp_path

    def test_is_the_checkout_s(self, checkout: Path) -> None:
        assert meta._commit() == git(checkout, "rev-parse", "--short=12", "HEAD").strip()

    def test_has_a_plus_where_files_differ(self, checkout: Path) -> None:
        (checkout / "trainers/meta.py").write_text("# changed\n")
        assert meta._commit() == git(checkout, "rev-parse", "--short=12", "HEAD").strip() + "+"

    def test_new_files_are_no_difference(self, checkout: Path) -> None:
        (checkout / "notes.txt").write_text("mine")
        assert not (meta._commit() or "+").endswith("+")

    def test_none_outside_a_checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(meta, "__file__", str(tmp_path / "meta.py"))
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
        assert meta._commit() is None

    def test_none_of_a_repository_that_it_is_only_installed_inside_of(self, checkout: Path) -> None:
        """In a virtual environment inside another project, the commit of that project says nothing about this code."""
        (checkout / ".gitignore").write_text("site-packages\n")
        installed = checkout / "site-packages"
        installed.mkdir()
        (installed / "meta.py").write_text("")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meta, "__file__", str(installed / "meta.py"))
            assert meta._commit() is None

    def test_none_without_git(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*_: object, **__: object) -> None:
            raise FileNotFoundError("git")

        monkeypatch.setattr("subprocess.run", missing)
        assert meta._commit() is None
