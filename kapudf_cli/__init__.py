"""kapudf runs user-defined functions (UDFs) for Kapacitor.

What a handler's author needs is here; everything else is the runner's own.
"""

from kapudf_cli.errors import ConnectionClosedError, InvalidWriteError, KapudfError
from kapudf_cli.handler import Handler, Writer
from kapudf_cli.wire.udf_pb2 import (
    BATCH,
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STREAM,
    STRING,
    BeginBatch,
    EdgeType,
    EndBatch,
    InfoResponse,
    InitRequest,
    InitResponse,
    Option,
    OptionInfo,
    OptionValue,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotResponse,
    ValueType,
)

__version__ = "0.1.0"

__all__ = [
    "BATCH",
    "BOOL",
    "DOUBLE",
    "DURATION",
    "INT",
    "STREAM",
    "STRING",
    "BeginBatch",
    "ConnectionClosedError",
    "EdgeType",
    "EndBatch",
    "Handler",
    "InfoResponse",
    "InitRequest",
    "InitResponse",
    "InvalidWriteError",
    "KapudfError",
    "Option",
    "OptionInfo",
    "OptionValue",
    "Point",
    "RestoreRequest",
    "RestoreResponse",
    "SnapshotResponse",
    "ValueType",
    "Writer",
]
