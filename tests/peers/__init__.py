"""Both ends of a connection for tests: Kapacitor's side, and agents or UDFs at the other end."""

from __future__ import annotations

import contextlib
import socket
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from kapudf_cli.agent.agent import Agent
from kapudf_cli.agent.error_policy import DEFAULT_ON_ERROR
from kapudf_cli.client.driver import Event, KapacitorSide
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES
from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse
from kapudf_cli.transport import SocketStream
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kapudf_cli.agent.agent import ConnectionSummary
    from kapudf_cli.agent.checkpoints import Checkpoints
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.agent.handler_caller import HandlerFactory
    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from kapudf_cli.transport.meter import Meter

T = TypeVar("T")

#: The first request of a task, and its answer.
INIT = InitRequest(taskID="task", nodeID="node")
INITIALIZED = InitResponse(success=True)


def encoded(messages: Iterable[RequestMessage]) -> bytes:
    """Return requests as frames."""
    return b"".join(map(REQUESTS.encode, messages))


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Start `call` in a daemon thread; its result or exception is in the future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - the future raises it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def is_full(outbox: Outbox) -> bool:
    """Return whether the outbox has reached the limit of its backlog."""
    with outbox.changing() as output:
        return output.is_full


def responses_to(
    side: KapacitorSide, requests: Iterable[RequestMessage]
) -> Iterator[ResponseMessage]:
    """Send requests, half-close, and yield the responses until the UDF closes."""
    side.queue(requests)
    while (step := side.step(PATIENCE_S)) is not Event.CLOSED:
        if step is Event.SENT:
            with contextlib.suppress(OSError):
                side.half_close()
        else:
            yield step


@dataclass(frozen=True)
class ServedAgent:
    """A running agent, Kapacitor's side of its connection, its socket there, and its meter."""

    agent: Agent
    side: KapacitorSide
    connection: socket.socket
    ended: Future[ConnectionSummary]
    meter: Meter

    def summary(self) -> ConnectionSummary:
        """Wait until the agent has ended, and raise any exception of `run`."""
        return self.ended.result(PATIENCE_S)


@contextlib.contextmanager
def agent_with(
    handler: HandlerFactory,
    *,
    max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
    on_error: OnError = DEFAULT_ON_ERROR,
    timeout_s: float | None = None,
    checkpoints: Checkpoints | None = None,
    on_init: Callable[[str, str], None] | None = None,
) -> Iterator[ServedAgent]:
    """Serve `handler` with an agent in a thread; close the connection on exit."""
    ours, theirs = socket.socketpair()
    stream = SocketStream(theirs)
    agent = Agent(
        stream,
        handler,
        max_frame_bytes=max_frame_bytes,
        on_error=on_error,
        timeout_s=timeout_s,
        checkpoints=checkpoints,
        on_init=on_init,
    )
    with KapacitorSide(ours, timeout_s=PATIENCE_S) as side:
        ended = in_thread(agent.run)
        try:
            yield ServedAgent(agent, side, ours, ended, stream.meter)
        finally:
            if ended.done() and ended.exception():
                # `run` has raised: close its socket, or its warning would fail the next test.
                theirs.close()
