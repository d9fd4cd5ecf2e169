"""Blocks and single points, sent and awaited by counting bytes: the yardstick's own way.

It costs the driver next to nothing, so that it measures a UDF that is faster than
frames can be counted; but it needs one that answers each block with as many bytes.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import EndBatch, ErrorResponse, InitRequest, InitResponse, Point
from kapudf_cli.tools.load.work import head_bytes

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from kapudf_cli.client.driver import KapacitorSide
    from kapudf_cli.tools.load.work import Work

#: A sleep overshoots by about this much; from there on it is yielded instead.
_SLEEP_UNTIL_S = 0.0002
_READ_BYTES = 256 * 1024


class Exchange:
    """A connection that is past Init, and knows how many bytes come back for a block."""

    def __init__(self, side: KapacitorSide, connection: socket.socket, work: Work) -> None:
        """Take a connection, and the socket under it."""
        self._side = side
        self.socket = connection
        self.work = work
        self.block = b"".join(REQUESTS.encode(message) for message in work.messages)
        self.answer_bytes = len(self.block)

    def start(self, timeout_s: float) -> None:
        """Begin a task, and learn by one block how many bytes come back for each.

        Raises:
            RuntimeError: the UDF refused, failed, or closed the connection.
        """
        work = self.work
        self._side.extend(timeout_s)
        self._side.send(InitRequest(taskID="load", nodeID="udf1", options=work.options))
        response = self._side.receive()
        if response != InitResponse(success=True):
            message = f"Init was answered with {response}"
            raise RuntimeError(message)
        # Of a stream, the points are counted; of batches, the ends.
        batches = sum(isinstance(message, EndBatch) for message in work.messages)
        counted, left = (EndBatch, batches) if batches else (Point, work.points)
        self.answer_bytes = 0
        self.socket.settimeout(timeout_s)
        sender = threading.Thread(target=self.socket.sendall, args=(self.block,))
        sender.start()
        while left:
            response = self._side.receive()
            match response:
                case None:
                    message = "the UDF closed the connection"
                    raise RuntimeError(message)
                case ErrorResponse():
                    message = f"the UDF failed: {response.error}"
                    raise RuntimeError(message)
            left -= isinstance(response, counted)
            # A response is as long in the one envelope as in the other.
            self.answer_bytes += len(REQUESTS.encode(response))  # type: ignore[arg-type]
        sender.join()
        self.socket.settimeout(timeout_s)

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
    """Read that many bytes and forget them.

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


def bulk(connections: Sequence[Exchange], blocks: int) -> float:
    """Drive connections side by side; return the seconds until all is answered."""
    threads = [threading.Thread(target=each.bulk, args=(blocks,)) for each in connections[1:]]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    connections[0].bulk(blocks)
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def ping_pong(connection: Exchange, count: int, interval_s: float = 0.0) -> list[float]:
    """Send points one at a time, each in two writes; return the seconds until each came back.

    With an interval, a point's time counts from when it was due, so that one that
    is late because of the one before it shows as late.
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
        send_as_kapacitor(connection.socket, frame)
        receive(connection.socket, answers)
        times.append(time.perf_counter() - due)
    return times


def wait_until(due: float) -> None:
    """Return when it is time, in seconds of time.perf_counter, and hardly later."""
    while (left := due - time.perf_counter()) > 0:
        time.sleep(left / 2 if left > _SLEEP_UNTIL_S else 0)


def send_as_kapacitor(connection: socket.socket, frame: bytes) -> None:
    """Send a frame as Kapacitor does: the length, and then the body."""
    head = head_bytes(frame)
    connection.send(frame[:head])
    connection.send(frame[head:])
