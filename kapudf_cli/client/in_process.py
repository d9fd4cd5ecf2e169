"""A handler served inside this process, by the very agent that serves it for real."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from kapudf_cli.agent.agent import Agent
from kapudf_cli.client.driver import KapacitorSide, ask_info
from kapudf_cli.transport import SocketStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.agent.handler_caller import HandlerFactory
    from kapudf_cli.agent.summary import ConnectionSummary
    from kapudf_cli.protocol.udf_pb2 import InfoResponse

#: A handler that takes longer to say what it is would fail Kapacitor's start as well.
_DESCRIBE_TIMEOUT_S = 10.0


@contextlib.contextmanager
def served(
    handler: HandlerFactory,
    *,
    timeout_s: float,
    on_end: Callable[[ConnectionSummary], None] = lambda _: None,
) -> Iterator[KapacitorSide]:
    """Serve `handler` on a socket pair, and give Kapacitor's end of it.

    Args:
        handler: makes the handler; its class, as a rule.
        timeout_s: how long each wait may take, the one for its end included.
        on_end: told, in another thread, how it went.
    """
    ours, theirs = socket.socketpair()
    agent = Agent(SocketStream(theirs), handler)

    def run() -> None:
        on_end(agent.run())

    thread = threading.Thread(target=run, name="in-process", daemon=True)
    thread.start()
    try:
        with KapacitorSide(ours, timeout_s=timeout_s) as side:
            yield side
    finally:
        thread.join(timeout_s)


def describe(handler: HandlerFactory) -> InfoResponse:
    """Return what a handler says of itself.

    Raises:
        ProbeError: it failed to.
        OSError: it did not in time.
    """
    with served(handler, timeout_s=_DESCRIBE_TIMEOUT_S) as side:
        return ask_info(side)
