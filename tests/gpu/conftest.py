"""What only a GPU can show. Nearly all of these tests run on the CPU too, which keeps them from rotting.

Tests on CUDA have the marker `gpu`. Without a device they are skipped: `python -m pytest -m gpu tests`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from searches import copied_databases, data, loaded, make_settings, tiny_space  # noqa: F401


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Return the device. On CUDA, convolutions are exact fp32 and repeatable, so that results can be compared."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    return torch.device(request.param)


@pytest.fixture
def no_waits(device: torch.device) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return a function that returns a context in which a wait for the GPU is an error."""

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        try:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    return context
