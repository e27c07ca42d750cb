"""Interrupts (SIGINT, SIGTERM) that wait for the end of a block."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

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
    try:
        _install(dict.fromkeys(usual, keep))
        yield
    finally:
        _install(usual)
        if caught:
            signal.raise_signal(caught[0])


def _install(handlers: Mapping[signal.Signals, Any]) -> None:
    """Install handlers by signal number. An interrupt between two of them takes effect once all are installed."""
    late: BaseException | None = None
    while True:
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            break
        except BaseException as error:  # what the handler of an interrupt raises
            late = error
    if late is not None:
        raise late
