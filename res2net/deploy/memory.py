"""The peak memory of a network at inference."""

from __future__ import annotations

import math
from pathlib import Path

import safetensors.torch
import torch

from res2net.arch import Arch
from res2net.deploy.optimize import optimize
from res2net.factory import create

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of(weights: Path, arch: Arch, device: str, batch_size: int, image_size: int) -> float:
    """Return the peak memory of an optimized network with one batch of images, weights included, in MB (10**6 bytes).

    On a GPU, this is the memory that PyTorch allocates. On a CPU under Linux, it is the increase of the process's
    resident memory, so call this function in a new process. Return NaN on other systems.
    """
    images = torch.zeros(batch_size, arch.in_channels, image_size, image_size, device=device)
    _run(create(arch), images[:1])  # load the kernels first: they do not belong to the network's memory
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
    elif STATUS.is_file():
        RESET.write_text("5")  # resets the peak to the current memory
        before = _resident("VmRSS")
    else:
        return math.nan
    model = create(arch)
    model.load_state_dict(safetensors.torch.load_file(weights))
    _run(model, images)
    after = torch.cuda.max_memory_allocated(images.device) if images.is_cuda else _resident("VmHWM")
    return round((after - before) / 1e6, 3)


def _run(model: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        optimize(model.to(images.device).eval())(images)


def _resident(name: str) -> int:
    """Return a size in `/proc/self/status` in bytes: VmRSS is the resident memory, VmHWM its peak."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
