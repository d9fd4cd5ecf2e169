"""Checks of a handler's class, before any task uses it."""

from __future__ import annotations

import inspect
from typing import Final, get_args

from google.protobuf.message import Message

from kapudf_cli.handler import deprecated, options
from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.concurrency import MAX_CONCURRENCY
from kapudf_cli.handler.declared import annotation_of, options_class, state_declaration
from kapudf_cli.handler.errors import DefinitionError
from kapudf_cli.handler.handler import Handler, OnStateMismatch
from kapudf_cli.handler.methods import check_methods, forgotten_init
from kapudf_cli.handler.output import is_async_function
from kapudf_cli.handler.patch import PointPatch
from kapudf_cli.handler.state import PerGroup
from kapudf_cli.protocol.udf_pb2 import STREAM, EdgeType
from kapudf_cli.tickscript.identifiers import nearest

#: The methods whose result is written. They may have a `yield`.
_WRITTEN_METHODS: Final = frozenset({"begin_batch", "point", "raw_point", "end_batch", "teardown"})
#: The methods that may be async.
_ASYNC_METHODS: Final = frozenset({"point", "setup", "drain", "teardown"})
_NEVER_AWAITED: Final = "it is called and never awaited, so write a plain def"


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
            if name not in _ASYNC_METHODS:
                _refuse_async(handler, name, _NEVER_AWAITED)
            if inspect.isgeneratorfunction(method) and name not in _WRITTEN_METHODS:
                message = f"{handler.__name__}.{name} has a yield and would never run"
                raise DefinitionError(message)
    if not inspect.ismethod(handler.setup_worker):
        message = f"{handler.__name__}.setup_worker must be a class method; add @classmethod"
        raise DefinitionError(message)
    _refuse_async(handler, "setup_worker", _NEVER_AWAITED)
    if is_async(handler):
        _check_async(handler)
        _check_limits(handler)
    else:
        _check_not_async(handler)


def _check_not_async(handler: type[Handler]) -> None:
    for name in ("setup", "drain", "teardown"):
        _refuse_async(handler, name, "only with an async point or batch may it be")
    for name in ("concurrency", "timeout_s"):
        if getattr(handler, name) != getattr(Handler, name):
            message = f"{handler.__name__}.{name} has no effect; write `async def point`"
            raise DefinitionError(message)
    if not handler.ordered:
        _check_unordered(handler)
        if problem := _partition_problem(handler):
            name = handler.__name__
            message = f"{name}.ordered has no effect: {name} is not async, and {problem}"
            raise DefinitionError(message)


def _check_unordered(handler: type[Handler]) -> None:
    if not handler.wants == handler.provides == STREAM:
        problem = "is False, and wants and provides are not STREAM"
        raise DefinitionError(f"{handler.__name__}.ordered {problem}")


def is_async(handler: object) -> bool:
    """Return whether a handler's class has an async `point` or `batch`.

    It then needs an event loop, and may have several points or batches at once.
    """
    return any(is_async_function(getattr(handler, name, None)) for name in ("point", "batch"))


def _check_async(handler: type[Handler]) -> None:
    name = handler.__name__
    if handler.raw_point is not Handler.raw_point:
        raise DefinitionError(f"{name} has raw_point, so its async point would never be called")
    if handler.passes_through is not False:
        raise DefinitionError(
            f"{name}.passes_through is set, so its async point would never be called"
        )
    if issubclass(handler, BatchHandler):
        _refuse_async(handler, "point", "write `async def batch`")
        if not is_async_function(handler.batch):
            raise DefinitionError(f"{name}.batch is not async")
    if handler.serialize:
        problem = "is set, but point or batch is async, so that calls would still overlap"
        raise DefinitionError(f"{name}.serialize {problem}")
    if not handler.ordered:
        _check_unordered(handler)
    for method in ("setup", "drain"):
        if inspect.isasyncgenfunction(getattr(handler, method)):
            raise DefinitionError(f"{name}.{method} has a yield and would never run")


def _check_limits(handler: type[Handler]) -> None:
    """Raise DefinitionError for limits of calls in flight that cannot be kept."""
    name = handler.__name__
    if type(handler.concurrency) is not int or not 1 <= handler.concurrency <= MAX_CONCURRENCY:
        raise DefinitionError(f"{name}.concurrency is not a number from 1 to {MAX_CONCURRENCY}")
    timeout_s = handler.timeout_s
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if timeout_s is not None and not (is_number and timeout_s > 0):
        raise DefinitionError(f"{name}.timeout_s is not a positive number of seconds, or None")


def check_partitions(handler: type[Handler]) -> None:
    """Check that instances of a class can share the groups of a task.

    Raises:
        DefinitionError: they cannot; the error says why, and what to do.
    """
    if problem := _partition_problem(handler):
        raise DefinitionError(f"{handler.__name__} {problem}, or remove partitions")


def _partition_problem(handler: type[Handler]) -> str | None:
    """Return why instances of a class cannot share the groups of a task, None if they can."""
    problem = None
    if is_async(handler):
        problem = "is async, and has several calls at once without partitions; raise concurrency"
    elif handler.passes_through is not False:
        problem = "passes points through, which takes less time; use point or raw_point"
    elif not handler.keeps_state() or keeps_groups(handler):
        pass
    elif handler.partition_by is not None:
        joins = handler.join_snapshots.__func__  # type: ignore[attr-defined]  # of a class method
        if joins is Handler.join_snapshots.__func__:  # type: ignore[attr-defined]
            problem = "does not define join_snapshots() and split_snapshot(); define them"
    elif handler.snapshot is not Handler.snapshot:
        problem = (
            "has a snapshot of its own, which cannot be split by group; declare the state as a "
            "PerGroup"
        )
    else:
        problem = "has one state for all groups; declare the state as a PerGroup"
    return problem


def keeps_groups(handler: type[Handler]) -> bool:
    """Return whether the snapshot of a handler is that of a `PerGroup`."""
    declaration = state_declaration(handler)
    is_per_group = declaration is not None and isinstance(declaration.template, PerGroup)
    return is_per_group and handler.snapshot is Handler.snapshot


def check_passes_through(handler: type[Handler], passes_through: object) -> None:
    """Raise DefinitionError for a value that `passes_through` of a handler cannot have."""
    name = f"{handler.__name__}.passes_through"
    if not isinstance(passes_through, bool | PointPatch):
        kind = type(passes_through).__name__
        raise DefinitionError(f"{name} is of type {kind}; set True, False or a PointPatch")
    if passes_through is not False and handler.wants != handler.provides:
        raise DefinitionError(f"{name} is set, but wants and provides differ; write points instead")


def _refuse_async(handler: type[Handler], name: str, advice: str) -> None:
    """Raise DefinitionError if a method is async that must not be."""
    if is_async_function(getattr(handler, name)):
        raise DefinitionError(f"{handler.__name__}.{name} is async; {advice}")


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
    if not isinstance(error, AttributeError):
        return ""
    if isinstance(error.obj, Message) and error.name is not None:
        meant = nearest(error.name, error.obj.DESCRIPTOR.fields_by_name)
        kind = error.obj.DESCRIPTOR.name
        return "" if meant is None else f"; did you mean {kind}.{meant}?"
    if not isinstance(error.obj, Handler):
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
