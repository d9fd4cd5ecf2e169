"""The log writer never blocks its caller."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.system import log_writer
from kapudf_cli.system.log_writer import LineHandler, LogWriter
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINE = "x" * 4095


class Reader:
    """The end of a log at which it is read, or not."""

    def __init__(self, kind: str) -> None:
        """Make both ends; `kind` is "pipe", "socket", "terminal" or "shared pipe"."""
        match kind:
            case "terminal":
                self.descriptor, self.writable = os.openpty()
            case "socket":
                self.descriptor, self.writable = (each.detach() for each in socket.socketpair())
            case _:
                self.descriptor, self.writable = os.pipe()
        self.lost: list[int] = []

    def read(self, end: bytes) -> list[str]:
        """Read until `end` has come; return the lines."""
        came = b""
        while not came.replace(b"\r\n", b"\n").endswith(end):
            assert select.select([self.descriptor], [], [], PATIENCE_S)[0], came[-100:]
            came += os.read(self.descriptor, 65536)
        return came.decode().replace("\r\n", "\n").splitlines()


@pytest.fixture(params=["pipe", "socket", "terminal", "shared pipe"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Give a reader of each kind; the last is one that this user may not reopen."""
    if request.param == "shared pipe":

        def refuse(path: str, flags: int) -> int:
            raise PermissionError(path, flags)

        monkeypatch.setattr(os, "open", refuse)
    reader = Reader(request.param)
    yield reader
    os.close(reader.descriptor)
    with contextlib.suppress(OSError):
        os.close(reader.writable)


def test_a_line_is_written_when_the_call_returns(reader: Reader) -> None:
    writer = LogWriter(reader.writable, reader.lost.append)
    for number in range(100):
        writer.write(f"event {number}")
        assert select.select([reader.descriptor], [], [], 0)[0]
        assert reader.read(b"\n") == [f"event {number}"]


def test_a_reader_that_stops_delays_no_writer_and_lost_lines_are_counted(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_writer, "_MAX_LINES", 50)
    monkeypatch.setattr(log_writer, "_END_TIMEOUT_S", 0.01)
    writer = LogWriter(reader.writable, reader.lost.append)
    for _ in range(300):  # More than a pipe and the limit hold.
        writer.write(LINE)
    lost = writer.lost
    assert lost > 0
    writer.finish()  # Its wait is bounded.
    reading = threading.Thread(target=reader.read, args=[b"end\n"])
    reading.start()
    wait_until(lambda: reader.lost == [lost])
    writer.write("end")
    reading.join()


def test_lines_longer_than_a_pipe_keep_their_place(reader: Reader) -> None:
    writer = LogWriter(reader.writable, reader.lost.append)
    lines = ["before", *(str(number) * 4000 for number in range(100)), "after"]
    for line in lines:
        writer.write(line)
    assert reader.read(b"after\n") == lines


def test_other_users_of_the_descriptor_are_left_as_they_were(reader: Reader) -> None:
    LogWriter(reader.writable, reader.lost.append)
    assert os.get_blocking(reader.writable)


def test_a_file_is_appended_to(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "log")
    with open(path, "a", encoding="utf-8") as file:
        file.write("earlier\n")
        file.flush()
        for number in range(2):
            LogWriter(file.fileno(), lambda _: None).write(str(number))
    with open(path, encoding="utf-8") as file:
        assert file.read().splitlines() == ["earlier", "0", "1"]


def in_child(child: Callable[[], None]) -> int:
    """Run `child` in a forked process and return its exit status."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            child()
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1]


def test_a_child_of_a_fork_logs_on_its_own() -> None:
    reader = Reader("pipe")
    writer = LogWriter(reader.writable, reader.lost.append)
    for _ in range(20):
        writer.write(LINE)
    # Forked from within: the thread of the queue holds no lock that the child waits for.
    assert in_child(lambda: writer.write("child")) == 0
    writer.write("end")
    lines = reader.read(b"end\n")
    assert lines.count(LINE) == 20


def test_a_record_that_cannot_be_formatted_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    reader = Reader("pipe")
    output = LineHandler(LogWriter(reader.writable, reader.lost.append), logging.Formatter())
    logger = logging.Logger("alone")  # noqa: LOG001 - no other test sees it
    logger.addHandler(output)
    logger.info("%d", "no number")
    logger.info("fine")
    assert reader.read(b"\n") == ["fine"]
    os.close(reader.descriptor)
    logger.info("nobody reads")
    assert sys.exc_info() == (None, None, None)
