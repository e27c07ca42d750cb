"""Interrupts wait for the end of a block."""

from __future__ import annotations

import itertools
import signal
import threading

import pytest

from search.interrupts import held


@pytest.mark.parametrize("nested", [False, True])
def test_an_interrupt_takes_effect_at_the_end_of_the_block(nested: bool) -> None:
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the end of the block raises it
        with held():
            if nested:
                with held():
                    signal.raise_signal(signal.SIGINT)
                    done.append("inner")
            else:
                signal.raise_signal(signal.SIGINT)
            done.append("outer")
        done.append("after")
    assert done == (["inner"] if nested else []) + ["outer"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("call", range(4))
def test_an_interrupt_while_handlers_change_leaves_them_as_before(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = signal.SIGINT, signal.SIGTERM
    before, install, calls = [signal.getsignal(number) for number in numbers], signal.signal, itertools.count()

    def interrupted(number: int, handler: object) -> None:
        install(number, handler)
        if next(calls) == call:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", interrupted)
        with pytest.raises(KeyboardInterrupt), held():
            pass
    assert [signal.getsignal(number) for number in numbers] == before


def test_without_an_interrupt_handlers_are_as_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with held():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_may_use_it() -> None:
    done = []

    def work() -> None:
        with held():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
