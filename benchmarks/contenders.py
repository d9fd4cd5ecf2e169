"""The measured processes, and their CPU time and memory."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli.client.driver import probe
from kapudf_cli.client.errors import ProbeError
from kapudf_cli.system import processes
from kapudf_cli.system.peers import peer_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.traffic import Connection

_YARDSTICKS = Path(__file__).parent / "yardsticks"
_PATIENCE_S = 30.0


@contextlib.contextmanager
def kapudf(folder: Path, handler: str, *options: str) -> Iterator[str]:
    """Start `kapudf serve` with a handler, and yield the socket's path."""
    path = str(folder / f"kapudf-{handler}{len(os.listdir(folder))}.sock")
    command = ["serve", "--socket", path, "--handler", handler, "--log-level", "error", *options]
    with _started([sys.executable, "-m", "kapudf_cli", *command], path):
        yield path


def exec_command(handler: str) -> list[str]:
    """Return the command that runs a handler as a process UDF."""
    return [
        sys.executable,
        "-m",
        "kapudf_cli",
        "exec",
        "--handler",
        handler,
        "--log-level",
        "error",
    ]


@contextlib.contextmanager
def yardstick(folder: Path, name: str) -> Iterator[str]:
    """Start one of the yardsticks, and yield the socket's path."""
    path = str(folder / f"{name}.sock")
    with _started([sys.executable, str(_YARDSTICKS / f"{name}.py"), path], path):
        yield path


@contextlib.contextmanager
def _started(command: list[str], path: str) -> Iterator[None]:
    process = subprocess.Popen(command)  # noqa: S603 - our own scripts
    try:
        await_socket(path)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_PATIENCE_S)


def await_socket(path: str) -> None:
    """Wait until a process listens at the socket."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            listener(path)
        except OSError as error:
            if time.monotonic() > deadline:
                message = f"nothing listens at {path}"
                raise TimeoutError(message) from error
            time.sleep(0.01)
        else:
            return


def listener(path: str) -> int:
    """Return the number of the process that listens at a socket.

    Raises:
        OSError: none does.
    """
    with socket.socket(socket.AF_UNIX) as side:
        side.connect(path)
        return _peer_pid(side)


def start_up_s(folder: Path) -> float:
    """Return the seconds from starting `kapudf serve` until a probe is answered."""
    path = str(folder / "start.sock")
    command = [sys.executable, "-m", "kapudf_cli", "serve", "--socket", path]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--handler", "mirror", "--log-level", "error"])  # noqa: S603 - our own
    pause = threading.Event()
    try:
        while True:
            try:
                probe(path, timeout_s=_PATIENCE_S)
            except ProbeError:
                pause.wait(0.002)
            else:
                return time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_PATIENCE_S)


def help_s() -> float:
    """Return the seconds that `kapudf --help` takes."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "kapudf_cli", "--help"], stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started


def pid_of(connection: Connection) -> int:
    """Return the number of the process at the other end."""
    if isinstance(connection.socket, socket.socket):
        return _peer_pid(connection.socket)
    assert connection.pid is not None
    return connection.pid


def _peer_pid(side: socket.socket) -> int:
    peer = peer_credentials(side)
    if peer is None:
        message = "this system does not tell which process is at the other end of a socket"
        raise RuntimeError(message)
    return peer.pid


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and its descendants, in seconds."""
    return processes.cpu_s(processes.tree([pid]))


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process and its descendants, in MB.

    Memory that they share is counted for each.
    """
    return sum(map(processes.rss_bytes, processes.tree([pid]))) / 1e6
