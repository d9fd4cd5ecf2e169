"""Calls to the handler: what it returns is written, what it raises becomes an error.

The error is a HandlerError or a ConnectionClosedError.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar

from kapudf_cli.agent.errors import HandlerError
from kapudf_cli.agent.turns import NoTurn
from kapudf_cli.errors import describe
from kapudf_cli.handler import definition, deprecated
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.output import write_returned
from kapudf_cli.protocol.udf_pb2 import (
    InfoResponse,
    InitResponse,
    Point,
    RestoreResponse,
    SnapshotResponse,
)
from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.agent.turns import Turn
    from kapudf_cli.handler.output import MaybeAsync, RawReturned, Writer
    from kapudf_cli.handler.patch import PointPatch
    from kapudf_cli.protocol.raw_points import RawPoint

_log = loggers.get(__name__)

HandlerFactory: TypeAlias = "Callable[[Writer], Handler]"

A = TypeVar("A", InfoResponse, InitResponse, SnapshotResponse, RestoreResponse)
P = ParamSpec("P")
R = TypeVar("R")


class HandlerCaller:
    """Creates the handler of one connection, calls it, and can replace it by a new one.

    Attributes:
        name: the name of the handler's class.
        reads_raw: whether the handler takes points undecoded.
        passes_through: whether all points are sent on without the handler: False, True, or
            the patch for each of them.
        raw_point: handles an undecoded point, and returns what is written for it.
        turn: the time in which the handler may be called.
    """

    reads_raw: bool
    passes_through: bool | PointPatch
    raw_point: Callable[[RawPoint], RawReturned]

    def __init__(
        self, factory: HandlerFactory, outbox: Outbox, turn: Turn | NoTurn | None = None
    ) -> None:
        """Create handlers with `factory`; they write to `outbox` and are called in their `turn`."""
        self.turn = NoTurn() if turn is None else turn
        self._factory = factory
        self._outbox = outbox
        self._handler: Handler | None = None
        self._drained = threading.Event()
        self.name: str = getattr(factory, "__name__", "handler")

    @property
    def handler(self) -> Handler:
        """The current handler.

        Raises:
            ConnectionClosedError: it was stopped.
        """
        if self._handler is None:
            problem = "the handler was stopped"
            raise ConnectionClosedError(problem)
        return self._handler

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have in this thread what calls need: nothing, for plain methods."""
        yield

    def end_in_child(self) -> None:
        """In a forked process: end it when the handler's code returns. `Agent` does it."""

    def create(self) -> None:
        """Create a handler. Raises as `call` does."""
        handler = self.call("__init__", self._created)
        self._handler = handler
        self.reads_raw = self.passes_through = False
        self.raw_point = handler.raw_point

    def choose_form(self) -> None:
        """Decide in which form the handler gets points. Call this once, after Init.

        Raises:
            HandlerError: `passes_through` has an invalid value.
        """
        handler = self.handler
        self.passes_through = handler.passes_through
        self.raw_point = handler.raw_point
        self.reads_raw = type(handler).raw_point is not Handler.raw_point
        if "raw_point" in vars(handler):
            self._choose_assigned()
        try:
            definition.check_passes_through(type(handler), self.passes_through)
        except TypeError as error:
            raise self.blame("setup", error) from error
        if self.passes_through is not False:
            self.reads_raw = True
            self.raw_point = self._outbox.forward
            if self.passes_through is not True:
                self.raw_point = functools.partial(_forward, self._outbox, self.passes_through)

    def _choose_assigned(self) -> None:
        """Use a `raw_point` that `setup` has assigned, as older handlers do."""
        handler = self.handler
        assigned = vars(handler)["raw_point"]
        deprecated.warn(
            type(handler),
            "raw_point is assigned; override the method raw_point, or set passes_through",
        )
        if assigned is None:
            self.raw_point = functools.partial(Handler.raw_point, handler)
        elif assigned == self._outbox.forward:
            self.passes_through = True
        else:
            self.reads_raw = True

    def _created(self) -> Handler:
        handler = self._factory(self._outbox)
        definition.check_created(handler)
        return handler

    def point_calls(
        self,
    ) -> tuple[Callable[[Point], MaybeAsync], Callable[[RawPoint], RawReturned]]:
        """Return what handles a decoded and an undecoded point, for a thread that has the turn."""
        return self.turn.guard(self.handler.point), self.turn.guard(self.raw_point)

    def ask(
        self,
        expected: type[A],
        method: str,
        call: Callable[P, A],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> A:
        """Call a method that must return an `expected` message. Raises as `call` does."""
        response = self.call(method, call, *args, **kwargs)
        if type(response) is not expected:
            problem = f"returned {type(response).__name__} instead of {expected.__name__}"
            raise self.blame(method, TypeError(problem))
        return response

    def call(self, method: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a method of the handler.

        Raises:
            HandlerError: it raised.
            ConnectionClosedError: it raised because the connection was lost.
        """
        try:
            with self.turn:
                return call(*args, **kwargs)
        except BaseException as error:
            # SystemExit too: a plugin's sys.exit() must not end the connection silently.
            raise self.blame(method, error) from error

    def blame(self, method: str, error: BaseException) -> HandlerError | ConnectionClosedError:
        """Return the error to report for an exception that a method raised.

        It is a ConnectionClosedError if the method failed because the connection was lost.
        """
        if self._outbox.is_broken and is_caused_by(error, ConnectionClosedError):
            return ConnectionClosedError(str(error))
        return HandlerError(self.name, method, error)

    def give_point(self, message: Point | RawPoint) -> None:
        """Call the handler with a point, and write what it returns.

        Raises:
            Exception: whatever the handler raises, and what is raised for what it returned.
        """
        with self.turn:
            if isinstance(message, Point):
                write_returned(self._outbox, "point", self.handler.point(message))
            else:
                self._outbox.current_frame = message
                returned = self.raw_point(message)
                write_returned(self._outbox, "raw_point", returned, raw=message)

    def drain(self, limit_s: float) -> None:
        """Call the handler's `drain`, and wait for its end, `abort` or the time limit."""
        handler = self._handler
        if handler is None or type(handler).drain is Handler.drain:
            return
        context = contextvars.copy_context()

        def run() -> None:
            try:
                context.run(handler.drain)
            except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
                self._log_drain(error)
            finally:
                ended.set()

        ended = self._drained = threading.Event()
        # Not in this thread: it could not be left after the time limit, and what it writes does
        # not follow from the input.
        threading.Thread(target=run, name="drain", daemon=True).start()
        if not ended.wait(limit_s):
            self._log_drain_goes_on(limit_s)

    def abort(self) -> None:
        """Do not wait for `drain` any longer. From any thread."""
        self._drained.set()

    def oldest_call(self) -> str | None:
        """Return where the oldest call in flight waits. From any thread.

        None if there is none, and for a handler that does not await: its thread shows it.
        """
        return None

    def _log_drain_goes_on(self, limit_s: float) -> None:
        _log.warning("drain takes too long, going on without it", extra={"limit_s": limit_s})

    def _log_drain(self, error: BaseException) -> None:
        if not is_caused_by(error, ConnectionClosedError):
            _log.warning("drain failed: %s", describe(error), exc_info=error)

    def stop(self) -> None:
        """Call the handler's `teardown` and forget the handler; do nothing if there is none."""
        handler, self._handler = self._handler, None
        if handler is not None:
            method = deprecated.last_method(type(handler))
            self.call(method, self._write_last, method, getattr(handler, method))

    def _write_last(self, method: str, call: Callable[[], object]) -> None:
        write_returned(self._outbox, method, call())

    def stop_quietly(self) -> None:
        """Stop a handler that is replaced; what it raises is only logged."""
        try:
            self.stop()
        except (HandlerError, ConnectionClosedError) as error:
            if not is_caused_by(error, ConnectionClosedError):
                _log.warning("teardown failed: %s", error, exc_info=error)


def _forward(outbox: Outbox, patch: PointPatch, raw: RawPoint) -> None:
    outbox.forward(raw, patch)


def is_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an exception, or any exception in its cause chain, is a `kind`."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, kind):
            return True
        link = link.__cause__ or link.__context__
    return False
