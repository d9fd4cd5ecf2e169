"""Calls a handler that is written for InfluxData's agent, as a handler of kapudf."""

from __future__ import annotations

import inspect
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, ClassVar

from kapudf_cli.errors import describe
from kapudf_cli.handler.errors import InvalidReturnError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.output import with_article
from kapudf_cli.influx_scripts.agent import as_response
from kapudf_cli.influx_scripts.leniency import warn_once
from kapudf_cli.protocol.udf_pb2 import (
    InfoResponse,
    InitResponse,
    Response,
    RestoreResponse,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.influx_scripts.agent import ScriptAgent
    from kapudf_cli.protocol.udf_pb2 import (
        BeginBatch,
        EdgeType,
        EndBatch,
        InitRequest,
        Point,
        RestoreRequest,
    )


class ScriptHandler(Handler):
    """The handler of one connection; its methods call those of the script's handler.

    The script's handler is looked up for each call, because a script may replace it.
    """

    #: Not checked: scripts may write whatever kapacitord accepts.
    provides: ClassVar[EdgeType] = None  # type: ignore[assignment]
    may_drop_all = True

    def __init__(self, agent: Outbox) -> None:
        """Have the script make its handler, and connect the script's agent to `agent`."""
        super().__init__(agent)
        self.script_agent = self.open()
        self.script_agent.connect(agent)
        self.script_agent.await_handler()

    def open(self) -> ScriptAgent:
        """Return an agent of the script, with a handler, for this connection."""
        raise NotImplementedError

    def info(self) -> InfoResponse:
        """Return the edges and options; see `Handler.info`."""
        answer = self.script_agent.handler.info()
        info = _answered(answer, "info").info
        self.script_agent.provides = info.provides
        return info

    def init(self, request: InitRequest, /) -> InitResponse:
        """Give the script the options; see `Handler.init`."""
        return _answered(self.script_agent.handler.init(request), "init").init

    def snapshot(self) -> SnapshotResponse:
        """Return the script's state; see `Handler.snapshot`.

        What is no snapshot counts as an empty one.
        """
        method = getattr(self.script_agent.handler, "snapshot", None)
        if method is None:
            warn_once("the handler has no snapshot(): its snapshot is empty")
            return SnapshotResponse()
        answer = method()
        if isinstance(answer, str):
            warn_once("snapshot() returns a str: its UTF-8 bytes are used; return a Response")
            answer = answer.encode()
        if isinstance(answer, bytes):
            return SnapshotResponse(snapshot=answer)
        if answer is None:
            warn_once("snapshot() returns None: the snapshot is empty")
            return SnapshotResponse()
        response, kind = _parsed(answer, "snapshot")
        if kind == "snapshot":
            return response.snapshot
        said = f"an answer to {kind}" if kind else "an empty Response"
        warn_once(f"snapshot() returns {said}: the snapshot is empty")
        return SnapshotResponse()

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        """Give the script an earlier state; see `Handler.restore`."""
        method = self.script_agent.handler.restore
        if _takes_argument(method):
            answer = method(request)
        else:
            warn_once("restore() takes no argument: it is called without the snapshot")
            answer = method()
        return _answered(answer, "restore").restore

    def restore_again(self, request: RestoreRequest, /) -> RestoreResponse:
        """Give the script its state after the death of a worker, or after a reload.

        If the script cannot take it, its task goes on without it. Kapacitor itself fails a task
        whose Restore is refused, when it starts.
        """
        try:
            response = self.restore(request)
        except Exception as error:  # noqa: BLE001 - a script may raise anything
            response = RestoreResponse(error=describe(error))
        if not response.success:
            warn_once(
                f"restore() does not take the script's own snapshot ({response.error}): the task "
                "goes on without its state"
            )
        return RestoreResponse(success=True)

    def begin_batch(self, begin: BeginBatch, /) -> None:
        """Give the script the begin of a batch."""
        _ignore(self.script_agent.handler.begin_batch(begin), "begin_batch")

    def point(self, point: Point, /) -> None:
        """Give the script a point."""
        if (returned := self.script_agent.handler.point(point)) is not None:
            _ignore(returned, "point")

    def end_batch(self, end: EndBatch, /) -> None:
        """Give the script the end of a batch."""
        _ignore(self.script_agent.handler.end_batch(end), "end_batch")


def _ignore(returned: object, method: str) -> None:
    """Log what a method returned instead of writing it."""
    if isinstance(returned, (Response, GeneratorType, CoroutineType)):
        warn_once(
            f"{method}() returns {with_article(returned)}, which is ignored: send it "
            "with write_response"
        )


def _answered(answer: Any, method: str) -> Response:
    """Return the Response of a method, which must be an answer to the request.

    Raises:
        InvalidReturnError: it is not.
    """
    response, kind = _parsed(answer, method)
    if kind != method:
        said = f"an answer to {kind}" if kind else "a Response in which nothing is set"
        raise _invalid(method, said)
    return response


def _parsed(answer: Any, method: str) -> tuple[Response, str | None]:
    """Return the Response that a method returned, and what it answers; None if nothing is set."""
    response = as_response(answer)
    if response is None:
        raise _invalid(method, "None" if answer is None else with_article(answer))
    return response, response.WhichOneof("message")


def _invalid(method: str, said: str) -> InvalidReturnError:
    advice = f"return a Response with `response.{method}` set"
    return InvalidReturnError(method, f"returned {said}; {advice}")


def _takes_argument(method: Any) -> bool:
    try:
        inspect.signature(method).bind(None)
    except TypeError:
        return False
    except ValueError:  # It has no signature, as a function written in C.
        pass
    return True
