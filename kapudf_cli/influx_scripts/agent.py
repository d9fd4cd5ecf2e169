"""The agent that a script writes to: the part that is the same however the script is run."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from kapudf_cli.handler.output import with_article
from kapudf_cli.influx_scripts.leniency import warn_once
from kapudf_cli.influx_scripts.main_module import ScriptThread
from kapudf_cli.protocol.errors import InvalidWriteError
from kapudf_cli.protocol.udf_pb2 import BATCH, STREAM, Response
from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.protocol.udf_pb2 import EdgeType

_log = loggers.get("kapudf")

#: `flush=True` flushes at most this often, because each flush is a system call. Without it, output
#: leaves when no more input waits.
_FLUSH_INTERVAL_S: Final = 0.01
#: How long a script may take to set the handler after it has started the agent.
_HANDLER_S: Final = 5.0
_PAUSE_S: Final = 0.01


NOT_STARTED: Final = "the agent has not started; call its start() first"


class ScriptAgent:
    """One connection, as a script sees it.

    Attributes:
        handler: the script's handler; a script may replace it at any time.
        provides: the edge that the handler has declared, None before that.
    """

    def __init__(self, handler: Any = None) -> None:
        """Begin without a connection."""
        self.handler = handler
        self.provides: EdgeType | None = None
        self._outbox: Outbox | None = None
        self._connected = threading.Event()
        self._in_batch = False
        self._flushed_s = 0.0

    def connect(self, outbox: Outbox) -> None:
        """Write to a connection from now on."""
        self._outbox = outbox
        self._connected.set()

    def await_handler(self) -> None:
        """Wait until the script has set the handler, which it may do after `start`.

        Raises:
            RuntimeError: it has not done so in time.
        """
        deadline_s = time.monotonic() + _HANDLER_S
        while self.handler is None:
            if time.monotonic() > deadline_s:
                problem = "the agent has no handler; assign `agent.handler` before `agent.start()`"
                raise RuntimeError(problem)
            time.sleep(_PAUSE_S)

    def write_response(self, response: Any, flush: bool = False) -> None:  # noqa: FBT001, FBT002 - InfluxData's signature
        """Send a message, which is encoded during the call. From any thread.

        Args:
            response: a Response with a point, or the begin or end of a batch.
            flush: whether it should leave at once.

        Raises:
            InvalidWriteError: it would crash kapacitord.
            ConnectionClosedError: the connection has ended.
            RuntimeError: it has not begun, and this thread would start it.
            TypeError: `response` is no Response.
        """
        if type(response) is not Response:
            given = response
            if (response := as_response(given)) is None:
                what = "None" if given is None else with_article(given)
                raise TypeError(f"cannot write {what}; write_response takes a Response")
        outbox = self._outbox or self._await_outbox()
        kind = response.WhichOneof("message")
        if kind == "point":
            if self.provides == BATCH and not self._in_batch:
                warn_once(
                    "points outside of a batch, although info() declares that BATCH is provided: "
                    "Kapacitor takes them as points of a stream"
                )
            outbox.write_point(response.point)
        elif kind == "begin":
            self._begin(response, outbox)
        elif kind == "end":
            outbox.write_end_batch(response.end)
            self._in_batch = False
        else:
            self._write_other(response, kind, outbox)
        if flush and (now_s := time.monotonic()) - self._flushed_s >= _FLUSH_INTERVAL_S:
            self._flushed_s = now_s
            outbox.flush()

    def _await_outbox(self) -> Outbox:
        """Wait for the connection in a thread of the script that writes before it is there."""
        thread = threading.current_thread()
        if not isinstance(thread, ScriptThread) and thread is not threading.main_thread():
            self._connected.wait()
        if self._outbox is None:
            problem = "the agent has no connection; call start() before write_response()"
            raise RuntimeError(problem)
        return self._outbox

    def _begin(self, response: Response, outbox: Outbox) -> None:
        if self.provides == STREAM:
            warn_once(
                "a batch, although info() declares that STREAM is provided: Kapacitor passes it "
                "on as a batch, and later nodes may not take it"
            )
        if self._in_batch:
            warn_once(
                "the begin of a batch before the last one has ended: Kapacitor drops the points "
                "of that one; write its end first"
            )
        outbox.write_begin_batch(response.begin)
        self._in_batch = True

    def _write_other(self, response: Response, kind: str | None, outbox: Outbox) -> None:
        """Send what is no data."""
        if kind == "error":
            _log.error("script fails its task: %s", response.error.error)
            outbox.fail(response.error.error)
        elif kind == "keepalive":
            outbox.heartbeat()
        elif kind is None:
            problem = "a Response in which no message is set, which crashes kapacitord"
            raise InvalidWriteError(problem)
        else:
            warn_once(
                f"write_response with an answer ({kind}) that Kapacitor has not asked for: it is "
                f"dropped; return it from {kind}()"
            )


def as_response(message: Any) -> Response | None:
    """Return a Response, converted from the class of another udf_pb2; None if it is no Response."""
    if type(message) is Response:
        return message
    if getattr(getattr(message, "DESCRIPTOR", None), "name", None) != "Response":
        return None
    return Response.FromString(message.SerializeToString())
