"""kapudf runs user-defined functions (UDFs) for Kapacitor.

What a handler's author needs is here; everything else is the runner's own.
"""

from msgspec import Meta

from kapudf_cli.batches import Batch, BatchHandler, write_batch
from kapudf_cli.errors import (
    ConnectionClosedError,
    FieldValueError,
    InvalidWriteError,
    KapudfError,
    OptionsError,
)
from kapudf_cli.handler import Handler, Writer
from kapudf_cli.options import Flag, Options
from kapudf_cli.patch import FieldPatch, PointPatch
from kapudf_cli.points import (
    FieldValue,
    drop_field,
    get_datetime,
    get_field,
    get_fields,
    get_number,
    get_tag,
    like,
    set_datetime,
    set_field,
    time_ns,
)
from kapudf_cli.state import PerGroup, State
from kapudf_cli.wire.codec import decode_point
from kapudf_cli.wire.point_frames import RawPoint
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
    "Batch",
    "BatchHandler",
    "BeginBatch",
    "ConnectionClosedError",
    "EdgeType",
    "EndBatch",
    "FieldPatch",
    "FieldValue",
    "FieldValueError",
    "Flag",
    "Handler",
    "InfoResponse",
    "InitRequest",
    "InitResponse",
    "InvalidWriteError",
    "KapudfError",
    "Meta",
    "Option",
    "OptionInfo",
    "OptionValue",
    "Options",
    "OptionsError",
    "PerGroup",
    "Point",
    "PointPatch",
    "RawPoint",
    "RestoreRequest",
    "RestoreResponse",
    "SnapshotResponse",
    "State",
    "ValueType",
    "Writer",
    "decode_point",
    "drop_field",
    "get_datetime",
    "get_field",
    "get_fields",
    "get_number",
    "get_tag",
    "like",
    "set_datetime",
    "set_field",
    "time_ns",
    "write_batch",
]
