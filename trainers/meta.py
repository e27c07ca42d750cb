"""The environment of a measurement: package versions, hardware, commit."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "optuna", "ray", "pandas", "safetensors")  # packages whose versions are recorded
CGROUP = Path("/sys/fs/cgroup")  # where a container finds its own control group


def environment() -> dict[str, Any]:
    """Return the package versions, the hardware and the commit of this process as plain JSON values."""
    return {"versions": _versions(), "hardware": _hardware(), "commit": _commit()}


def cores() -> int:
    """Return the number of cores that this process may use, at least 1."""
    # On Linux, batch systems restrict the CPU affinity. Other systems lack `sched_getaffinity`.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return usable if quota is None else max(1, min(usable, math.ceil(quota)))


def _quota() -> float | None:
    """Return the cores that this container may use on average; None without a limit. Python and psutil ignore it."""
    with contextlib.suppress(OSError, ValueError):  # version 2 of Linux's control groups: "200000 100000", or "max ..."
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):  # version 1; -1 sets no limit
        quota, period = (int((CGROUP / f"cpu/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "cores": cores(), "gpus": gpus, "system": f"{platform.system()} {platform.machine()}"}


def _cpu_name() -> str:
    # On Linux, `platform.processor()` is empty or names only the architecture.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """Return the commit of this checkout, or None outside a checkout. A trailing `+` marks changes in tracked files."""
    here = Path(__file__)

    def git(*args: str) -> str:
        # `--no-optional-locks` keeps `git status` from writing the index while other processes use the repository.
        command = ["git", "--no-optional-locks", *args]
        done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        # This fails unless git tracks this file: an installed copy may lie inside the checkout of another project.
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
