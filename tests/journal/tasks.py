"""A connection with a journal, and one agent after the other that serves it."""

from __future__ import annotations

import contextlib
import mmap
import socket
from concurrent.futures import Future
from typing import TYPE_CHECKING

from kapudf_cli.agent.agent import Agent
from kapudf_cli.agent.checkpoints import ResumePlan
from kapudf_cli.agent.error_policy import DEFAULT_ON_ERROR
from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.journal.header import HEADER_BYTES, Header
from tests.journal.connections import DyingHeader, JournaledConnection, WorkerDiedError
from tests.peers import encoded, in_thread
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Collection

    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.agent.handler_caller import HandlerFactory
    from kapudf_cli.agent.summary import ConnectionSummary
    from kapudf_cli.journal.stream import JournaledStream
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage


class ServedAgent:
    """One agent at work on a connection that may outlive it."""

    def __init__(
        self,
        stream: JournaledStream,
        handler: HandlerFactory,
        *,
        on_error: OnError,
        resume_plan: ResumePlan | None,
    ) -> None:
        self.stream = stream
        #: Why it could not take over, None if it could.
        self.resumed: Future[str | None] = Future()
        self.agent = Agent(
            stream,
            handler,
            on_error=on_error,
            checkpoints=stream,
            resume_plan=resume_plan,
            on_init=stream.record_task,
            on_resumed=self.resumed.set_result,
        )

    def start(self) -> None:
        self.ended = in_thread(self.agent.run)

    @property
    def has_died(self) -> bool:
        """Whether it has stored the mark over which it was to die."""
        header = self.stream._journal.header
        return isinstance(header, DyingHeader) and header.has_died

    def summary(self) -> ConnectionSummary:
        return self.ended.result(PATIENCE_S)


class JournaledTask:
    """A task's connection as the supervisor has it, with Kapacitor's side at the other end."""

    def __init__(
        self,
        handler: HandlerFactory,
        *,
        on_error: OnError = DEFAULT_ON_ERROR,
        snapshot_interval_s: float = 3600.0,
    ) -> None:
        self._kept = JournaledConnection()
        self._handler = handler
        self._on_error = on_error
        self._snapshot_interval_s = snapshot_interval_s
        self._map = mmap.mmap(self._kept.memory, HEADER_BYTES)
        self.header = Header(self._map)
        self.side = KapacitorSide(self._kept.peer, timeout_s=PATIENCE_S)
        self.sent_bytes = 0
        self._agents: list[ServedAgent] = []

    # --- agents ---

    def serve(self, *, survives: int | None = None, after: bool = True) -> ServedAgent:
        """Have a first agent serve it, which dies over a mark if `survives` says after how many."""
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
        """Have another agent take it over, as a worker does; with `waits` it waits for a word."""
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
        stream = self._kept.serve(snapshot_interval_s=self._snapshot_interval_s)
        if survives is not None:
            held = stream._journal
            held.header = DyingHeader(held, over="commit", after=after, survives=survives)
        served = ServedAgent(
            stream, handler or self._handler, on_error=self._on_error, resume_plan=resumption
        )
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

    def await_dealt_with(self, served: ServedAgent) -> bool:
        """Wait until all that was sent is dealt with; return False if the agent died over it."""
        wait_until(
            lambda: self.header.record.stats.offset >= self.sent_bytes or served.ended.done()
        )
        # It may have noted that with its last breath, and come to its end only now.
        if served.has_died:
            served.ended.exception(PATIENCE_S)
        return not served.ended.done()

    def end(self) -> None:
        """Say that no more will come."""
        self.side.half_close()

    def hang_up(self) -> None:
        """Let Kapacitor see the end, once the last agent has come to it."""
        self._kept.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for served in self._agents:
            served.agent.abort()
            served.agent.cancel_handover()
        for served in self._agents:
            with contextlib.suppress(WorkerDiedError):
                served.summary()
            served.stream.close()
        self._map.close()
        self._kept.close()
