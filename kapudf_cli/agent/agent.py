"""The agent: one connection between Kapacitor and one handler at a time.

It reads, dispatches and writes, and returns an account of how the connection
went; it logs nothing of that itself and knows no path, process or signal. The handler
may be made anew in between, and the connection be taken over by another agent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from kapudf_cli.agent import forks
from kapudf_cli.agent.account import Account, Reason
from kapudf_cli.agent.callee import Callee, is_caused_by
from kapudf_cli.agent.checkpoints import NothingKept
from kapudf_cli.agent.dispatch import Dispatcher, RefusedError
from kapudf_cli.agent.handover import HandedOver, Handover
from kapudf_cli.agent.intake import Intake
from kapudf_cli.agent.linger import DEFAULT_LINGER_MS, Linger
from kapudf_cli.agent.on_error import DEFAULT_ON_ERROR
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.agent.recovery import Recovery
from kapudf_cli.errors import (
    ConnectionClosedError,
    HandlerError,
    KapudfError,
    ProtocolError,
    WorkerLostError,
    describe,
)
from kapudf_cli.streams import ReadPaused
from kapudf_cli.wire.conversation import Incoming
from kapudf_cli.wire.framing import DEFAULT_MAX_FRAME_BYTES
from kapudf_cli.wire.requests import RequestReader
from kapudf_cli.wire.udf_pb2 import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.agent.callee import HandlerFactory
    from kapudf_cli.agent.checkpoints import Checkpoints, Resumption
    from kapudf_cli.agent.on_error import OnError
    from kapudf_cli.streams import Stream

#: How long Kapacitor may take to read what was sent last. Closing before it has would
#: give its next write a broken pipe, for which it drops what it has not read: answers,
#: or the error that the task should fail with.
_SETTLE_TIMEOUT_S = 1.0


class Agent:
    """Serves one connection: `run` it in a thread; everything else may come from any other."""

    def __init__(
        self,
        stream: Stream,
        handler: HandlerFactory,
        *,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
        linger_ms: float = DEFAULT_LINGER_MS,
        on_error: OnError = DEFAULT_ON_ERROR,
        checkpoints: Checkpoints | None = None,
        resumption: Resumption | None = None,
        age_s: float = 0.0,
        on_init: Callable[[Account], None] | None = None,
        on_resumed: Callable[[str | None], None] | None = None,
        on_crash: Callable[[Exception], None] | None = None,
    ) -> None:
        """Serve `stream`, which becomes the agent's, with a handler of its own.

        Args:
            stream: where the bytes come from and go to.
            handler: makes the handler; its class, as a rule.
            max_frame_bytes: the longest frame taken or sent, in bytes.
            linger_ms: the longest pause before a read under load, in milliseconds.
            on_error: what becomes of an exception that the handler raises over data.
            checkpoints: what keeps the handler's state, nothing by default.
            resumption: where the connection is taken over, if another agent had it.
            age_s: how long ago the connection began, in seconds.
            on_init: called once Init has named the task and node.
            on_resumed: called once a connection that is taken over can go on, which it
                then does at `go`; or with the reason why it cannot.
            on_crash: called with an exception that neither the handler nor the peer is to blame
                for, as when no memory is left. It may end the process, where another agent
                can take the connection over; if it returns, the connection ends.
        """
        self._stream = stream
        self._linger = Linger(linger_ms)
        self._checkpoints = checkpoints or NothingKept()
        self._resumption = resumption
        self._age_s = age_s
        self._on_resumed = on_resumed
        self._on_crash = on_crash
        self._outbox = Outbox(
            stream,
            max_frame_bytes=max_frame_bytes,
            on_failure=stream.interrupt,
            provides=getattr(handler, "provides", STREAM),
        )
        if resumption is not None:
            # Heartbeats too: one in the midst of what another agent left would take its place.
            with self._outbox.changing() as output:
                output.defer_others()
        self._account = Account()
        self._callee = Callee(handler, self._outbox)
        self._dispatcher = Dispatcher(
            self._callee, self._outbox, self._account, on_error=on_error, on_init=on_init
        )
        self._requests = RequestReader(max_frame_bytes)
        self._recovery = Recovery(
            self._callee,
            self._dispatcher,
            self._outbox,
            self._account,
            self._requests,
            checkpoints=self._checkpoints,
        )
        self._intake = Intake(
            self._callee,
            self._dispatcher,
            self._outbox,
            self._account,
            self._requests,
            checkpoints=self._checkpoints,
            recovery=self._recovery,
        )
        self._stopping = False
        self._handover = Handover(takes_over=resumption is not None)

    # --- from any thread ---

    def stop(self) -> None:
        """Process what has arrived, then end; returns at once."""
        self._stopping = True
        self._stream.interrupt()

    def abort(self) -> None:
        """Break the connection, so that a peer that does not read holds nobody up."""
        self._stream.abort()
        self._handover.stop_waiting()

    def pause(self, on_paused: Callable[[], None]) -> None:
        """Stand still at the next frame's boundary, call `on_paused`, and wait.

        For `go`, `release`, `decide_alone` or `abort`; with an end of the connection before that
        boundary, `on_paused` is never called.
        """
        self._handover.propose(on_paused)
        self._stream.pause()

    def go(self) -> None:
        """Go on after a pause, or after the connection was taken over."""
        self._handover.go()

    def release(self) -> None:
        """Let go of the connection after a pause: another agent has it from here on."""
        self._handover.release()

    def decide_alone(self) -> None:
        """Go on after a pause, but do not take over: whoever would decide is gone."""
        self._handover.decide_alone()

    def heartbeat(self) -> None:
        """Tell Kapacitor that the handler is alive and busy, if it can be told without waiting."""
        self._outbox.heartbeat()

    @property
    def in_hand(self) -> int | None:
        """The offset of the frame in hand, in bytes; None while input is waited for."""
        return None if self._stream.waits else self._requests.offset

    @property
    def bytes_sent(self) -> int:
        """How many bytes were sent."""
        return self._outbox.bytes_sent

    # --- the connection's thread ---

    def run(self) -> Account:
        """Serve until the connection ends; close it and return the account.

        Raises nothing: every failure is in the account, unless `on_crash` raises.
        """
        with forks.prepared(self._disable_in_child):
            return self._run()

    def _run(self) -> Account:
        started = time.monotonic() - self._age_s
        self._outbox.adopt()
        try:
            self._serve()
        except HandedOver:
            self._let_go()
        except ConnectionClosedError:
            self._end(Reason.CLOSED, peer_is_gone=True)
        except ProtocolError as error:
            self._end(Reason.PROTOCOL_ERROR, error)
        except (HandlerError, WorkerLostError) as error:
            self._end(Reason.HANDLER_ERROR, error)
        except RefusedError as error:
            self._account.refusal = str(error)
            self._end(Reason.CLOSED)
        except Exception as error:  # noqa: BLE001 - no memory, or a fault of kapudf's own
            if self._on_crash is not None:
                self._on_crash(error)
            lost = WorkerLostError(f"kapudf cannot go on with this connection: {describe(error)}")
            lost.__cause__ = error
            self._end(Reason.HANDLER_ERROR, lost)
        else:
            self._end(Reason.CLOSED)
        self._account.duration_s = time.monotonic() - started
        return self._account

    def _disable_in_child(self) -> None:
        """Leave the connection to the parent, in a process that the handler has forked."""
        forks.disable(self._outbox, self._dispatcher, self._requests)
        self._stream = cast("Stream", forks.Disabled())

    def _serve(self) -> None:
        try:
            if self._resumption is None:
                self._callee.make()
            else:
                self._take_over(self._resumption)
            self._serve_input()
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
        self._callee.stop()
        self._outbox.flush()
        self._raise_failure()

    def _serve_input(self) -> None:
        """Deal with input until it ends."""
        intake, dispatcher, recovery = self._intake, self._dispatcher, self._recovery
        resumption = self._resumption
        careful_until = 0 if resumption is None else resumption.until
        poison = () if resumption is None else resumption.poison
        while True:
            try:
                data = self._stream.read()
            except ReadPaused:
                self._stand_still()
                continue
            except OSError as error:
                # A reset is how a connection ends when a task is disabled while data
                # is on its way to Kapacitor. It is nobody's fault.
                raise ConnectionClosedError(str(error)) from error
            if not data:
                return
            self._account.bytes_in += len(data)
            if self._requests.offset < careful_until:
                messages = intake.take_carefully(data, poison)
            else:
                messages = intake.take(data)
            if not messages:
                continue  # a part of a frame; the rest is on its way
            forget_input = dispatcher.stateless and dispatcher.order.state is Incoming.READY
            self._outbox.flush(recovery.progress(), forget_input=forget_input)
            now_s = time.monotonic()
            recovery.cut_if_due(now_s)
            # Nothing waits in the outbox while this thread does.
            pause_s = self._linger.pause_s(now_s, messages)
            if pause_s:
                time.sleep(pause_s)

    def _raise_failure(self) -> None:
        """Raise what a thread that the handler has started wrote and may not, if it did."""
        if self._outbox.failure is not None:
            raise self._callee.blame("write", self._outbox.failure)

    # --- from one agent to another ---

    def _take_over(self, resumption: Resumption) -> None:
        """Have the state that another agent's handler had, and wait for the connection.

        Raises:
            WorkerLostError: it is to be given up.
            HandedOver: the state cannot be had, or is not wanted any more.
        """
        self._account.task_id, self._account.node_id = resumption.task
        if not resumption.waits:
            # Whoever noted it died. One that only stands still has sent everything.
            self._send_rest()
        if resumption.give_up is not None:
            self._recovery.resume_without_handler(resumption)
            raise WorkerLostError(resumption.give_up)
        try:
            self._recovery.resume(resumption)
        except (KapudfError, RefusedError) as error:
            self._report(str(error))
            raise HandedOver from error
        self._intake.choose_form()
        self._report(None)
        self._handover.wait()
        self._outbox.send_deferred()

    def _send_rest(self) -> None:
        try:
            self._checkpoints.send_rest()
        except OSError as error:
            raise ConnectionClosedError(str(error)) from error

    def _report(self, problem: str | None) -> None:
        if self._on_resumed is not None:
            self._on_resumed(problem)

    def _stand_still(self) -> None:
        """Wait until it is decided who serves the connection from here on.

        Raises:
            HandedOver: another agent does.
        """
        self._recovery.cut()
        self._outbox.block_others()
        self._handover.stand_still()
        self._outbox.unblock_others()

    def _let_go(self) -> None:
        """Leave the connection as it is to whoever has it now."""
        self._account.reason = Reason.HANDED_OVER
        self._outbox.close("the connection was handed over")
        self._callee.stop_quietly()
        self._stream.close()

    # --- the end ---

    def _end(
        self, reason: Reason, error: KapudfError | None = None, *, peer_is_gone: bool = False
    ) -> None:
        """Tell Kapacitor, stop the handler, close, and complete the account."""
        account = self._account
        account.reason = Reason.STOPPED if self._stopping and reason is Reason.CLOSED else reason
        account.error = error
        self._tell(error)
        lost = peer_is_gone or error is not None or self._outbox.is_broken
        self._outbox.close(None if lost else "the connection has ended")
        try:
            self._callee.stop()
        except ConnectionClosedError:
            pass
        except HandlerError as stop_error:
            if not is_caused_by(stop_error, ConnectionClosedError):
                account.stop_error = stop_error
        unread = 0
        if self._dispatcher.order.state is not Incoming.BEFORE_INIT or error is not None:
            # A connection that only asked for Info is closed at once: kapacitord
            # waits for that with its start.
            unread = self._stream.settle(_SETTLE_TIMEOUT_S)
        unread += self._stream.close()
        account.unprocessed_bytes = account.bytes_in - self._requests.offset + unread
        account.points_out = self._outbox.points
        account.batches_out = self._outbox.batches
        account.bytes_out = self._outbox.bytes_sent
        account.batch_unfinished = self._outbox.in_batch

    def _tell(self, error: KapudfError | None) -> None:
        """Send what is pending and then the error, if Kapacitor is still there to be told."""
        try:
            if error is not None:
                self._outbox.fail(str(error))
            self._outbox.flush()
        except ConnectionClosedError:
            pass  # The account tells.
