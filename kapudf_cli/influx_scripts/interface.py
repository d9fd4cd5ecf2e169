"""The parts of `kapacitor.udf.agent` that are the same however a script is run.

The names, and the arguments of the functions, are those of InfluxData's agent.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from kapudf_cli.protocol.framing import encode_varint

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import (
        BeginBatch,
        EndBatch,
        InitRequest,
        Point,
        Response,
        RestoreRequest,
    )

#: stdin and stdout as byte streams; a process may have none, or have replaced them by others.
defaultIn: Final[Any] = getattr(sys.stdin, "buffer", sys.stdin)  # noqa: N816 - InfluxData's name
defaultOut: Final[Any] = getattr(sys.stdout, "buffer", sys.stdout)  # noqa: N816

logger: Final = logging.getLogger()

byteSize: Final = 8  # noqa: N816
shiftSize: Final = byteSize - 1  # noqa: N816
varintMoreMask: Final = 1 << shiftSize  # noqa: N816
varintMask: Final = varintMoreMask - 1  # noqa: N816
mask32uint: Final = (1 << 32) - 1


class Handler:
    """What Kapacitor's requests do; scripts subclass it.

    `info`, `init`, `snapshot` and `restore` return a Response.
    """

    def info(self) -> Response | None:
        """Return the edges and the options."""

    def init(self, init_req: InitRequest) -> Response | None:
        """Take the options of the TICKscript."""

    def snapshot(self) -> Response | None:
        """Return the state."""

    def restore(self, restore_req: RestoreRequest) -> Response | None:
        """Take the state of an earlier `snapshot`."""

    def begin_batch(self, begin_req: BeginBatch) -> None:
        """Take the begin of a batch."""

    def point(self, point_req: Point) -> None:
        """Take a point."""

    def end_batch(self, end_req: EndBatch) -> None:
        """Take the end of a batch."""


class EOF(Exception):  # noqa: N818 - InfluxData's name
    """A stream has ended."""


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Writer(Protocol):
    def write(self, data: bytes, /) -> Any: ...


def encodeUvarint(writer: _Writer, value: int) -> Any:  # noqa: N802 - InfluxData's name
    """Write a number as a varint."""
    return writer.write(encode_varint(value))


def decodeUvarint32(reader: _Reader) -> int:  # noqa: N802 - InfluxData's name
    """Read a varint of at most 32 bits.

    Raises:
        EOF: the stream has ended.
        ValueError: it has more bits.
    """
    result = 0
    for shift in range(0, 32, shiftSize):
        byte = reader.read(1)
        if not byte:
            raise EOF
        result |= (byte[0] & varintMask) << shift
        if not byte[0] & varintMoreMask:
            return result & mask32uint
    problem = "a varint of more than 32 bits"
    raise ValueError(problem)
