"""The device and the precision of a computation."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from res2net.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = "auto, cpu, cuda, cuda:N, mps"  # text for help and errors


def device_of(name: str) -> torch.device:
    """Return the device called `name`. `auto` prefers CUDA, then Apple's `mps`, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # torch does not know the name: raise below
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"`device`: unknown value {name!r}; accepted: {DEVICES}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"`device`: {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"`device`: {name!r} is not there; accepted: {DEVICES}")
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether to autocast to bf16. With `auto`, do so if the hardware multiplies bf16 faster than fp32."""
    if precision == "bf16" and device.type == "mps":
        # Support for bf16 on mps depends on the versions of macOS and torch, and torch cannot report it.
        raise UserError("`precision`: bf16 on an mps device; accepted: auto, fp32")
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return False
    # A CPU without bf16 instructions emulates them, which is slower than fp32. Older versions of torch cannot tell
    # whether a CPU has these instructions, so use fp32 there.
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) if hasattr(torch.cpu, "get_capabilities") else False


def placed(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device, with weights in the channels-last layout, and return it.

    Convolutions on tensor cores, AMX and AVX-512 read this layout, so that activations need no copies.
    """
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it


def generator(device: torch.device, seed: int) -> torch.Generator:
    """Return a random generator of the device. For the meta device, return a generator of the CPU."""
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed)


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[object]:
    """Return the context for a forward pass: autocast to bf16, or a context without effect."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the type for sums over a data set: float64, or float32 on `mps`, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def out_of_memory(error: BaseException) -> bool:
    """Return whether the error means that a device or the machine ran out of memory."""
    texts = ("can't allocate memory", "not enough memory")  # torch's plain RuntimeErrors for CPU memory
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)
