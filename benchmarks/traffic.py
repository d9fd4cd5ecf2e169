"""The load: generated and captured points, and connections that send them."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitRequest,
    InitResponse,
    Point,
)
from kapudf_cli.tools.load.work import Shape, head_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.tools.load.work import Work

_TIMEOUT_S = 120.0
_READ_BYTES = 256 * 1024
#: A sleep overshoots by about this much; for a shorter wait, only yield.
_SLEEP_UNTIL_S = 0.0002
CAPTURE = Path(__file__).parent.parent / "tests" / "captures" / "stream-01.bin"


def telegraf_points(count: int) -> list[Point]:
    """Return points like telegraf's `cpu`: 10 double fields, 2 tags, 8 hosts."""
    return list(Shape().points(count))


def captured_points() -> list[Point]:
    """Return the points of a capture: four fields, one of each type."""
    requests = FrameReader(REQUESTS.decode_in).feed(CAPTURE.read_bytes())
    return [request for request in requests if isinstance(request, Point)]


def batch(points: list[Point]) -> list[BeginBatch | Point | EndBatch]:
    """Return as many points as a batch in which every hundredth value is an outlier."""
    chance = random.Random(2)  # noqa: S311 - the same points in every run
    inside = [
        Point(
            time=point.time,
            group="host=a",
            tags={"host": "a"},
            fieldsDouble={"usage_idle": chance.gauss(50, 5)},
        )
        for point in points
    ]
    for point in inside[::100]:
        point.fieldsDouble["usage_idle"] = 1000.0
    begin = BeginBatch(name="cpu", group="host=a", tags={"host": "a"}, size=len(inside))
    end = EndBatch(name="cpu", group="host=a", tags={"host": "a"}, tmax=inside[-1].time)
    return [begin, *inside, end]


