"""The kernel's count of bytes read, which outlives the process that has read them."""

from __future__ import annotations

import mmap
import socket
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.journal import kernel
from kapudf_cli.journal.header import HEADER_BYTES, Header
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

RESET_AFTER_BYTES = 1000
SO_PEEK_OFF = 42


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of a connection, ours first."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(PATIENCE_S)
        yield ours, theirs


@pytest.fixture
def header() -> Iterator[Header]:
    """Return a header in its own memory."""
    with mmap.mmap(-1, HEADER_BYTES) as memory:
        yield Header(memory)


def test_this_kernel_is_supported() -> None:
    assert kernel.counts_reads()


def test_a_kernel_without_the_option_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_SO_PEEK_OFF", 9999)
    assert not kernel.counts_reads()


def test_bytes_read_by_any_process_are_counted(
    ends: tuple[socket.socket, socket.socket], header: Header
) -> None:
    ours, theirs = ends
    kernel.begin_read_count(ours, header)
    theirs.sendall(b"x" * 100)
    assert kernel.read_count(ours, header) == 0
    ours.recv(30)
    with ours.dup() as theirs_too:
        theirs_too.recv(13)
    ours.recv_into(bytearray(10))
    assert kernel.read_count(ours, header) == 53
    assert len(ours.recv(1000)) == 47
    assert kernel.read_count(ours, header) == 100


def test_the_count_continues_past_the_kernels_maximum(
    ends: tuple[socket.socket, socket.socket], header: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_RESET_AFTER_BYTES", RESET_AFTER_BYTES)
    ours, theirs = ends
    kernel.begin_read_count(ours, header)
    received = 0
    bases = set()
    for size in [700] * 20:
        theirs.sendall(b"x" * size)
        received += len(ours.recv(size))
        due = kernel.keep_read_count_high(ours, header, received)
        bases.add(header.peek_base)
        assert received < due == header.peek_base + RESET_AFTER_BYTES
        assert kernel.read_count(ours, header) == received
    assert bases == {0, *range(1400, 14_001, 1400)}


@pytest.mark.parametrize("step", ["before it is set", "once it is set", "before it is done"])
def test_a_death_during_a_reset_keeps_the_count(
    ends: tuple[socket.socket, socket.socket],
    header: Header,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    monkeypatch.setattr(kernel, "_RESET_AFTER_BYTES", RESET_AFTER_BYTES)
    ours, theirs = ends
    kernel.begin_read_count(ours, header)
    theirs.sendall(b"x" * 1500)
    ours.recv(1200)
    # The steps of keep_high before the death.
    header.peek_reset = 1200
    if step != "before it is set":
        ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 2**31 - 1)
    if step == "before it is done":
        header.peek_base = 1200
    assert kernel.read_count(ours, header) == 1200
    assert header.peek_reset == -1
    ours.recv(300)
    assert kernel.read_count(ours, header) == 1500
