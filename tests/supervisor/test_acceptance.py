"""Accepting connections: either with all descriptors that they need, or not at all."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from kapudf_cli.journal import journal
from kapudf_cli.supervisor import acceptance
from kapudf_cli.system.socket_file import SocketFile
from tests.serve_process import PATIENCE_S
from tests.supervisor.connections import unkept
from tests.supervisor.workers import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.supervisor.connection import SupervisedConnection


@pytest.fixture
def socket_file(socket_path: str) -> Iterator[SocketFile]:
    """Give a function's socket."""
    bound = SocketFile.bind(socket_path)
    yield bound
    bound.release()


@pytest.fixture
def peer(socket_file: SocketFile) -> Iterator[socket.socket]:
    """Give a client that has connected."""
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(PATIENCE_S)
        made.connect(socket_file.path)
        yield made


def accept(socket_file: SocketFile, numbers: Iterator[int]) -> SupervisedConnection | None:
    """Accept a connection of the function `f`."""
    return acceptance.accept(socket_file, SETTINGS, function="f", numbers=numbers, store=unkept())


def descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_connection_knows_its_number_and_who_is_at_the_other_end(
    socket_file: SocketFile, peer: socket.socket
) -> None:
    numbers = itertools.count(7)
    served = accept(socket_file, numbers)
    assert served is not None
    assert served.number == 7
    record = served.record
    assert (record.function, record.peer_pid, record.peer_uid) == ("f", os.getpid(), os.getuid())
    assert served.watch.limit_s == SETTINGS.busy_limit_s
    assert served.header.received == 0
    assert served.header.busy_since_ns
    served.close()
    assert peer.recv(1) == b""


def test_without_a_waiting_connection_none_is_accepted(socket_file: SocketFile) -> None:
    numbers, before = itertools.count(1), descriptors()
    assert accept(socket_file, numbers) is None
    assert descriptors() == before
    assert next(numbers) == 1


def test_a_connection_waits_in_the_queue_while_descriptors_are_scarce(
    socket_file: SocketFile, peer: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    with monkeypatch.context() as scarce:
        scarce.setattr("os.dup", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            accept(socket_file, itertools.count())
    assert descriptors() == before
    served = accept(socket_file, itertools.count())
    assert served is not None
    served.close()
    assert peer.recv(1) == b""


@pytest.mark.parametrize(
    ("part", "name"),
    [(journal, "create"), (acceptance, "SupervisedConnection")],
    ids=["memory", "map"],
)
def test_a_connection_that_cannot_be_served_is_closed(
    socket_file: SocketFile,
    peer: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    part: object,
    name: str,
) -> None:
    before = descriptors()
    monkeypatch.setattr(part, name, refuse)
    with pytest.raises(OSError, match="Too many open files"):
        accept(socket_file, itertools.count())
    assert peer.recv(1) == b""
    assert descriptors() == before
