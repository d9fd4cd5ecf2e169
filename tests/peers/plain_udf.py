"""A process UDF that mirrors points, does everything right, and does not use kapudf's agent."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.udf_pb2 import (
    STREAM,
    STRING,
    BeginBatch,
    EdgeType,
    EndBatch,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    OptionInfo,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage


class PlainUdf:
    """Reads requests from stdin and writes responses to stdout."""

    edge: EdgeType = STREAM

    def __init__(self) -> None:
        self.count = 0
        self.pending = b""

    def run(self) -> None:
        requests = FrameReader(REQUESTS.decode_in)
        while data := os.read(0, 65536):
            for request in requests.feed(data):
                self.take(request)
            self.rest()
        self.end()

    def rest(self) -> None:
        """Handle a pause in the input."""
        self.flush()

    def end(self) -> None:
        self.flush()

    def take(self, request: RequestMessage) -> None:
        match request:
            case InfoRequest():
                self.info()
            case InitRequest():
                self.init(request)
            case KeepaliveRequest():
                self.keepalive(request)
            case SnapshotRequest():
                self.snapshot()
            case RestoreRequest():
                self.restore(request)
            case Point():
                self.count += 1
                self.point(request)
            case BeginBatch():
                self.begin(request)
            case EndBatch():
                self.write(request)

    def info(self) -> None:
        self.write(InfoResponse(wants=self.edge, provides=self.edge))

    def declare(self, option: str) -> None:
        """Answer Info, with an option that takes a string."""
        options = {option: OptionInfo(valueTypes=[STRING])}
        self.write(InfoResponse(wants=self.edge, provides=self.edge, options=options))

    def init(self, request: InitRequest) -> None:
        del request
        self.write(InitResponse(success=True))

    def keepalive(self, request: KeepaliveRequest) -> None:
        self.write(KeepaliveResponse(time=request.time))
        self.flush()

    def snapshot(self) -> None:
        self.write(SnapshotResponse(snapshot=struct.pack("!q", self.count)))
        self.flush()

    def restore(self, request: RestoreRequest) -> None:
        if len(request.snapshot) == struct.calcsize("!q"):
            (self.count,) = struct.unpack("!q", request.snapshot)
            self.write(RestoreResponse(success=True))
        else:
            self.write(RestoreResponse(success=False, error="not a snapshot of this UDF"))

    def begin(self, begin: BeginBatch) -> None:
        self.write(begin)

    def point(self, point: Point) -> None:
        self.write(point)

    def write(self, response: ResponseMessage) -> None:
        self.write_bytes(RESPONSES.encode(response))

    def write_bytes(self, data: bytes) -> None:
        self.pending += data

    def flush(self) -> None:
        while self.pending:
            self.pending = self.pending[os.write(1, self.pending) :]


if __name__ == "__main__":
    PlainUdf().run()
