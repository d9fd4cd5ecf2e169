"""Calls to the handler: what it raises becomes a HandlerError or a ConnectionClosedError."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar

from kapudf_cli.agent.errors import ConnectionClosedError, HandlerError
from kapudf_cli.protocol.udf_pb2 import (
    InfoResponse,
    InitResponse,
    RestoreResponse,
    SnapshotResponse,
)
from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.handler.handler import Handler, Writer

_log = loggers.get(__name__)

HandlerFactory: TypeAlias = "Callable[[Writer], Handler]"

A = TypeVar("A", InfoResponse, InitResponse, SnapshotResponse, RestoreResponse)
P = ParamSpec("P")
R = TypeVar("R")


class HandlerCaller:
    """Creates the handler of one connection, calls it, and can replace it by a new one."""

    def __init__(self, factory: HandlerFactory, outbox: Outbox) -> None:
        """Create handlers with `factory`; they write to `outbox`."""
        self._factory = factory
        self._outbox = outbox
        self._handler: Handler | None = None
        self._name: str = getattr(factory, "__name__", "handler")

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

    def create(self) -> None:
        """Create a handler. Raises as `call` does."""
        self._handler = self.call("__init__", self._factory, self._outbox)

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
        return HandlerError(self._name, method, error)

    def stop(self) -> None:
        """Call the handler's `stop` and forget the handler; do nothing if there is none."""
        handler, self._handler = self._handler, None
        if handler is not None:
            self.call("stop", handler.stop)

    def stop_quietly(self) -> None:
        """Stop a handler that is replaced; what it raises is only logged."""
        try:
            self.stop()
        except (HandlerError, ConnectionClosedError) as error:
            if not is_caused_by(error, ConnectionClosedError):
                _log.warning("stop failed: %s", error, exc_info=error)


def is_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an exception, or any exception in its cause chain, is a `kind`."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, kind):
            return True
        link = link.__cause__ or link.__context__
    return False
