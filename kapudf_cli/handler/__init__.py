"""The interface for authors of handlers.

`kapudf_cli` exports the names that most handlers need, this package those that few need: times,
errors and types for annotations. Each is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.lazy_names import LazyNames

if TYPE_CHECKING:
    from kapudf_cli.errors import KapudfError as KapudfError
    from kapudf_cli.handler.errors import ConnectionClosedError as ConnectionClosedError
    from kapudf_cli.handler.errors import FieldValueError as FieldValueError
    from kapudf_cli.handler.errors import InvalidReturnError as InvalidReturnError
    from kapudf_cli.handler.errors import StateError as StateError
    from kapudf_cli.handler.output import Writer as Writer
    from kapudf_cli.handler.points import FieldValue as FieldValue
    from kapudf_cli.handler.points import drop_field as drop_field
    from kapudf_cli.handler.points import get_datetime as get_datetime
    from kapudf_cli.handler.points import set_datetime as set_datetime
    from kapudf_cli.handler.points import time_ns as time_ns
    from kapudf_cli.handler.state import inspect_snapshot as inspect_snapshot
    from kapudf_cli.protocol.errors import InvalidWriteError as InvalidWriteError

#: The module of each public name. A test compares it with the imports above.
_NAMES: Final = LazyNames(
    __name__,
    {
        "kapudf_cli.errors": ("KapudfError",),
        "kapudf_cli.handler.errors": (
            "ConnectionClosedError",
            "FieldValueError",
            "InvalidReturnError",
            "StateError",
        ),
        "kapudf_cli.handler.output": ("Writer",),
        "kapudf_cli.handler.points": (
            "FieldValue",
            "drop_field",
            "get_datetime",
            "set_datetime",
            "time_ns",
        ),
        "kapudf_cli.handler.state": ("inspect_snapshot",),
        "kapudf_cli.protocol.errors": ("InvalidWriteError",),
    },
)

__all__ = [*_NAMES]  # noqa: PLE0604 - text they are


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    return _NAMES.load(name)


def __dir__() -> list[str]:
    """Return all public names, imported or not."""
    return [*_NAMES]
