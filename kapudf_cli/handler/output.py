"""What a handler writes: with `self.agent`, or by returning it from a method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from kapudf_cli.handler.batches import Batch, batch_messages
from kapudf_cli.handler.errors import InvalidReturnError
from kapudf_cli.handler.patch import PointPatch
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from kapudf_cli.protocol.raw_points import RawPoint

#: What a method of a handler may return to have it written.
Returned: TypeAlias = "Point | Batch | Iterable[Point | Batch] | None"
#: The same for a method that may be async, or an async generator.
MaybeAsync: TypeAlias = "Returned | Coroutine[Any, Any, Returned] | AsyncIterator[Point | Batch]"
#: What `Handler.raw_point` may return: also the point as it came, or a patch for it.
RawReturned: TypeAlias = (
    "RawPoint | PointPatch | Point | Batch | Iterable[RawPoint | PointPatch | Point | Batch] | None"
)


class Writer(Protocol):
    """Writes points and batches to Kapacitor: `self.agent` of a handler.

    Each method may be called at any time and from any thread. Messages are sent in the order
    of the calls. Before Kapacitor can take data, they are held back: Kapacitor reads no data
    while it waits for the answer to Init or Restore.

    Each method raises InvalidWriteError for a message that would harm Kapacitor, and
    ConnectionClosedError once the connection has ended. The message is encoded during the
    call, so it may be changed and written again afterwards.
    """

    def write_point(self, point: Point, /) -> None:
        """Send a point, as part of the open batch if there is one."""

    def write_batch(self, batch: Batch, /) -> None:
        """Send a whole batch: its begin, its points and its end."""

    def write_begin_batch(self, begin: BeginBatch, /) -> None:
        """Begin a batch; `size` is a hint at the number of points, 0 if unknown."""

    def write_end_batch(self, end: EndBatch, /) -> None:
        """End the open batch."""

    def forward(self, raw: RawPoint, patch: PointPatch | None = None, /) -> None:
        """Send the current point as it came, with the changes of `patch`; see `Handler.raw_point`.

        `raw` itself is not changed.
        """


def write_batch(agent: Writer, batch: Batch) -> None:
    """Write the messages of a batch."""
    for message in batch_messages(batch):
        match message:
            case BeginBatch():
                agent.write_begin_batch(message)
            case EndBatch():
                agent.write_end_batch(message)
            case _:
                # Also for objects that are not points: write_point raises for them.
                agent.write_point(message)


def write_returned(
    agent: Writer, method: str, returned: object, *, raw: RawPoint | None = None
) -> None:
    """Write what a method of a handler returned. A generator runs meanwhile.

    Args:
        agent: where it is written.
        method: the name of the method.
        returned: see `Returned` and `RawReturned`.
        raw: the undecoded point that the method was given, if it was `raw_point`.

    Raises:
        InvalidReturnError: the method may not return this.
        InvalidWriteError, ConnectionClosedError: as the methods of `agent` do.
        Exception: whatever a generator raises.
    """
    take_raw = None if raw is None else functools.partial(_write_for_raw, agent, raw)
    take_returned(method, returned, agent.write_point, agent.write_batch, take_raw)


def write_yielded(agent: Writer, method: str, item: object) -> None:
    """Write what an async generator yielded; raises as `write_returned` does."""
    if type(item) is Point:
        agent.write_point(item)
    elif isinstance(item, Batch):
        agent.write_batch(item)
    else:
        raise InvalidReturnError(method, _yielded(item))


def take_returned(
    method: str,
    returned: object,
    take_point: Callable[[Point], None],
    take_batch: Callable[[Batch], None],
    take_raw: Callable[[object], bool] | None = None,
) -> None:
    """Take what a method of a handler returned: a point, a batch, or an iterable of these.

    Args:
        method: the name of the method.
        returned: what it returned.
        take_point: called with each point.
        take_batch: called with each batch.
        take_raw: called with each other object, if the method may return others. It returns
            False for those that the method may not return.

    Raises:
        InvalidReturnError: the method may not return this.
        Exception: whatever a generator or the callables raise.
    """

    def take(item: object) -> bool:
        if type(item) is Point:
            take_point(item)
        elif isinstance(item, Batch):
            take_batch(item)
        else:
            return take_raw is not None and take_raw(item)
        return True

    if isinstance(returned, GeneratorType):
        _take_yielded(method, returned, take)
        return
    if not isinstance(returned, list | tuple):
        if returned is None or take(returned):
            return
        if not isinstance(returned, Iterable) or isinstance(returned, str | bytes | Mapping):
            problem = f"returned {with_article(returned)}"
            raise InvalidReturnError(method, f"{problem}; {_advice(take_raw)}")
    for each in returned:
        if not take(each):
            problem = f"returned {with_article(returned)} with {with_article(each)} in it"
            raise InvalidReturnError(method, f"{problem}; {_advice(take_raw)}")


def _take_yielded(
    method: str, generator: GeneratorType[object, None, object], take: Callable[[object], bool]
) -> None:
    try:
        while True:
            each = next(generator)
            if not take(each):
                raise InvalidReturnError(method, _yielded(each))
    except StopIteration as stop:
        if stop.value is not None:
            problem = f"has a yield and returned {with_article(stop.value)}; yield it instead"
            raise InvalidReturnError(method, problem) from None
    except BaseException:
        # Its `finally` runs now, and not during a later call of the handler.
        generator.close()
        raise


def _write_for_raw(agent: Writer, raw: RawPoint, item: object) -> bool:
    if item is raw:
        agent.forward(raw)
    elif isinstance(item, PointPatch):
        agent.forward(raw, item)
    else:
        return False
    return True


def is_async_function(function: object) -> bool:
    """Return whether a function or method is async, or an async generator."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _yielded(item: object) -> str:
    return f"yielded {with_article(item)}; yield only points and batches"


def _advice(take_raw: object) -> str:
    others = "" if take_raw is None else "raw, a PointPatch, "
    return f"return {others}a Point, a Batch, an iterable of these, or None"


def with_article(value: object) -> str:
    """Return the name of an object's class with its article, for an error: `a str`."""
    kind = type(value)
    # InfluxData's own classes have the same names.
    is_foreign = kind.__name__ in {"Point", "Batch"} and kind not in {Point, Batch}
    name = f"{kind.__module__}.{kind.__name__}" if is_foreign else kind.__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
