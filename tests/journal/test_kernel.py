"""The system calls that hold the GIL work like those of the standard library."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import weakref
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.journal import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("memory")
    os.write(descriptor, b"0123456789")
    yield descriptor
    os.close(descriptor)


def test_failures_raise_the_systems_error(memory: int) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        os.lseek(memory, 0, os.SEEK_SET)
        with pytest.raises(BrokenPipeError):
            kernel.send_file(ours.fileno(), memory, 10)


def test_a_file_is_sent_from_its_position(memory: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        os.lseek(memory, 4, os.SEEK_SET)
        assert kernel.send_file(ours.fileno(), memory, 3) == 3
        assert theirs.recv(10) == b"456"
        assert os.lseek(memory, 0, os.SEEK_CUR) == 7
        os.ftruncate(memory, 1 << 24)
        # More than a socket queues, so that only a part is sent.
        assert 0 < kernel.send_file(ours.fileno(), memory, 1 << 24) < 1 << 24
        with pytest.raises(BlockingIOError):
            kernel.send_file(ours.fileno(), memory, 1)


class Piece:
    """An object that the caller refers to while it sends."""


def test_an_error_keeps_no_reference_to_its_callers(memory: int) -> None:
    ours, theirs = socket.socketpair()

    def send_without_room() -> weakref.ref[Piece]:
        piece = Piece()
        with pytest.raises(BlockingIOError):
            kernel.send_file(ours.fileno(), memory, 10)
        return weakref.ref(piece)

    with ours, theirs:
        ours.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(1000))
        os.lseek(memory, 0, os.SEEK_SET)
        gc.disable()
        try:
            assert send_without_room()() is None
        finally:
            gc.enable()
