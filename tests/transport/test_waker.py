"""The pipe that wakes a reader."""

from __future__ import annotations

import os
import select

import pytest

from kapudf_cli.transport import ReadPaused
from kapudf_cli.transport.descriptors import wait_for
from kapudf_cli.transport.input import Waker


def wakes(waker: Waker) -> bool:
    return wait_for(waker.fileno(), select.POLLIN, timeout_s=0)


def test_a_pause_wakes_once() -> None:
    waker = Waker()
    assert not wakes(waker)
    for _ in range(2):
        waker.pause()
        waker.pause()
        assert (waker.paused, wakes(waker)) == (True, True)
        with pytest.raises(ReadPaused):
            waker.end_pause()
        assert (waker.paused, wakes(waker)) == (False, False)
    waker.close()


def test_an_interrupt_wakes_permanently() -> None:
    waker = Waker()
    waker.pause()
    waker.interrupt()
    waker.interrupt()
    with pytest.raises(ReadPaused):
        waker.end_pause()
    assert waker.interrupted
    assert wakes(waker)
    waker.close()


def test_a_given_pipe_is_used_and_closed() -> None:
    readable, writable = os.pipe()
    waker = Waker((readable, writable))
    waker.interrupt()
    assert waker.fileno() == readable
    assert os.read(readable, 10) == b"\0"
    waker.close()
    for descriptor in (readable, writable):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_closed_waker_touches_no_descriptor() -> None:
    readable, writable = os.pipe()
    waker = Waker((readable, writable))
    waker.pause()
    waker.close()
    its_end, stranger = os.pipe()
    for number in (readable, writable):
        if number not in {its_end, stranger}:
            os.dup2(stranger, number)
    os.set_blocking(its_end, False)
    waker.interrupt()
    waker.pause()
    with pytest.raises(ReadPaused):
        waker.end_pause()
    waker.close()
    with pytest.raises(BlockingIOError):
        os.read(its_end, 1)
    for number in {readable, writable, its_end, stranger}:
        os.close(number)
