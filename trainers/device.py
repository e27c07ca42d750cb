"""Where and in which precision to compute."""

from __future__ import annotations

import torch

from res2net.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16")


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # refused below, as all kinds that nothing here is tried on
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: unknown value {name!r}; accepted: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device: {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bf16: as asked, or (`auto`) where the hardware multiplies it faster than fp32."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) if hasattr(torch.cpu, "get_capabilities") else False


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory, of a device or of the machine, did not suffice."""
    texts = ("can't allocate memory", "not enough memory")  # of torch on a CPU, which raises a RuntimeError
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)
