"""The queue of signals."""

from __future__ import annotations

import os
import select
import signal
import threading

import pytest

from kapudf_cli.system.signals import SignalQueue
from tests.serve_process import PATIENCE_S

BOTH = (signal.SIGINT, signal.SIGTERM)


def is_readable(queue: SignalQueue, timeout_s: float = 0.0) -> bool:
    """Return whether a queue's descriptor has become readable."""
    return bool(select.select([queue], [], [], timeout_s)[0])


def test_a_signal_is_queued_and_ends_nothing() -> None:
    with SignalQueue(BOTH) as queue:
        assert not is_readable(queue)
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_readable(queue, PATIENCE_S)
        assert queue.take() == [signal.SIGTERM]
        assert not is_readable(queue)
        assert queue.take() == []


def test_signals_are_taken_in_their_order() -> None:
    with SignalQueue(BOTH) as queue:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert queue.take() == [signal.SIGINT, signal.SIGTERM, signal.SIGINT]


def test_a_signal_of_somebody_else_is_not_taken() -> None:
    seen = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with SignalQueue(BOTH) as queue:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
            assert queue.take() == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert seen == [signal.SIGUSR1]


def test_another_thread_can_wake_it_with_no_signal() -> None:
    with SignalQueue(BOTH) as queue:
        thread = threading.Thread(target=queue.wake)
        thread.start()
        assert is_readable(queue, PATIENCE_S)
        thread.join(PATIENCE_S)
        assert queue.take() == []
        assert not is_readable(queue)


def test_any_number_of_wakes_blocks_no_thread() -> None:
    with SignalQueue(BOTH) as queue:
        for _ in range(100_000):
            queue.wake()
        assert is_readable(queue)
        assert queue.take() == []
        assert not is_readable(queue)


def test_a_signal_is_not_lost_among_wakes() -> None:
    with SignalQueue(BOTH) as queue:
        for _ in range(100_000):
            queue.wake()
        signal.raise_signal(signal.SIGTERM)
        assert queue.take() == [signal.SIGTERM]


def test_a_wake_after_the_end_is_no_error() -> None:
    with SignalQueue(BOTH) as queue:
        pass
    queue.wake()


def test_the_signals_are_given_back() -> None:
    previous = [signal.getsignal(number) for number in BOTH]
    with SignalQueue(BOTH):
        assert [signal.getsignal(number) for number in BOTH] != previous
    assert [signal.getsignal(number) for number in BOTH] == previous
    assert signal.set_wakeup_fd(-1) == -1


def test_the_signals_are_given_back_after_an_error() -> None:
    # A shell has what runs in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(LookupError), SignalQueue(BOTH):
            raise LookupError
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
