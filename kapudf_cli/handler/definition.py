"""Checks of a handler's class, before any task uses it."""

from __future__ import annotations

import inspect
from typing import Final

from kapudf_cli.handler import options, state
from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.declared import fresh_state, options_class
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.patch import PointPatch
from kapudf_cli.protocol.udf_pb2 import EdgeType

#: The methods whose result is written. They may have a `yield`.
_WRITTEN_METHODS: Final = frozenset({"begin_batch", "point", "raw_point", "end_batch"})


def check(handler: type[Handler]) -> None:
    """Check a class whose tasks would otherwise fail, or lose data.

    Raises:
        TypeError: an edge, an option, the state or a method is invalid.
        NameError: an annotation uses a name that its module does not have at run time.
    """
    for name in ("wants", "provides"):
        if (edge := getattr(handler, name)) not in EdgeType.values():
            message = f"{handler.__name__}.{name}: {edge!r} is neither STREAM nor BATCH"
            raise TypeError(message)
    declaration = options_class(handler)
    if declaration is not None:
        options.declare(declaration)
    if fresh_state(handler) is None and isinstance(
        getattr(handler, "state", None), state.State | state.PerGroup
    ):
        message = f"{handler.__name__}.state is not annotated, so no snapshot would have it"
        raise TypeError(message)
    _check_methods(handler)


def _check_methods(handler: type[Handler]) -> None:
    check_passes_through(handler, handler.passes_through)
    handles_points = (
        handler.point is not Handler.point or handler.raw_point is not Handler.raw_point
    )
    if not handles_points and handler.passes_through is False:
        message = f"{handler.__name__} does not define point()"
        raise TypeError(message)
    for name, method in inspect.getmembers(handler, inspect.isfunction):
        if hasattr(Handler, name):
            _refuse_async(handler, name)
            if inspect.isgeneratorfunction(method) and name not in _WRITTEN_METHODS:
                message = f"{handler.__name__}.{name} has a yield and would never run"
                raise TypeError(message)
    if not inspect.ismethod(handler.setup_worker):
        message = f"{handler.__name__}.setup_worker must be a class method; add @classmethod"
        raise TypeError(message)
    _refuse_async(handler, "setup_worker")
    if issubclass(handler, BatchHandler):
        _refuse_async(handler, "batch")


def check_passes_through(handler: type[Handler], passes_through: object) -> None:
    """Raise TypeError for a value that `passes_through` of a handler cannot have."""
    name = f"{handler.__name__}.passes_through"
    if not isinstance(passes_through, bool | PointPatch):
        kind = type(passes_through).__name__
        raise TypeError(f"{name} is of type {kind}; set True, False or a PointPatch")
    if passes_through is not False and handler.wants != handler.provides:
        raise TypeError(f"{name} is set, but wants and provides differ; write points instead")


def _refuse_async(handler: type[Handler], name: str) -> None:
    """Raise TypeError for an async method: it is never awaited, so its body would never run."""
    method = getattr(handler, name)
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        problem = "is async; it is called and never awaited, so write a plain def"
        message = f"{handler.__name__}.{name} {problem}"
        raise TypeError(message)
