"""A deliberately plain agent: a straightforward mirror in Python.

It reads one frame at a time from a buffered file, the length byte by byte. It parses the Request,
builds a Response with CopyFrom, writes it and flushes.

    python plain_agent.py PATH
"""

from __future__ import annotations

import socket
import sys
import threading
from typing import TYPE_CHECKING

from kapudf_cli.protocol.udf_pb2 import BATCH, STREAM, Request, Response

if TYPE_CHECKING:
    from io import BufferedRWPair


def read_varint(stream: BufferedRWPair) -> int | None:
    """Return the next length, None at the end."""
    value = shift = 0
    while byte := stream.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:  # noqa: PLR2004 - the bit that says that more follow
            return value
        shift += 7
    return None


def write_varint(stream: BufferedRWPair, value: int) -> None:
    """Write a length."""
    while value > 0x7F:  # noqa: PLR2004 - what fits into seven bits
        stream.write(bytes([value & 0x7F | 0x80]))
        value >>= 7
    stream.write(bytes([value]))


def answer(request: Request) -> Response:
    """Return the response to a request; data is mirrored."""
    response = Response()
    match request.WhichOneof("message"):
        case "info":
            response.info.wants = BATCH if "batch" in sys.argv else STREAM
            response.info.provides = response.info.wants
        case "init":
            response.init.success = True
        case "keepalive":
            response.keepalive.time = request.keepalive.time
        case "snapshot":
            response.snapshot.snapshot = b""
        case "restore":
            response.restore.success = True
        case "begin":
            response.begin.CopyFrom(request.begin)
        case "point":
            response.point.CopyFrom(request.point)
        case "end":
            response.end.CopyFrom(request.end)
    return response


def serve(connection: socket.socket) -> None:
    """Serve one connection to its end."""
    with connection, connection.makefile("rwb") as stream:
        while (size := read_varint(stream)) is not None:
            data = answer(Request.FromString(stream.read(size))).SerializeToString()
            write_varint(stream, len(data))
            stream.write(data)
            stream.flush()


def main(path: str) -> None:
    """Serve each connection in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
