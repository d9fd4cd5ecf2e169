"""A connection with a journal, served by one agent after another."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from kapudf_cli.agent.agent import Agent
from kapudf_cli.agent.checkpoints import ResumePlan
from kapudf_cli.agent.error_policy import DEFAULT_ON_ERROR
from kapudf_cli.agent.partitions import LocalPartitions
from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES
from tests.journal.connections import DyingHeader, JournaledConnection, WorkerDiedError
from tests.peers import encoded, in_thread
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from kapudf_cli.agent.agent import ConnectionSummary
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.agent.handler_caller import HandlerFactory
    from kapudf_cli.journal.stream import JournaledStream
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

    PartitionFactory = Callable[..., LocalPartitions]


def local_partitions(
    handler: Any,
    count: int,
    on_error: OnError = DEFAULT_ON_ERROR,
    factory: PartitionFactory = LocalPartitions,
) -> LocalPartitions | None:
    """Return partitions of a handler in the agent's thread, None for one instance."""
    if count == 1:
        return None
    return factory(handler, count, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES, on_error=on_error)


class ServedAgent:
    """One agent of a connection; the connection may outlive it."""

    def __init__(
        self,
        stream: JournaledStream,
        handler: HandlerFactory,
        *,
        on_error: OnError,
        resume_plan: ResumePlan | None,
        partitions: LocalPartitions | None = None,
    ) -> None:
        self.stream = stream
        #: The header that makes it die, None if it does not die.
        self.dying_header: DyingHeader | None = None
        #: Why the agent could not take over, None if it could.
        self.resumed: Future[str | None] = Future()
        self.agent = Agent(
            stream,
            handler,
            on_error=on_error,
            partitions=partitions,
            checkpoints=stream,
            resume_plan=resume_plan,
            on_init=stream.record_task,
            on_resumed=self.resumed.set_result,
        )

    def start(self) -> None:
        self.ended = in_thread(self.agent.run)

    @property
    def has_died(self) -> bool:
        """Whether it has died at its commit."""
        return self.dying_header is not None and self.dying_header.has_died

    def summary(self) -> ConnectionSummary:
        return self.ended.result(PATIENCE_S)


class JournaledTask:
    """The journaled connection of a task, with Kapacitor's side at the other end.

    Attributes:
        partitions: how many partitions the handler of the next agent has.
    """

    def __init__(
        self,
        handler: HandlerFactory,
        *,
        on_error: OnError = DEFAULT_ON_ERROR,
        snapshot_interval_s: float = 3600.0,
        partitions: int = 1,
        partition_factory: PartitionFactory = LocalPartitions,
    ) -> None:
        self.partitions = partitions
        self._partition_factory = partition_factory
        self.kept = JournaledConnection()
        self._handler = handler
        self._on_error = on_error
        self._snapshot_interval_s = snapshot_interval_s
        self.header = self.kept.header
        self.side = KapacitorSide(self.kept.peer, timeout_s=PATIENCE_S)
        self.sent_bytes = 0
        self._agents: list[ServedAgent] = []

    # --- agents ---

    def serve(self, *, survives: int | None = None, after: bool = True) -> ServedAgent:
        """Start the first agent. With `survives`, it dies at the commit after so many others."""
        return self._serve(None, survives, after=after)

    def take_over(
        self,
        *,
        survives: int | None = None,
        after: bool = True,
        until: int = 0,
        poison: Collection[int] = (),
        waits: bool = False,
        give_up: str | None = None,
        handler: HandlerFactory | None = None,
    ) -> ServedAgent:
        """Take the connection over with another agent; with `waits`, it waits for `go`."""
        resumption = ResumePlan(until, tuple(poison), waits, give_up)
        served = self._serve(resumption, survives, after=after, handler=handler)
        if not waits:
            served.agent.go()
        return served

    def _serve(
        self,
        resumption: ResumePlan | None,
        survives: int | None,
        *,
        after: bool,
        handler: HandlerFactory | None = None,
    ) -> ServedAgent:
        held = self.kept.open()
        dying = None
        if survives is not None:
            dying = held.header = DyingHeader(held, over="commit", after=after, survives=survives)
        stream = self.kept.serve(snapshot_interval_s=self._snapshot_interval_s, held=held)
        handler = handler or self._handler
        served = ServedAgent(
            stream,
            handler,
            on_error=self._on_error,
            resume_plan=resumption,
            partitions=local_partitions(
                handler, self.partitions, self._on_error, self._partition_factory
            ),
        )
        served.dying_header = dying
        self._agents.append(served)
        served.start()
        return served

    # --- Kapacitor ---

    def send(self, *messages: RequestMessage) -> None:
        data = encoded(messages)
        self.side.send_bytes(data)
        self.sent_bytes += len(data)

    def ask(self, message: RequestMessage) -> ResponseMessage | None:
        self.send(message)
        return self.side.receive()

    def await_handled(self, served: ServedAgent) -> bool:
        """Wait until all input is handled; return False if the agent died instead."""
        wait_until(
            lambda: self.header.record.stats.offset >= self.sent_bytes or served.ended.done()
        )
        # The agent's last store may have committed this; it ends a moment later.
        if served.has_died:
            served.ended.exception(PATIENCE_S)
        return not served.ended.done()

    def end(self) -> None:
        """End the input."""
        self.side.half_close()

    def hang_up(self) -> None:
        """Shut the connection down, so that Kapacitor reads the end of the output."""
        self.kept.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for served in self._agents:
            served.agent.abort()
            served.agent.cancel_handover()
        for served in self._agents:
            with contextlib.suppress(WorkerDiedError):
                served.summary()
            served.stream.close()
        self.kept.close()
