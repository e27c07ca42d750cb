"""The room for trials: how many trials fit on machines at once, and the environment of worker processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from res2net.errors import UserError
from search.resources import Resources
from trainers.meta import cores

# The environment of worker processes. Threads that wait for work sleep: a spinning thread takes a core from others.
# Two trials of two threads on two busy cores did several times as many steps with sleeping threads. The first variable
# is for GNU's OpenMP, which torch ships on Linux. The second is for LLVM's OpenMP, which torch ships on macOS.
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
Node = Mapping[str, float]  # a machine's resources by kind, in Ray's names: CPU, GPU


def this_machine() -> list[Node]:
    """Return the cores and the GPUs of this machine, as the only node."""
    return [{"CPU": cores(), "GPU": torch.cuda.device_count()}]


def check_room(resources: Resources, nodes: Sequence[Node], may_grow: bool = False) -> float:
    """Return the GPUs of a trial: the setting, or by default one GPU if any node has one.

    Raise `UserError` if a trial fits on no node, or if fewer than `workers` trials fit on all nodes.
    may_grow: whether more nodes may join later; then `workers` is not checked.
    """
    cpus, gpus, workers = resources.cpus_per_trial, resources.gpus_per_trial, resources.workers
    most = {kind: max(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    if cpus > most["CPU"]:
        raise UserError(f"`cpus_per_trial`: {cpus} is more than the {most['CPU']:g} cores here; accepted: at most that")
    if gpus is None:
        gpus = float(most["GPU"] > 0)
    if gpus > most["GPU"]:
        raise UserError(
            f"`gpus_per_trial`: {gpus:g} is more than the {most['GPU']:g} GPUs here; accepted: at most that"
        )
    room = max(1, places(nodes, cpus, gpus))
    if workers is not None and workers > room and not may_grow:
        there = f"{most['CPU']:g} cores" + (f" and {most['GPU']:g} GPUs, {gpus:g} a trial" if gpus else "")
        raise UserError(f"`workers`: {workers} trials at a time is more than {there} allow; accepted: at most {room}")
    return gpus


def places(nodes: Sequence[Node], cpus: int, gpus: float) -> int:
    """Return how many trials fit on the nodes at once. A trial uses one node; a fraction of a GPU lies on one GPU."""
    total = 0
    for node in nodes:
        there = node.get("GPU", 0)
        by_gpus = (int(there) * int(1 / gpus) if gpus < 1 else int(there / gpus)) if gpus else math.inf
        total += min(int(node.get("CPU", 0) / cpus), by_gpus)
    return int(total)
