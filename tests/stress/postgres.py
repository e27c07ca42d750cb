"""A temporary PostgreSQL server on loopback, for tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from res2net.errors import UserError

START_SECONDS = 60
# User `search` needs no password; all other users do.
ACCESS = """
local all search trust
host all search 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""


class Server:
    """A PostgreSQL server that can be stopped and started again; `url` names its database."""

    def __init__(self, binaries: Path, folder: Path, port: int, identity: dict[str, Any]) -> None:
        self._binaries, self._folder, self._port, self._identity = binaries, folder, port, identity
        self.url = f"postgresql://search@127.0.0.1:{port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {"fsync": "off", "listen_addresses": "127.0.0.1", "unix_socket_directories": str(self._folder)}
        options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", "-p", str(self._port), *options],
                stdout=log,
                stderr=log,
                **self._identity,
            )
        deadline = time.monotonic() + START_SECONDS
        ready = [self._binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        while subprocess.run(ready, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "log").read_text())
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the server at once and cut its connections."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_SECONDS)


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """Yield a running server with an empty database; raise `UserError` if PostgreSQL is not installed."""
    binaries = find()
    with tempfile.TemporaryDirectory(prefix="postgres-") as name, socket.socket() as probe:
        folder, identity = Path(name), unprivileged()
        if identity:
            os.chown(folder, identity["user"], identity["group"])
        initdb = [binaries / "initdb", "-D", folder / "data", "-U", "search", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*initdb, "--locale", "C"], check=True, capture_output=True, cwd=folder, **identity)
        (folder / "data/pg_hba.conf").write_text(ACCESS)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        running = Server(binaries, folder, port, identity)
        running.start()
        try:
            yield running
        finally:
            running.stop()


def find() -> Path:
    """Return the folder of the server's programs: from the path, or Debian's."""
    there = shutil.which("initdb")
    found = [Path(there).resolve().parent] if there else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found or not (found[-1] / "postgres").exists():
        raise UserError("PostgreSQL: no initdb on the path or in /usr/lib/postgresql; accepted: an installed server")
    return found[-1]


def unprivileged() -> dict[str, Any]:
    """Return arguments of `Popen` that drop root's rights, because PostgreSQL refuses root; empty for other users."""
    if os.geteuid():
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
