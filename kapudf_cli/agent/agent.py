"""The agent: serves one connection between Kapacitor and one handler at a time.

It reads, calls the handler, writes, and returns a summary of how the connection went. It
knows no path, process or signal. A new handler may replace the first one meanwhile, and
another agent may take the connection over.
"""

from __future__ import annotations

import dataclasses
import enum
import shlex
import time
from typing import TYPE_CHECKING

import msgspec

from kapudf_cli.agent import forks
from kapudf_cli.agent.checkpoints import NoCheckpoints
from kapudf_cli.agent.dispatcher import RefusedError
from kapudf_cli.agent.error_policy import DEFAULT_ON_ERROR
from kapudf_cli.agent.errors import HandlerError, WorkerLostError
from kapudf_cli.agent.handler_caller import is_caused_by
from kapudf_cli.agent.handover import DRAIN_LIMIT_S, HandedOver, Handover
from kapudf_cli.agent.parts import PartSettings, assemble
from kapudf_cli.agent.read_coalescing import DEFAULT_LINGER_MS
from kapudf_cli.agent.turns import NoTurn, turn_of
from kapudf_cli.errors import KapudfError, describe
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.protocol.errors import ProtocolError
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES
from kapudf_cli.protocol.order import Incoming
from kapudf_cli.protocol.raw_points import KNOWN_FRAMES
from kapudf_cli.transport import ReadPaused
from kapudf_cli.transport.stream import ConnectionStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.agent.checkpoints import Checkpoints, ResumePlan
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.agent.handler_caller import HandlerFactory
    from kapudf_cli.agent.handover import HandoverState
    from kapudf_cli.agent.partitions import Partitions
    from kapudf_cli.transport import Stream

#: How long Kapacitor may take to read what was sent last. If the connection closed
#: earlier, Kapacitor's next write would fail with a broken pipe, and Kapacitor would drop
#: what it has not read: answers, or the error that the task should fail with.
_SETTLE_TIMEOUT_S = 1.0


class Reason(enum.StrEnum):
    """Why a connection ended, or left the agent that served it."""

    CLOSED = "closed"
    HANDLER_ERROR = "handler_error"
    PROTOCOL_ERROR = "protocol_error"
    STOPPED = "stopped"
    #: Not an end: another worker serves it from here on.
    HANDED_OVER = "handed_over"


@dataclasses.dataclass(frozen=True)
class ConnectionSummary:
    """How a connection went.

    Attributes:
        reason: why it ended.
        error: the cause, where `reason` names a fault.
        task_id: the task, empty before Init.
        node_id: the node of the task, empty before Init.
        stats: what the connection did.
        bytes_in: bytes received, handled or not.
        unprocessed_bytes: bytes that arrived and were not handled, the frame at fault included.
        batch_unfinished: whether the handler left a batch open.
        refusal: why the handler refused Init or Restore, None if it did not.
        duration_s: from the first agent's start to the end, in seconds.
        stop_error: what `teardown` raised, where the connection ended for another reason.
    """

    reason: Reason = Reason.CLOSED
    error: KapudfError | None = None
    task_id: str = ""
    node_id: str = ""
    stats: ConnectionStats = dataclasses.field(default_factory=ConnectionStats)
    bytes_in: int = 0
    unprocessed_bytes: int = 0
    batch_unfinished: bool = False
    refusal: str | None = None
    duration_s: float = 0.0
    stop_error: HandlerError | None = None