class Pipes:
    """The pipes of a process UDF, with the methods of a socket that a `Connection` needs."""

    def __init__(self, readable: int, writable: int) -> None:
        """Use descriptors that belong to another object."""
        self._readable = readable
        self._writable = writable
        os.set_blocking(writable, True)

    def sendall(self, data: bytes) -> None:
        """Write all of `data`."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._writable, rest) :]

    def send(self, data: bytes) -> int:
        """Write a part of `data`; return how many bytes."""
        return os.write(self._writable, data)

    def settimeout(self, timeout_s: float) -> None:
        """Do nothing: a pipe has no timeout."""

    def recv_into(self, buffer: bytearray, count: int) -> int:
        """Read up to `count` bytes; return how many, 0 at the end."""
        return os.readv(self._readable, [memoryview(buffer)[:count]])


class Connection:
    """A task's connection to a UDF, or a plain one to the echo server.

    Answers are awaited by counting bytes. That costs the load generator next to nothing, so
    that it can measure a UDF which is faster than frames can be counted. But the UDF must
    answer each block with the same number of bytes.

    Attributes:
        socket: the connection, past Init.
        pid: the UDF's process if this object started it; None for a UDF at a socket.
        work: what is sent.
        block: the bytes of one block of `work`.
        answer_bytes: how many bytes come back for a block.
    """

    def __init__(
        self, path: str, work: Work, *, echo: bool = False, is_command: bool = False
    ) -> None:
        """Connect and, unless it is an echo, start a task and measure the answer to one block.

        Args:
            path: the UDF's socket, or the command that starts it as a process.
            work: what is sent.
            echo: whether it is a server that returns bytes.
            is_command: whether `path` is a command.

        Raises:
            RuntimeError: the UDF refused, failed, or closed the connection.
        """
        self._opened = contextlib.ExitStack()
        self.socket: socket.socket | Pipes
        self.pid: int | None = None
        if is_command:
            target = CommandTarget.parse(path)
            opened = self._opened.enter_context(target.open(timeout_s=_TIMEOUT_S))
            self._side = opened.side
            self.pid = opened.pid
            self.socket = Pipes(*self._side.descriptors)
        else:
            self._side = KapacitorSide.connect(path, timeout_s=_TIMEOUT_S)
            assert isinstance(self._side.connection, socket.socket)
            self.socket = self._side.connection
            self._opened.callback(self.socket.close)
        self.work = work
        self.block = b"".join(REQUESTS.encode(message) for message in work.messages)
        self.answer_bytes = len(self.block)
        if not echo:
            try:
                self._start()
            except BaseException:
                self.close()
                raise

    def _start(self) -> None:
        self._side.send(InitRequest(taskID="load", nodeID="udf1", options=self.work.options))
        response = self._side.receive()
        if response != InitResponse(success=True):
            message = f"Init was answered with {response}"
            raise RuntimeError(message)
        # Of a stream, the points are counted; of batches, the ends.
        batches = sum(isinstance(message, EndBatch) for message in self.work.messages)
        counted, left = (EndBatch, batches) if batches else (Point, self.work.points)
        self.answer_bytes = 0
        self.socket.settimeout(_TIMEOUT_S)
        sender = threading.Thread(target=self.socket.sendall, args=(self.block,))
        sender.start()
        while left:
            match response := self._side.receive():
                case None:
                    message = "the UDF closed the connection"
                    raise RuntimeError(message)
                case ErrorResponse():
                    message = f"the UDF failed: {response.error}"
                    raise RuntimeError(message)
            left -= isinstance(response, counted)
            # Requests and responses of the same content have the same length.
            self.answer_bytes += len(REQUESTS.encode(response))  # type: ignore[arg-type]
        sender.join()
        self.socket.settimeout(_TIMEOUT_S)

    def bulk(self, blocks: int) -> None:
        """Send blocks as fast as the UDF takes them, and return when all is answered."""
        sender = threading.Thread(target=self._send, args=(blocks,))
        sender.start()
        receive(self.socket, self.answer_bytes * blocks)
        sender.join()

    def _send(self, blocks: int) -> None:
        for _ in range(blocks):
            self.socket.sendall(self.block)

    def close(self) -> None:
        """Close the connection, and end the process if this object started it."""
        self._opened.close()


def receive(connection: socket.socket | Pipes, count: int) -> None:
    """Read that many bytes and drop them.

    Raises:
        RuntimeError: the connection ended before.
    """
    buffer = bytearray(_READ_BYTES)
    while count > 0:
        got = connection.recv_into(buffer, min(count, len(buffer)))
        if not got:
            message = "the UDF closed the connection"
            raise RuntimeError(message)
        count -= got


def bulk(connections: Sequence[Connection], blocks: int) -> float:
    """Send blocks on all connections at once; return the seconds until all is answered."""
    threads = [threading.Thread(target=each.bulk, args=(blocks,)) for each in connections[1:]]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    connections[0].bulk(blocks)
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def ping_pong(connection: Connection, count: int, interval_s: float = 0.0) -> list[float]:
    """Send points one at a time, as Kapacitor does; return the seconds until each came back.

    With an interval, a point's time counts from when it was due. So a point that has to wait
    for the one before it counts as late.
    """
    frame = connection.work.units[0].frames[0]
    answers = connection.answer_bytes * len(frame) // len(connection.block)
    times = []
    due = time.perf_counter()
    for _ in range(count):
        if interval_s:
            due += interval_s
            wait_until(due)
        else:
            due = time.perf_counter()
        _send_as_kapacitor(connection.socket, frame)
        receive(connection.socket, answers)
        times.append(time.perf_counter() - due)
    return times


def wait_until(due: float) -> None:
    """Return at this time of time.perf_counter, in seconds, with little delay."""
    while (left := due - time.perf_counter()) > 0:
        time.sleep(left / 2 if left > _SLEEP_UNTIL_S else 0)


def _send_as_kapacitor(connection: socket.socket | Pipes, frame: bytes) -> None:
    """Send a frame as Kapacitor does: the length, and then the body."""
    head = head_bytes(frame)
    connection.send(frame[:head])
    connection.send(frame[head:])


def at_a_rate(connection: Connection, points_per_s: int, duration_s: float) -> int:
    """Send points at a rate as Kapacitor sends them; return their number when all came back.

    Another process reads the answers, because this one busy-waits to keep the pace.
    """
    frames = [unit.frames[0] for unit in connection.work.units]
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
        _send_as_kapacitor(connection.socket, frames[number % len(frames)])
    os.waitpid(reader, 0)
    return total
