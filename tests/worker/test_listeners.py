"""Listening sockets in a loop, where accepting fails."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from kapudf_cli.system import logs
from kapudf_cli.system.socket_file import SocketFile
from kapudf_cli.worker.listeners import Listeners

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: A time long after any pause.
LATER_S = 60.0


class Accepting:
    """Accepts connections, or fails as accept() does without descriptors."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.fails = True

    def __call__(self, key: str, socket_file: SocketFile) -> bool:
        if self.fails:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        connection = socket_file.accept()
        if connection is None:
            return False
        connection.close()
        self.taken.append(key)
        return True


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    """Give an empty selector."""
    with selectors.DefaultSelector() as made:
        yield made


def bound(folder: Path, name: str) -> SocketFile:
    """Give a socket file that listens."""
    return SocketFile.bind(str(folder / name))


@pytest.mark.parametrize("rests", [False, True], ids=["at first", "in a rest"])
def test_a_socket_can_be_removed_while_accepting_fails(
    short_folder: Path, selector: selectors.BaseSelector, *, rests: bool
) -> None:
    accepting = Accepting()
    listeners: Listeners[str] = Listeners(selector, accepting, logs.get_logger())
    sockets = {name: bound(short_folder, name) for name in ("going", "staying")}
    for name, socket_file in sockets.items():
        listeners.add(name, socket_file)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(sockets["staying"].path)
        if rests:
            for key, _ in selector.select():
                key.data()
            assert not selector.get_map()
        listeners.remove("going")
        assert sockets["going"].listener.fileno() == -1
        assert not selector.get_map()

        accepting.fails = False
        assert listeners.wait_s(time.monotonic() + LATER_S) is None
        ((key, _),) = selector.select()
        key.data()
        assert accepting.taken == ["staying"]
    listeners.remove("staying")
    assert not selector.get_map()
    for socket_file in sockets.values():
        socket_file.release()


def test_connections_wait_in_the_queue_until_they_may_be_accepted(
    short_folder: Path, selector: selectors.BaseSelector
) -> None:
    accepting, full = Accepting(), {"busy"}
    accepting.fails = False
    listeners: Listeners[str] = Listeners(
        selector, accepting, logs.get_logger(), may_accept=lambda key: key not in full
    )
    sockets = {name: bound(short_folder, name) for name in ("busy", "idle")}
    for name, socket_file in sockets.items():
        listeners.add(name, socket_file)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(sockets["busy"].path)
        second.connect(sockets["idle"].path)
        for expected in (["idle"], ["idle", "busy"]):
            assert listeners.wait_s(time.monotonic()) is None
            for key, _ in selector.select(0):
                key.data()
            assert accepting.taken == expected
            assert not selector.select(0)
            full.clear()
    for name, socket_file in sockets.items():
        listeners.remove(name)
        socket_file.release()


def test_a_lasting_problem_is_logged_at_intervals(
    short_folder: Path, selector: selectors.BaseSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    listeners: Listeners[str] = Listeners(selector, Accepting(), logs.get_logger())
    listeners.add("f", socket_file := bound(short_folder, "f"))
    with socket.socket(socket.AF_UNIX) as peer, capture_logs() as events:
        peer.connect(socket_file.path)
        for _ in range(4 * 60):
            listeners.wait_s(now_s)
            for key, _ in selector.select(0):
                key.data()
            now_s += 0.25
    assert [each["event"] for each in events] == ["cannot accept connections"] * 2
    listeners.remove("f")
    socket_file.release()
