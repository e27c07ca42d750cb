"""Interrupts (SIGINT, SIGTERM) that wait for the end of a block."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let interrupts wait until the end of the block, and take effect there.

    An interrupt inside a call of Optuna's storage would leave a broken database session, which the search needs to end.
    Only the main thread gets interrupts. In other threads, this context has no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    # A handler that Python did not install cannot be restored, so it stays.
    usual = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}
    for number in usual:
        signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