class Agent:
    """Serves one connection: call `run` in a thread of its own, the rest from any thread."""

    def __init__(
        self,
        stream: Stream,
        handler: HandlerFactory,
        *,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        linger_ms: float = DEFAULT_LINGER_MS,
        on_error: OnError = DEFAULT_ON_ERROR,
        concurrency: int | None = None,
        timeout_s: float | None = None,
        partitions: Partitions | None = None,
        checkpoints: Checkpoints | None = None,
        resume_plan: ResumePlan | None = None,
        age_s: float = 0.0,
        on_init: Callable[[str, str], None] | None = None,
        on_resumed: Callable[[str | None], None] | None = None,
        on_crash: Callable[[Exception], None] | None = None,
        on_turn: Callable[[bool], None] | None = None,
    ) -> None:
        """Serve `stream`, which the agent owns from now on, with a handler of its own.

        Args:
            stream: where the bytes come from and go to.
            handler: creates the handler; its class, as a rule.
            max_frame_bytes: the longest frame received or sent, in bytes.
            linger_ms: the longest pause before a read under load, in milliseconds.
            on_error: what happens when the handler raises an exception over data.
            concurrency: the most calls of an async method at once; by default, as its class says.
            timeout_s: how long each may take, in seconds; by default, as its class says.
            partitions: where handlers run that have a share of the groups each, instead of one
                handler here.
            checkpoints: stores the handler's state; by default nothing is stored.
            resume_plan: how to take the connection over, if another agent had it.
            age_s: how long ago the connection began, in seconds.
            on_init: called with the names of the task and the node at the first Init.
            on_resumed: called with None when the handler's state is rebuilt after a
                takeover; the agent then waits for `go`. Or called with the reason why it
                cannot be rebuilt.
            on_crash: called with an exception that neither the handler nor the peer caused, such
                as a MemoryError. It may end the process, if another agent can take the
                connection over; if it returns, the connection ends.
            on_turn: called with True when the handler has to wait for its turn, and then with
                False; see `Handler.serialize`.
        """
        self._stream = stream
        self._checkpoints = checkpoints or NoCheckpoints()
        self._resume_plan = resume_plan
        self._age_s = age_s
        self._on_resumed = on_resumed
        self._on_crash = on_crash
        self._turn = NoTurn() if partitions is not None else turn_of(handler, on_turn)
        stream.on_full = self._turn.suspend
        settings = PartSettings(
            turn=self._turn,
            max_frame_bytes=max_frame_bytes,
            linger_ms=linger_ms,
            on_error=on_error,
            concurrency=concurrency,
            timeout_s=timeout_s,
            on_init=on_init,
            on_failure=self._interrupt,
            partitions=partitions,
        )
        parts = assemble(stream, handler, self._checkpoints, settings)
        self._outbox, self._caller, self._dispatcher = parts.outbox, parts.caller, parts.dispatcher
        self._requests, self._recovery = parts.requests, parts.recovery
        self._read_loop = parts.read_loop
        if resume_plan is not None:
            # Heartbeats too: one must not split a message that the last agent left unsent.
            with self._outbox.changing() as output:
                output.defer_others()
        self._stopping = False
        self._handover = Handover(takes_over=resume_plan is not None)

    # --- from any thread ---

    def stop(self) -> None:
        """Process what has arrived, then end; returns at once."""
        self._stopping = True
        self._interrupt()

    def _interrupt(self) -> None:
        self._stream.interrupt()
        self._read_loop.wake()

    def abort(self) -> None:
        """Break the connection: no call blocks any longer for a peer that does not read."""
        self._stream.abort()
        self._read_loop.abort()
        self._caller.abort()
        self._handover.stop_waiting()

    def pause(self, on_paused: Callable[[], None]) -> None:
        """Pause at the next frame boundary and call `on_paused`.

        The agent then waits for `go`, `release`, `cancel_handover` or `abort`. If the
        connection ends first, `on_paused` is never called.
        """
        self._handover.request(on_paused)
        self._stream.pause()
        self._read_loop.wake()

    def go(self) -> None:
        """Go on after a pause or a takeover."""
        self._handover.go()

    def release(self) -> None:
        """Release the connection after a pause: another agent serves it from here on."""
        self._handover.release()

    @property
    def handover_state(self) -> HandoverState:
        """Which part the agent has in a handover."""
        return self._handover.state

    def cancel_handover(self) -> None:
        """Cancel a handover: go on after a pause, give up a takeover. No decision will follow."""
        self._handover.cancel()

    def heartbeat(self) -> None:
        """Send Kapacitor a heartbeat, if that is possible without waiting."""
        self._outbox.heartbeat()

    @property
    def current_frame(self) -> int | None:
        """The offset of the current frame, in bytes; None while the agent waits for input."""
        return None if self._stream.waits else self._read_loop.current_frame

    @property
    def waits_for_turn(self) -> bool:
        """Whether the handler waits for those of other connections; see `Handler.serialize`."""
        return self._turn.waits

    @property
    def oldest_call(self) -> str | None:
        """Where the oldest call in flight of an async handler waits, None if there is none."""
        return self._caller.oldest_call()

    @property
    def bytes_sent(self) -> int:
        """How many bytes were sent."""
        return self._outbox.bytes_sent

    # --- the connection's thread ---

    def run(self) -> ConnectionSummary:
        """Serve until the connection ends; close it and return the summary.

        Raises nothing: every failure is in the summary, unless `on_crash` raises.
        """
        with forks.disabled_in_children(self._disable_in_child), self._caller.running():
            return self._run()

    def _run(self) -> ConnectionSummary:
        started_s = time.monotonic() - self._age_s
        self._outbox.adopt()
        try:
            self._serve()
        except HandedOver:
            return self._leave()
        except ConnectionClosedError:
            end = self._end(Reason.CLOSED, peer_is_gone=True)
        except ProtocolError as error:
            end = self._end(Reason.PROTOCOL_ERROR, error)
        except (HandlerError, WorkerLostError) as error:
            end = self._end(Reason.HANDLER_ERROR, error)
        except RefusedError as error:
            end = self._end(Reason.CLOSED, refusal=str(error))
        except Exception as error:  # noqa: BLE001 - out of memory, or a bug of kapudf
            if self._on_crash is not None:
                self._on_crash(error)
            lost = WorkerLostError(f"kapudf cannot go on with this connection: {describe(error)}")
            lost.__cause__ = error
            end = self._end(Reason.HANDLER_ERROR, lost)
        else:
            end = self._end(Reason.CLOSED)
        return dataclasses.replace(end, duration_s=time.monotonic() - started_s)

    def _disable_in_child(self) -> None:
        """In a process that the handler forked: end it as soon as the handler returns.

        The agent goes on with one of these calls. The handler's writes raise instead.
        """
        self._outbox.disable()
        forks.end_child_on_call(self._stream, "read", "write", "settle", "close")
        forks.end_child_on_call(self._caller, "call", "blame")
        forks.end_child_on_call(self._dispatcher, "dispatch", "drop", "failed")
        forks.end_child_on_call(self._requests, "decode")
        self._caller.end_in_child()
        # Known frames are decoded without calling `decode`.
        KNOWN_FRAMES.clear()

    def _serve(self) -> None:
        try:
            if self._resume_plan is None:
                self._caller.create()
            else:
                self._take_over(self._resume_plan)
            self._read_to_the_end()
            self._raise_failure()
            if not self._stopping:
                self._requests.finish()
        except ProtocolError as error:
            if error.offset is None:
                error.offset = self._requests.offset
            raise
        if self._dispatcher.order.state is Incoming.BEFORE_INIT:
            with self._outbox.changing() as output:
                output.drop_data()
        else:
            self._outbox.send_data()
            self._caller.drain(DRAIN_LIMIT_S)
        self._caller.stop()
        self._outbox.flush()
        self._raise_failure()

    def _read_to_the_end(self) -> None:
        plan = self._resume_plan
        careful_until, poison = (0, ()) if plan is None else (plan.careful_until, plan.poison)
        while True:
            try:
                return self._read_loop.run(careful_until, poison)
            except ReadPaused:
                self._wait_for_handover()

    def _raise_failure(self) -> None:
        """Raise the error of an invalid write in a thread that the handler started."""
        if self._outbox.failure is not None:
            raise self._caller.blame("write", self._outbox.failure)

    # --- from one agent to another ---

    def _take_over(self, plan: ResumePlan) -> None:
        """Rebuild the state of another agent's handler, and wait for the connection.

        Raises:
            WorkerLostError: `plan.give_up` is set.
            HandedOver: the state cannot be rebuilt, or another agent serves the connection.
        """
        point = self._checkpoints.resume_point()
        self._dispatcher.task = point.task
        if not plan.waits:
            # The previous agent died: send what it had committed. (A paused agent has sent it.)
            try:
                self._checkpoints.send_rest()
            except OSError as error:
                raise ConnectionClosedError(str(error)) from error
        self._read_loop.bytes_in = point.stats.offset
        if plan.give_up is not None:
            self._recovery.resume_without_handler(point)
            raise WorkerLostError(plan.give_up)
        try:
            self._recovery.resume(point, plan.poison)
        except (KapudfError, RefusedError) as error:
            self._report(str(error))
            raise HandedOver from error
        self._read_loop.choose_form()
        self._report(None)
        self._handover.wait()
        self._outbox.send_deferred()

    def _report(self, problem: str | None) -> None:
        if self._on_resumed is not None:
            self._on_resumed(problem)

    def _wait_for_handover(self) -> None:
        """Pause until it is decided which agent serves the connection from here on.

        Raises:
            HandedOver: another agent serves it.
        """
        if self._dispatcher.order.state is not Incoming.BEFORE_INIT:
            self._caller.drain(DRAIN_LIMIT_S)
        self._recovery.compact()
        self._outbox.block_others()
        self._stream.meter.publish()
        self._handover.pause()
        self._outbox.unblock_others()

    def _leave(self) -> ConnectionSummary:
        """Leave the connection to the agent that serves it now."""
        self._outbox.close("the connection was handed over")
        self._caller.stop_quietly()
        self._outbox.settle()
        self._stream.close()
        return ConnectionSummary(Reason.HANDED_OVER)

    # --- the end ---

    def _end(
        self,
        reason: Reason,
        error: KapudfError | None = None,
        *,
        refusal: str | None = None,
        peer_is_gone: bool = False,
    ) -> ConnectionSummary:
        """Tell Kapacitor, stop the handler, close the connection, and return the summary."""
        unread = self._tell_of_stop() if self._fails_by_stop(reason) else 0
        self._tell(None if error is None else str(error))
        lost = peer_is_gone or error is not None or self._outbox.is_broken
        self._outbox.close(None if lost else "the connection has ended")
        stop_error: HandlerError | None = None
        try:
            self._caller.stop()
        except ConnectionClosedError:
            pass
        except HandlerError as raised:
            if not is_caused_by(raised, ConnectionClosedError):
                stop_error = raised
        self._outbox.settle()
        if self._dispatcher.order.state is not Incoming.BEFORE_INIT or error is not None:
            # A connection that only asked for Info is closed at once: kapacitord waits for
            # that when it starts.
            unread += self._stream.settle(_SETTLE_TIMEOUT_S)
        if self._stopping and reason is Reason.CLOSED:
            reason = Reason.STOPPED
        self._stream.meter.note_end(reason.value if refusal is None else "refused")
        unread += self._stream.close()
        stats = self._recovery.stats()
        task_id, node_id = self._dispatcher.task
        return ConnectionSummary(
            reason,
            error,
            task_id,
            node_id,
            msgspec.structs.replace(stats, bytes_out=self._outbox.bytes_sent),
            bytes_in=self._read_loop.bytes_in,
            unprocessed_bytes=self._read_loop.bytes_in - stats.offset + unread,
            batch_unfinished=self._outbox.in_batch,
            refusal=refusal,
            stop_error=stop_error,
        )

    def _fails_by_stop(self, reason: Reason) -> bool:
        """Return whether a stop ends the connection of a task that would go on."""
        task_id, _ = self._dispatcher.task
        is_stopped = self._stopping and reason is Reason.CLOSED and bool(task_id)
        return is_stopped and not self._stream.has_input_ended

    def _tell_of_stop(self) -> int:
        """Tell Kapacitor that the task was stopped; return how many bytes of input came meanwhile.

        Kapacitor may discard answers that it has read and not passed on when an error comes, so
        it gets some time for that before.
        """
        self._tell(None)
        self._outbox.settle()
        unread = self._stream.settle(_SETTLE_TIMEOUT_S)
        if not self._stream.has_input_ended:
            task_id, _ = self._dispatcher.task
            reload = f"kapacitor reload {shlex.quote(task_id)}"
            self._tell(f"kapudf stopped serving this task; start it, then run: {reload}")
        return unread

    def _tell(self, error: str | None) -> None:
        """Send pending output and then the error, if Kapacitor is still connected."""
        try:
            if error is not None:
                self._outbox.fail(error)
            self._outbox.flush()
        except ConnectionClosedError:
            pass  # The summary has the reason.
