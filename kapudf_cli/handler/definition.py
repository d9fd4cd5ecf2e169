"""Checks of a handler's class, before any task uses it."""

from __future__ import annotations

import inspect

from kapudf_cli.handler import options, state
from kapudf_cli.handler.batches import BatchHandler
from kapudf_cli.handler.declared import fresh_state, options_class
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import EdgeType


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
    for name, method in inspect.getmembers(handler, inspect.isfunction):
        if hasattr(Handler, name):
            _refuse_async(handler, name)
            if inspect.isgeneratorfunction(method):
                problem = "has a yield and would never run; write with self.agent instead"
                message = f"{handler.__name__}.{name} {problem}"
                raise TypeError(message)
    if not inspect.ismethod(handler.setup_worker):
        message = f"{handler.__name__}.setup_worker must be a class method; add @classmethod"
        raise TypeError(message)
    _refuse_async(handler, "setup_worker")
    if issubclass(handler, BatchHandler):
        _refuse_async(handler, "batch")


def _refuse_async(handler: type[Handler], name: str) -> None:
    """Raise TypeError for an async method: it is never awaited, so its body would never run."""
    method = getattr(handler, name)
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        problem = "is async; it is called and never awaited, so write a plain def"
        message = f"{handler.__name__}.{name} {problem}"
        raise TypeError(message)
