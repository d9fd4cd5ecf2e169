"""The input of a stream, over real pipes."""

from __future__ import annotations

import contextlib
import functools
import os
import select
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.transport import ReadPaused
from kapudf_cli.transport.descriptors import unread_bytes, wait_for
from kapudf_cli.transport.input import Input, Waker
from tests.peers import in_thread
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEBIBYTE = bytes(1 << 20)


class Piped:
    """An input on a pipe, and the timeouts of waits for the peer."""

    def __init__(self) -> None:
        self.readable, self.writable = os.pipe()
        os.set_blocking(self.readable, False)
        self.waker = Waker()
        self.timeouts_s: list[float] = []

    def input(self, unread: bytes = b"", receive: Callable[[int], bytes] | None = None) -> Input:
        return Input(
            self.waker,
            receive=receive or functools.partial(os.read, self.readable),
            wait=functools.partial(wait_for, self.readable, select.POLLIN, self.waker.fileno()),
            pending=functools.partial(unread_bytes, self.readable),
            piece_bytes=4,
            unread=unread,
        )

    def room_after(self, times: int) -> Callable[[float], bool]:
        def has_room(timeout_s: float) -> bool:
            self.timeouts_s.append(timeout_s)
            return len(self.timeouts_s) > times

        return has_room

    def send(self, data: bytes) -> None:
        os.write(self.writable, data)

    def close(self) -> None:
        self.waker.close()
        for descriptor in (self.readable, self.writable):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def piped() -> Iterator[Piped]:
    """Return an unused pipe."""
    piped = Piped()
    yield piped
    piped.close()


def test_unread_input_is_read_first(piped: Piped) -> None:
    incoming = piped.input(unread=b"an earlier one's")
    piped.send(b"new")
    assert incoming.ahead_bytes == 16
    assert incoming.read() == b"an earlier one's"
    assert incoming.ahead_bytes == 0
    assert incoming.read() == b"new"


def test_a_waiting_writer_reads_ahead_at_growing_intervals(piped: Piped) -> None:
    incoming = piped.input()
    piped.send(b"one,two,and the rest")
    incoming.read_ahead_until(piped.room_after(2))
    assert incoming.ahead_bytes == 8
    incoming.read_ahead_until(piped.room_after(9))
    assert piped.timeouts_s[:3] == [0.5, 1.0, 2.0]
    assert piped.timeouts_s[3:] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    read = [incoming.read() for _ in range(5)]
    assert read == [b"one,", b"two,", b"and ", b"the ", b"rest"]
    assert incoming.ahead_bytes == 0


def test_reading_ahead_is_limited(piped: Piped) -> None:
    incoming = piped.input(receive=lambda _: MEBIBYTE)
    incoming.read_ahead_until(piped.room_after(100))
    assert incoming.ahead_bytes == 16 << 20


def test_nothing_is_read_ahead_while_the_reader_reads(piped: Piped) -> None:
    asked: list[int] = []

    def receive(limit: int) -> bytes:
        asked.append(limit)
        return os.read(piped.readable, limit)

    incoming = piped.input(receive=receive)
    reading = in_thread(incoming.read)
    while not incoming.waits:
        assert not reading.done()
    incoming.read_ahead_until(piped.room_after(3))
    assert asked == [4]
    assert incoming.waits
    piped.send(b"data")
    assert reading.result(PATIENCE_S) == b"data"
    assert not incoming.waits


def test_nothing_is_read_ahead_once_an_interrupt_was_seen(piped: Piped) -> None:
    incoming = piped.input()
    piped.send(b"arrived,")
    piped.waker.interrupt()
    assert incoming.read() == b"arri"
    piped.send(b"late")
    incoming.read_ahead_until(piped.room_after(3))
    assert incoming.ahead_bytes == 0
    assert [incoming.read(), incoming.read()] == [b"ved,", b""]


def test_an_end_found_ahead_follows_the_data(
    piped: Piped,
) -> None:
    pieces = iter([b"last", b""])
    incoming = piped.input(receive=lambda _: next(pieces))
    incoming.read_ahead_until(piped.room_after(5))
    assert [incoming.read(), incoming.read(), incoming.read()] == [b"last", b"", b""]


def test_an_error_found_ahead_follows_the_data(
    piped: Piped,
) -> None:
    told: list[bytes | OSError] = [b"last", ConnectionResetError()]

    def receive(_: int) -> bytes:
        answer = told.pop(0) if told else b""
        if isinstance(answer, OSError):
            raise answer
        return answer

    incoming = piped.input(receive=receive)
    incoming.read_ahead_until(piped.room_after(5))
    assert incoming.read() == b"last"
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            incoming.read()


def test_an_ended_input_returns_only_what_was_read_ahead(piped: Piped) -> None:
    incoming = piped.input(unread=b"left")
    piped.send(b"more")
    incoming.end()
    assert [incoming.read(), incoming.read()] == [b"left", b""]
    piped.waker.interrupt()
    assert incoming.read() == b""
    incoming.read_ahead_until(piped.room_after(1))
    assert incoming.ahead_bytes == 0


def test_a_pause_comes_before_available_input(piped: Piped) -> None:
    incoming = piped.input(unread=b"left")
    piped.waker.pause()
    with pytest.raises(ReadPaused):
        incoming.read()
    assert incoming.read() == b"left"
