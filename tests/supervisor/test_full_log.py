"""A log whose reader has stopped: serving goes on, and a signal still ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.udf_pb2 import InitRequest, Point
from tests.conftest import plugin
from tests.serve_process import KAPUDF, PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

LOUD = plugin("talkative.py:Loud")


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """Give the writing end of a full pipe without a reader."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


@contextlib.contextmanager
def running(
    command: list[str], stdin: int, stdout: int | None, stderr: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, and kill it when the block ends."""
    with subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


def answer_points(side: KapacitorSide) -> None:
    """Send a few points, and check that they are answered."""
    side.send(InitRequest(taskID="task"))
    side.receive()
    points = [Point(time=number) for number in range(5)]
    for point in points:
        side.send(point)
        assert side.receive() == point


@pytest.mark.parametrize("workers", ["1", "0"])
def test_a_server_serves_and_ends(socket_path: str, full_pipe: int, workers: str) -> None:
    command = [*KAPUDF, "serve", "--socket", socket_path, "--handler", LOUD, "--workers", workers]
    with running(command, subprocess.DEVNULL, None, full_pipe) as process:
        wait_until(lambda: is_listening(socket_path))
        with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:
            answer_points(side)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0


def test_a_process_udf_serves_and_ends(full_pipe: int) -> None:
    ours, theirs = socket.socketpair()
    command = [*KAPUDF, "exec", "--handler", LOUD]
    with (
        theirs,
        KapacitorSide(ours, timeout_s=PATIENCE_S) as side,
        running(command, theirs.fileno(), theirs.fileno(), full_pipe) as process,
    ):
        answer_points(side)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def is_listening(path: str) -> bool:
    """Return whether a connection is accepted at a path."""
    with socket.socket(socket.AF_UNIX) as trial:
        return trial.connect_ex(path) == 0
