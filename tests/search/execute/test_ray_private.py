"""Each private part of Ray that `search/execute/ray_private.py` uses, and what breaks without it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray._private import ray_constants

from search.execute import ray_private

ROOT = Path(__file__).parents[3]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}


def run(code: str, **environment: str) -> str:
    """Run a program in a process of its own, as Ray reads its environment once a process; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={k: v for k, v in ENVIRONMENT.items() if k != "RAY_AUTH_MODE"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestLoopback:
    """`ray_constants.ENABLE_RAY_CLUSTER`: without it, strangers could reach a Ray of our own, which runs any code."""

    def test_the_constant_is_put_back_also_after_an_error(self) -> None:
        before = ray_constants.ENABLE_RAY_CLUSTER
        inside = []
        with contextlib.suppress(KeyboardInterrupt), ray_private.on_loopback_alone():
            inside.append(ray_constants.ENABLE_RAY_CLUSTER)
            raise KeyboardInterrupt
        assert inside == [False]
        assert ray_constants.ENABLE_RAY_CLUSTER is before

    @pytest.mark.slow
    def test_ray_takes_the_address_127_0_0_1(self) -> None:
        code = """
import ray
from search.execute import ray_private
with ray_private.on_loopback_alone():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.nodes()[0]["NodeManagerAddress"], ray.get_runtime_context().gcs_address.partition(":")[0])
"""
        assert run(code) == "127.0.0.1 127.0.0.1"


class TestAddress:
    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("127.0.0.1:6379", ("127.0.0.1", 6379)),
            ("head.local:6379", ("head.local", 6379)),
            ("[::1]:6379", ("::1", 6379)),
        ],
    )
    def test_host_and_port_are_taken_apart(self, address: str, expected: tuple[str, int]) -> None:
        """`services.extract_ip_port`: without it, a search would not know where to look whether the head is alive."""
        assert ray_private.host_and_port(address) == expected

    @pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:port", "127.0.0.1:80"])
    def test_anything_else_is_a_value_error(self, address: str) -> None:
        """The search turns a `ValueError` into one line, and no other error."""
        with pytest.raises(ValueError, match=r"address"):
            ray_private.head_address(address)

    def test_an_address_that_is_given_is_not_looked_up(self) -> None:
        """`services.canonicalize_bootstrap_address_or_die` changes loopback alone: nodes cannot reach a head there."""
        assert ray_private.head_address("192.0.2.1:6379") == ("192.0.2.1", 6379)

    @pytest.mark.slow
    def test_auto_is_the_cluster_of_this_machine(self) -> None:
        """`services.canonicalize_bootstrap_address_or_die`: without it, `auto` would name no head to look at."""
        code = """
import socket
import ray
from search.execute import ray_private
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
# Another test may run a Ray on this machine: `auto` names one of their heads.
socket.create_connection(ray_private.head_address("auto"), 5).close()
print(True)
"""
        with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # short: it becomes part of the names of sockets
            assert run(code, RAY_TMPDIR=folder) == "True"


@pytest.mark.slow
class TestToken:
    """`maybe_enable_token_auth_if_token_available`: without it, no search joins a cluster that wants a token."""

    CODE = """
import os
from search.execute import ray_private
ray_private.use_token()
print(os.environ.get("RAY_AUTH_MODE"))
"""

    def test_a_token_in_the_home_folder_is_used(self, tmp_path: Path) -> None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 2)
        assert run(self.CODE, HOME=str(tmp_path)) == "token"

    def test_without_a_token_nothing_changes_and_nothing_is_said(self, tmp_path: Path) -> None:
        assert run(self.CODE, HOME=str(tmp_path)) == "None"

    def test_the_users_own_mode_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 2)
        assert run(self.CODE, HOME=str(tmp_path), RAY_AUTH_MODE="disabled") == "disabled"
