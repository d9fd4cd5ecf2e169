"""kapudf runs user-defined functions (UDFs) for Kapacitor in Python.

This module has the names that most handlers need. `kapudf_cli.handler` has those that few need:
times, errors and types for annotations. `kapudf_cli.protocol` has the messages and enums of the
protocol, and `kapudf_cli.testing` the pytest plugin. All other modules are internal.

Each name is imported on first use; see `kapudf_cli.lazy_names`.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Final

from kapudf_cli.lazy_names import LazyNames

if TYPE_CHECKING:
    from msgspec import Meta as Meta

    from kapudf_cli.handler.batch_handler import BatchHandler as BatchHandler
    from kapudf_cli.handler.batches import Batch as Batch
    from kapudf_cli.handler.errors import OptionsError as OptionsError
    from kapudf_cli.handler.handler import Handler as Handler
    from kapudf_cli.handler.option_declarations import Flag as Flag
    from kapudf_cli.handler.option_declarations import Name as Name
    from kapudf_cli.handler.options import Options as Options
    from kapudf_cli.handler.patch import FieldPatch as FieldPatch
    from kapudf_cli.handler.patch import PointPatch as PointPatch
    from kapudf_cli.handler.points import copy_envelope as copy_envelope
    from kapudf_cli.handler.points import get_field as get_field
    from kapudf_cli.handler.points import get_fields as get_fields
    from kapudf_cli.handler.points import get_number as get_number
    from kapudf_cli.handler.points import get_tag as get_tag
    from kapudf_cli.handler.points import set_field as set_field
    from kapudf_cli.handler.state import PerGroup as PerGroup
    from kapudf_cli.handler.state import Snapshot as Snapshot
    from kapudf_cli.handler.state import State as State
    from kapudf_cli.protocol.codec import decode_point as decode_point
    from kapudf_cli.protocol.raw_points import RawPoint as RawPoint
    from kapudf_cli.protocol.udf_pb2 import BATCH as BATCH
    from kapudf_cli.protocol.udf_pb2 import STREAM as STREAM
    from kapudf_cli.protocol.udf_pb2 import Point as Point

__version__ = "0.1.0"

if TYPE_CHECKING:  # deprecated here, see _MOVED and _REPLACED
    from kapudf_cli.handler import ConnectionClosedError as ConnectionClosedError
    from kapudf_cli.handler import FieldValue as FieldValue
    from kapudf_cli.handler import FieldValueError as FieldValueError
    from kapudf_cli.handler import InvalidWriteError as InvalidWriteError
    from kapudf_cli.handler import KapudfError as KapudfError
    from kapudf_cli.handler import Writer as Writer
    from kapudf_cli.handler import drop_field as drop_field
    from kapudf_cli.handler import get_datetime as get_datetime
    from kapudf_cli.handler import set_datetime as set_datetime
    from kapudf_cli.handler import time_ns as time_ns
    from kapudf_cli.handler.output import write_batch as write_batch
    from kapudf_cli.protocol import BOOL as BOOL
    from kapudf_cli.protocol import DOUBLE as DOUBLE
    from kapudf_cli.protocol import DURATION as DURATION
    from kapudf_cli.protocol import INT as INT
    from kapudf_cli.protocol import STRING as STRING
    from kapudf_cli.protocol import BeginBatch as BeginBatch
    from kapudf_cli.protocol import EdgeType as EdgeType
    from kapudf_cli.protocol import EndBatch as EndBatch
    from kapudf_cli.protocol import InfoResponse as InfoResponse
    from kapudf_cli.protocol import InitRequest as InitRequest
    from kapudf_cli.protocol import InitResponse as InitResponse
    from kapudf_cli.protocol import Option as Option
    from kapudf_cli.protocol import OptionInfo as OptionInfo
    from kapudf_cli.protocol import OptionValue as OptionValue
    from kapudf_cli.protocol import RestoreRequest as RestoreRequest
    from kapudf_cli.protocol import RestoreResponse as RestoreResponse
    from kapudf_cli.protocol import SnapshotResponse as SnapshotResponse
    from kapudf_cli.protocol import ValueType as ValueType

    like = copy_envelope

#: The module of each public name. A test compares it with the imports above.
_NAMES: Final = LazyNames(
    __name__,
    {
        "msgspec": ("Meta",),
        "kapudf_cli.handler.batch_handler": ("BatchHandler",),
        "kapudf_cli.handler.batches": ("Batch",),
        "kapudf_cli.handler.errors": ("OptionsError",),
        "kapudf_cli.handler.handler": ("Handler",),
        "kapudf_cli.handler.option_declarations": ("Flag", "Name"),
        "kapudf_cli.handler.options": ("Options",),
        "kapudf_cli.handler.patch": ("FieldPatch", "PointPatch"),
        "kapudf_cli.handler.points": (
            "copy_envelope",
            "get_field",
            "get_fields",
            "get_number",
            "get_tag",
            "set_field",
        ),
        "kapudf_cli.handler.state": ("PerGroup", "Snapshot", "State"),
        "kapudf_cli.protocol.codec": ("decode_point",),
        "kapudf_cli.protocol.raw_points": ("RawPoint",),
        "kapudf_cli.protocol.udf_pb2": ("BATCH", "STREAM", "Point"),
    },
)

#: The module of each name that has moved. They can be imported from here for one more release.
_MOVED: Final = {
    "kapudf_cli.handler": (
        "ConnectionClosedError",
        "FieldValue",
        "FieldValueError",
        "InvalidWriteError",
        "KapudfError",
        "Writer",
        "drop_field",
        "get_datetime",
        "set_datetime",
        "time_ns",
    ),
    "kapudf_cli.protocol": (
        "BOOL",
        "BeginBatch",
        "DOUBLE",
        "DURATION",
        "EdgeType",
        "EndBatch",
        "INT",
        "InfoResponse",
        "InitRequest",
        "InitResponse",
        "Option",
        "OptionInfo",
        "OptionValue",
        "RestoreRequest",
        "RestoreResponse",
        "STRING",
        "SnapshotResponse",
        "ValueType",
    ),
}
_MOVED_TO: Final = {name: home for home, names in _MOVED.items() for name in names}
#: The names that were replaced: their module, their name there, and what to write instead.
_REPLACED: Final = {
    "like": ("kapudf_cli.handler.points", "copy_envelope", "use copy_envelope(point, fields)"),
    "write_batch": (
        "kapudf_cli.handler.output",
        "write_batch",
        "return the batch, or use self.agent.write_batch(batch)",
    ),
}

__all__ = [*_NAMES]  # noqa: PLE0604 - text they are


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562), or an old name with a warning."""
    if (home := _MOVED_TO.get(name)) is not None:
        new_name, advice = name, f"import it from {home}"
    elif name in _REPLACED:
        home, new_name, advice = _REPLACED[name]
    else:
        return _NAMES.load(name)
    warnings.warn(f"kapudf_cli.{name} is deprecated; {advice}", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(home), new_name)


def __dir__() -> list[str]:
    """Return all public names, imported or not."""
    return [*_NAMES, "__version__"]
