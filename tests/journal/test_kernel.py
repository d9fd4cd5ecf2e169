"""The system calls that hold the GIL work like those of the standard library."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.journal import kernel
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Tries to lock the given descriptor, as the supervisor does.
TRY_LOCK = """
import fcntl, sys
try:
    fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(3)
"""


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = os.memfd_create("memory")
    os.write(descriptor, b"0123456789")
    yield descriptor
    os.close(descriptor)


def another_can_lock(memory: int) -> bool:
    """Return whether another process gets the lock."""
    command = [sys.executable, "-c", TRY_LOCK, str(memory)]
    status = subprocess.run(command, pass_fds=[memory], timeout=PATIENCE_S, check=False).returncode
    assert status in {0, 3}
    return status == 0


def test_a_lock_excludes_other_processes(memory: int) -> None:
    assert kernel.try_lock(memory)
    assert kernel.try_lock(memory), "a process has its own lock"
    assert not another_can_lock(memory)
    kernel.unlock(memory)
    assert another_can_lock(memory)


def test_a_lock_of_another_process_is_respected(memory: int) -> None:
    command = [sys.executable, "-c", f"{TRY_LOCK}\nprint(flush=True)\ninput()", str(memory)]
    with subprocess.Popen(
        command, pass_fds=[memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        assert not kernel.try_lock(memory)
        other.stdin.close()
        other.wait(PATIENCE_S)
    assert kernel.try_lock(memory)


def test_the_position_belongs_to_the_open_file(memory: int) -> None:
    duplicate = os.dup(memory)
    assert kernel.seek(memory, 3, os.SEEK_SET) == 3
    assert os.lseek(duplicate, 0, os.SEEK_CUR) == 3
    os.close(duplicate)


def test_failures_raise_the_systems_error(memory: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.seek(memory, -1, os.SEEK_SET)
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        kernel.seek(memory, 0, os.SEEK_SET)
        with pytest.raises(BrokenPipeError):
            kernel.send_file(ours.fileno(), memory, 10)


def test_a_file_is_sent_from_its_position(memory: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        kernel.seek(memory, 4, os.SEEK_SET)
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
