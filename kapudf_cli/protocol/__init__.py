"""The protocol without I/O: framing, messages, and the order in which they may come.

This package has no sockets, threads, clock or log. It imports protobuf, and of the project only
`kapudf_cli.errors` and `kapudf_cli.lazy_names`.

It exports the messages and enums, for handlers that use them. Each is imported on first use,
because the supervisor, which uses the framing, must not import protobuf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.lazy_names import LazyNames

if TYPE_CHECKING:
    from kapudf_cli.protocol.udf_pb2 import BATCH as BATCH
    from kapudf_cli.protocol.udf_pb2 import BOOL as BOOL
    from kapudf_cli.protocol.udf_pb2 import DOUBLE as DOUBLE
    from kapudf_cli.protocol.udf_pb2 import DURATION as DURATION
    from kapudf_cli.protocol.udf_pb2 import INT as INT
    from kapudf_cli.protocol.udf_pb2 import STREAM as STREAM
    from kapudf_cli.protocol.udf_pb2 import STRING as STRING
    from kapudf_cli.protocol.udf_pb2 import BeginBatch as BeginBatch
    from kapudf_cli.protocol.udf_pb2 import EdgeType as EdgeType
    from kapudf_cli.protocol.udf_pb2 import EndBatch as EndBatch
    from kapudf_cli.protocol.udf_pb2 import ErrorResponse as ErrorResponse
    from kapudf_cli.protocol.udf_pb2 import InfoRequest as InfoRequest
    from kapudf_cli.protocol.udf_pb2 import InfoResponse as InfoResponse
    from kapudf_cli.protocol.udf_pb2 import InitRequest as InitRequest
    from kapudf_cli.protocol.udf_pb2 import InitResponse as InitResponse
    from kapudf_cli.protocol.udf_pb2 import KeepaliveRequest as KeepaliveRequest
    from kapudf_cli.protocol.udf_pb2 import KeepaliveResponse as KeepaliveResponse
    from kapudf_cli.protocol.udf_pb2 import Option as Option
    from kapudf_cli.protocol.udf_pb2 import OptionInfo as OptionInfo
    from kapudf_cli.protocol.udf_pb2 import OptionValue as OptionValue
    from kapudf_cli.protocol.udf_pb2 import Point as Point
    from kapudf_cli.protocol.udf_pb2 import RestoreRequest as RestoreRequest
    from kapudf_cli.protocol.udf_pb2 import RestoreResponse as RestoreResponse
    from kapudf_cli.protocol.udf_pb2 import SnapshotRequest as SnapshotRequest
    from kapudf_cli.protocol.udf_pb2 import SnapshotResponse as SnapshotResponse
    from kapudf_cli.protocol.udf_pb2 import ValueType as ValueType

#: The module of each public name. A test compares it with the imports above.
_NAMES: Final = LazyNames(
    __name__,
    {
        "kapudf_cli.protocol.udf_pb2": (
            "BATCH",
            "BOOL",
            "DOUBLE",
            "DURATION",
            "INT",
            "STREAM",
            "STRING",
            "BeginBatch",
            "EdgeType",
            "EndBatch",
            "ErrorResponse",
            "InfoRequest",
            "InfoResponse",
            "InitRequest",
            "InitResponse",
            "KeepaliveRequest",
            "KeepaliveResponse",
            "Option",
            "OptionInfo",
            "OptionValue",
            "Point",
            "RestoreRequest",
            "RestoreResponse",
            "SnapshotRequest",
            "SnapshotResponse",
            "ValueType",
        ),
    },
)

__all__ = [*_NAMES]  # noqa: PLE0604 - text they are


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    return _NAMES.load(name)


def __dir__() -> list[str]:
    """Return all public names, imported or not."""
    return [*_NAMES]
