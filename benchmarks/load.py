"""Drives a UDF: in bulk, one point at a time, or at a rate in Kapacitor's manner."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapudf_cli.kapacitor import KapacitorSide
from kapudf_cli.wire.codec import REQUESTS
from kapudf_cli.wire.udf_pb2 import EndBatch, InitRequest, InitResponse, Point

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from kapudf_cli.wire.codec import RequestMessage
    from kapudf_cli.wire.udf_pb2 import Option

_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Work:
    """What one connection sends over and over.

    Attributes:
        messages: the messages of one block.
        options: what Init calls.
    """

    messages: Sequence[RequestMessage]
    options: Sequence[Option] = ()

    @property
    def points(self) -> int:
        """How many points a block has."""
        return sum(isinstance(message, Point) for message in self.messages)


class Connection:
    """A task's connection to a UDF, or a plain one to the echo server."""

    def __init__(self, path: str, work: Work, *, echo: bool = False) -> None:
        """Connect, and learn by one block how many bytes come back for each."""
        self._work = work
        self._side = KapacitorSide.connect(path, timeout_s=_TIMEOUT_S)
        self.socket: socket.socket = self._side.connection  # type: ignore[assignment]  # it is one
        self.block = b"".join(REQUESTS.encode(message) for message in work.messages)
        if echo:
            self.answer_bytes = len(self.block)
            return
        self._side.send(InitRequest(taskID="bench", nodeID="udf1", options=work.options))
        response = self._side.receive()
        if response != InitResponse(success=True):
            message = f"{path}: Init was answered with {response}"
            raise RuntimeError(message)
        # Of a stream, the points are counted; of batches, the ends.
        batches = sum(isinstance(message, EndBatch) for message in work.messages)
        counted, left = (EndBatch, batches) if batches else (Point, work.points)
        self.answer_bytes = 0
        self.socket.settimeout(_TIMEOUT_S)
        sender = threading.Thread(target=self.socket.sendall, args=(self.block,))
        sender.start()
        while left:
            response = self._side.receive()
            if response is None:
                message = f"{path}: the connection ended"
                raise RuntimeError(message)
            left -= isinstance(response, counted)
            # A response is as long in the one envelope as in the other.
            self.answer_bytes += len(REQUESTS.encode(response))  # type: ignore[arg-type]
        sender.join()
        self.socket.settimeout(_TIMEOUT_S)

    def bulk(self, blocks: int) -> None:
        """Send blocks as fast as they are taken, and return when all is answered."""
        sender = threading.Thread(target=self._send, args=(blocks,))
        sender.start()
        receive(self.socket, self.answer_bytes * blocks)
        sender.join()

    def _send(self, blocks: int) -> None:
        for _ in range(blocks):
            self.socket.sendall(self.block)

    def close(self) -> None:
        """End the connection."""
        self.socket.close()


def receive(connection: socket.socket, count: int) -> None:
    """Read that many bytes and forget them."""
    buffer = bytearray(256 * 1024)
    while count > 0:
        got = connection.recv_into(buffer, min(count, len(buffer)))
        if not got:
            message = "the UDF closed the connection"
            raise RuntimeError(message)
        count -= got


def bulk(connections: Sequence[Connection], blocks: int) -> float:
    """Drive connections side by side; return the seconds until all is answered."""
    threads = [threading.Thread(target=each.bulk, args=(blocks,)) for each in connections[1:]]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    connections[0].bulk(blocks)
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def ping_pong(connection: Connection, count: int, interval_s: float = 0.0) -> list[float]:
    """Send points one at a time, each in two writes; return the seconds until each came back.

    With an interval, a point's time counts from when it was due, so that one that
    is late because of the one before it shows as late.
    """
    frames = [REQUESTS.encode(message) for message in connection._work.messages]  # noqa: SLF001 - the other half
    answers = connection.answer_bytes * len(frames[0]) // len(connection.block)
    times = []
    due = time.perf_counter()
    for _ in range(count):
        if interval_s:
            due += interval_s
            while (left := due - time.perf_counter()) > 0:
                time.sleep(left / 2 if left > 0.0002 else 0)  # noqa: PLR2004 - a sleep overshoots
        else:
            due = time.perf_counter()
        send_as_kapacitor(connection.socket, frames[0])
        receive(connection.socket, answers)
        times.append(time.perf_counter() - due)
    return times


def send_as_kapacitor(connection: socket.socket, frame: bytes) -> None:
    """Send a frame as Kapacitor does: the length, and then the body."""
    head = 2 if frame[0] > 0x7F else 1  # noqa: PLR2004 - a length of two bytes
    connection.send(frame[:head])
    connection.send(frame[head:])


def at_a_rate(connection: Connection, points_per_s: int, duration_s: float) -> int:
    """Send points evenly spaced in Kapacitor's manner; return how many, once all came back.

    The answers are read by a process of their own: this one is busy keeping time.
    """
    frames = [REQUESTS.encode(message) for message in connection._work.messages]  # noqa: SLF001 - the other half
    total = int(points_per_s * duration_s)
    answer_bytes = connection.answer_bytes // len(frames)
    reader = os.fork()
    if reader == 0:
        receive(connection.socket, answer_bytes * total)
        os._exit(0)
    due = time.perf_counter()
    interval_s = 1 / points_per_s
    for number in range(total):
        due += interval_s
        while time.perf_counter() < due:
            pass
        send_as_kapacitor(connection.socket, frames[number % len(frames)])
    os.waitpid(reader, 0)
    return total
