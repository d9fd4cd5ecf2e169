"""A mirror at a Unix socket that behaves like the example servers of Kapacitor's Go agent.

It differs from other UDFs in three ways:

- At the end of a connection's input it drops the answers that it has not written yet.
- The whole server exits with status 1 when one connection fails in that way, or is cut.
- The answer to a keepalive overtakes points that came before it.

In the Go agent these depend on the scheduler. Here each answer is delayed, and none is written
once the peer has ended its input, so that they happen every time.
"""

from __future__ import annotations

import heapq
import os
import select
import socket
import sys
import threading
import time

from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.udf_pb2 import (
    STREAM,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)

#: The delays of answers and of points.
ANSWER_S = 0.003
POINT_S = 0.012


class GoAgent:
    """One connection, with a thread that reads and a thread that writes."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.changed = threading.Condition()
        self.pending: list[tuple[float, int, bytes]] = []
        self.count = 0
        self.ended = False
        threading.Thread(target=self.read).start()
        threading.Thread(target=self.write).start()

    def read(self) -> None:
        requests = FrameReader(REQUESTS.decode_in)
        try:
            while data := self.connection.recv(65536):
                for request in requests.feed(data):
                    self.take(request)
            requests.finish()
        except Exception as error:  # noqa: BLE001 - each of them ends the server
            fatal(f"read error: {error}")
        with self.changed:
            if self.pending:
                fatal("write error: use of closed network connection")
            self.ended = True
            self.changed.notify()

    def write(self) -> None:
        while True:
            with self.changed:
                while not self.pending or (left_s := self.pending[0][0] - time.monotonic()) > 0:
                    if self.ended:
                        self.connection.close()
                        return
                    self.changed.wait(left_s if self.pending else None)
                if self.input_has_ended():
                    self.changed.wait()  # The reader is about to end the server.
                data = bytearray()
                now_s = time.monotonic()
                while self.pending and self.pending[0][0] <= now_s:
                    data += heapq.heappop(self.pending)[2]
            try:
                self.connection.sendall(data)
            except OSError as error:
                fatal(f"write error: {error}")

    def input_has_ended(self) -> bool:
        """Return whether the peer has ended its input, read or not."""
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP)
        return bool(poll.poll(0))

    def take(self, request: object) -> None:
        match request:
            case InfoRequest():
                self.answer(InfoResponse(wants=STREAM, provides=STREAM), ANSWER_S)
            case InitRequest():
                self.answer(InitResponse(success=True), ANSWER_S)
            case KeepaliveRequest():
                self.answer(KeepaliveResponse(time=request.time), 0)
            case SnapshotRequest():
                self.answer(SnapshotResponse(), ANSWER_S)
            case RestoreRequest():
                self.answer(RestoreResponse(success=True), ANSWER_S)
            case Point():
                self.answer(request, POINT_S)

    def answer(
        self,
        response: (
            InfoResponse | InitResponse | KeepaliveResponse | SnapshotResponse | RestoreResponse
            | Point
        ),
        after_s: float,
    ) -> None:  # fmt: skip
        with self.changed:
            self.count += 1
            due_s = time.monotonic() + after_s
            heapq.heappush(self.pending, (due_s, self.count, RESPONSES.encode(response)))
            self.changed.notify()


def fatal(problem: str) -> None:
    """End the whole server, as `log.Fatal` does."""
    sys.stderr.write(f"{problem}\n")
    sys.stderr.flush()
    os._exit(1)


def main(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            GoAgent(connection)


if __name__ == "__main__":
    main(sys.argv[1])
