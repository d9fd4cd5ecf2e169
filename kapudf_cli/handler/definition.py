"""Checks of a handler's class, before any task uses it."""

from __future__ import annotations

import inspect
from typing import Final, get_args

from kapudf_cli.handler import deprecated, options
from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.declared import annotation_of, options_class, state_declaration
from kapudf_cli.handler.errors import DefinitionError
from kapudf_cli.handler.handler import Handler, OnStateMismatch
from kapudf_cli.handler.methods import check_methods, forgotten_init
from kapudf_cli.handler.patch import PointPatch
from kapudf_cli.protocol.udf_pb2 import EdgeType

#: The methods whose result is written. They may have a `yield`.
_WRITTEN_METHODS: Final = frozenset({"begin_batch", "point", "raw_point", "end_batch", "teardown"})


def check(handler: type[Handler]) -> None:
    """Check a class whose tasks would otherwise fail, or lose data.

    Raises:
        DefinitionError: an edge, an option, the state or a method is invalid.
        TypeError: the state cannot be created.
    """
    _refuse_assigned_options(handler)
    for name in ("wants", "provides"):
        if (edge := getattr(handler, name)) not in EdgeType.values():
            message = f"{handler.__name__}.{name}: {edge!r} is neither STREAM nor BATCH"
            raise DefinitionError(message)
    declaration = options_class(handler)
    if declaration is not None:
        options.declare(declaration)
    state_declaration(handler)
    if handler.on_state_mismatch not in get_args(OnStateMismatch):
        name, value = f"{handler.__name__}.on_state_mismatch", handler.on_state_mismatch
        message = f"{name}: {value!r} is neither 'discard' nor 'refuse'"
        raise DefinitionError(message)
    deprecated.warn_of_class(handler)
    _check_methods(handler)


def _check_methods(handler: type[Handler]) -> None:
    check_methods(handler, _base(handler))
    check_passes_through(handler, handler.passes_through)
    _refuse_missing(handler)
    for name, method in inspect.getmembers(handler, inspect.isfunction):
        if hasattr(Handler, name):
            _refuse_async(handler, name)
            if inspect.isgeneratorfunction(method) and name not in _WRITTEN_METHODS:
                message = f"{handler.__name__}.{name} has a yield and would never run"
                raise DefinitionError(message)
    if not inspect.ismethod(handler.setup_worker):
        message = f"{handler.__name__}.setup_worker must be a class method; add @classmethod"
        raise DefinitionError(message)
    _refuse_async(handler, "setup_worker")
    if issubclass(handler, BatchHandler):
        _refuse_async(handler, "batch")


def check_passes_through(handler: type[Handler], passes_through: object) -> None:
    """Raise DefinitionError for a value that `passes_through` of a handler cannot have."""
    name = f"{handler.__name__}.passes_through"
    if not isinstance(passes_through, bool | PointPatch):
        kind = type(passes_through).__name__
        raise DefinitionError(f"{name} is of type {kind}; set True, False or a PointPatch")
    if passes_through is not False and handler.wants != handler.provides:
        raise DefinitionError(f"{name} is set, but wants and provides differ; write points instead")


def _refuse_async(handler: type[Handler], name: str) -> None:
    """Raise DefinitionError for an async method: it is never awaited, so it would never run."""
    method = getattr(handler, name)
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        problem = "is async; it is called and never awaited, so write a plain def"
        message = f"{handler.__name__}.{name} {problem}"
        raise DefinitionError(message)


def check_created(handler: Handler) -> None:
    """Check that `__init__` of the base class was called.

    Raises:
        DefinitionError: it was not, so the handler has no agent or no state.
    """
    # A class attribute does not count: it is only the template of the state.
    has_state = state_declaration(type(handler)) is None or "state" in vars(handler)
    if not (hasattr(handler, "agent") and has_state):
        raise DefinitionError(forgotten_init(type(handler), _base(type(handler))))


def advice_for(error: BaseException) -> str:
    """Return what to add to the message of an exception that a handler raised, or an empty text."""
    if not isinstance(error, AttributeError) or not isinstance(error.obj, Handler):
        return ""
    name = error.name
    if name not in {"options", "state"} or annotation_of(type(error.obj), name) is not None:
        return ""
    return f"; write `{name}: My{name.capitalize()}` in the class to declare the {name}"


def _base(handler: type[Handler]) -> type[Handler]:
    return BatchHandler if issubclass(handler, BatchHandler) else Handler


def _refuse_missing(handler: type[Handler]) -> None:
    """Raise DefinitionError for a method that the class must define and does not."""
    if inspect.isabstract(handler):
        raise DefinitionError(f"{handler.__name__} does not define batch()")
    handles_points = (
        handler.point is not Handler.point or handler.raw_point is not Handler.raw_point
    )
    if not handles_points and handler.passes_through is False:
        advice = "; to get batches, subclass BatchHandler" if hasattr(handler, "batch") else ""
        raise DefinitionError(f"{handler.__name__} does not define point(){advice}")


def _refuse_assigned_options(handler: type[Handler]) -> None:
    """Raise DefinitionError for options declared with `=` instead of a colon."""
    for owner in handler.__mro__:
        if "options" in inspect.get_annotations(owner):
            return
        value = vars(owner).get("options")
        declared = value if isinstance(value, type) else type(value)
        if issubclass(declared, options.Options):
            name = declared.__name__
            problem = "is the class itself" if value is declared else f"is a value of {name}"
            message = f"{owner.__name__}.options {problem}; write `options: {name}`"
            raise DefinitionError(message)
