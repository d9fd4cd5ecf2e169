"""kapudf runs user-defined functions (UDFs) for Kapacitor.

This module has the names that authors of handlers need; all other modules are internal.

Each name is imported on first use. Importing protobuf takes longer than running
`kapudf --help`, and the supervisor must not import it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from msgspec import Meta as Meta

    from kapudf_cli.agent.errors import ConnectionClosedError as ConnectionClosedError
    from kapudf_cli.errors import KapudfError as KapudfError
    from kapudf_cli.handler.batch_handler import BatchHandler as BatchHandler
    from kapudf_cli.handler.batches import Batch as Batch
    from kapudf_cli.handler.errors import FieldValueError as FieldValueError
    from kapudf_cli.handler.errors import OptionsError as OptionsError
    from kapudf_cli.handler.handler import Handler as Handler
    from kapudf_cli.handler.option_declarations import Flag as Flag
    from kapudf_cli.handler.option_declarations import Name as Name
    from kapudf_cli.handler.options import Options as Options
    from kapudf_cli.handler.output import Writer as Writer
    from kapudf_cli.handler.output import write_batch as write_batch
    from kapudf_cli.handler.patch import FieldPatch as FieldPatch
    from kapudf_cli.handler.patch import PointPatch as PointPatch
    from kapudf_cli.handler.points import FieldValue as FieldValue
    from kapudf_cli.handler.points import drop_field as drop_field
    from kapudf_cli.handler.points import get_datetime as get_datetime
    from kapudf_cli.handler.points import get_field as get_field
    from kapudf_cli.handler.points import get_fields as get_fields
    from kapudf_cli.handler.points import get_number as get_number
    from kapudf_cli.handler.points import get_tag as get_tag
    from kapudf_cli.handler.points import like as like
    from kapudf_cli.handler.points import set_datetime as set_datetime
    from kapudf_cli.handler.points import set_field as set_field
    from kapudf_cli.handler.points import time_ns as time_ns
    from kapudf_cli.handler.state import PerGroup as PerGroup
    from kapudf_cli.handler.state import State as State
    from kapudf_cli.protocol.codec import decode_point as decode_point
    from kapudf_cli.protocol.errors import InvalidWriteError as InvalidWriteError
    from kapudf_cli.protocol.raw_points import RawPoint as RawPoint
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
    from kapudf_cli.protocol.udf_pb2 import InfoResponse as InfoResponse
    from kapudf_cli.protocol.udf_pb2 import InitRequest as InitRequest
    from kapudf_cli.protocol.udf_pb2 import InitResponse as InitResponse
    from kapudf_cli.protocol.udf_pb2 import Option as Option
    from kapudf_cli.protocol.udf_pb2 import OptionInfo as OptionInfo
    from kapudf_cli.protocol.udf_pb2 import OptionValue as OptionValue
    from kapudf_cli.protocol.udf_pb2 import Point as Point
    from kapudf_cli.protocol.udf_pb2 import RestoreRequest as RestoreRequest
    from kapudf_cli.protocol.udf_pb2 import RestoreResponse as RestoreResponse
    from kapudf_cli.protocol.udf_pb2 import SnapshotResponse as SnapshotResponse
    from kapudf_cli.protocol.udf_pb2 import ValueType as ValueType

__version__ = "0.1.0"

#: The module of each public name. A test compares it with the imports above.
_HOMES: Final = {
    "msgspec": ("Meta",),
    "kapudf_cli.handler.batch_handler": ("BatchHandler",),
    "kapudf_cli.handler.batches": ("Batch",),
    "kapudf_cli.agent.errors": ("ConnectionClosedError",),
    "kapudf_cli.errors": ("KapudfError",),
    "kapudf_cli.handler.errors": ("FieldValueError", "OptionsError"),
    "kapudf_cli.protocol.errors": ("InvalidWriteError",),
    "kapudf_cli.handler.handler": ("Handler",),
    "kapudf_cli.handler.option_declarations": ("Flag", "Name"),
    "kapudf_cli.handler.options": ("Options",),
    "kapudf_cli.handler.output": ("Writer", "write_batch"),
    "kapudf_cli.handler.patch": ("FieldPatch", "PointPatch"),
    "kapudf_cli.handler.points": (
        "FieldValue",
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
    ),
    "kapudf_cli.handler.state": ("PerGroup", "State"),
    "kapudf_cli.protocol.codec": ("decode_point",),
    "kapudf_cli.protocol.raw_points": ("RawPoint",),
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
        "InfoResponse",
        "InitRequest",
        "InitResponse",
        "Option",
        "OptionInfo",
        "OptionValue",
        "Point",
        "RestoreRequest",
        "RestoreResponse",
        "SnapshotResponse",
        "ValueType",
    ),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF]  # noqa: PLE0604 - text they are


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all public names, imported or not."""
    return [*_HOME_OF, "__version__"]
