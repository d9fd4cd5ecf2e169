"""The agent: one connection between Kapacitor and one handler at a time.

It reads, dispatches and writes, and returns an account of how the connection
went; it logs nothing of that itself and knows no path, process or signal. The handler
may be made anew in between, and the connection be taken over by another agent.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from kapudf_cli.account import Account, Progress, Reason
from kapudf_cli.callee import Callee, is_caused_by
from kapudf_cli.checkpoints import NothingKept
from kapudf_cli.dispatch import Dispatcher, RefusedError, excerpt
from kapudf_cli.errors import (
    ConnectionClosedError,
    HandlerError,
    KapudfError,
    ProtocolError,
    WorkerLostError,
)
from kapudf_cli.linger import DEFAULT_LINGER_MS, Linger
from kapudf_cli.on_error import DEFAULT_ON_ERROR
from kapudf_cli.outbox import Outbox
from kapudf_cli.repetition import Repetition
from kapudf_cli.streams import ReadPaused
from kapudf_cli.wire.codec import REQUESTS
from kapudf_cli.wire.conversation import Incoming
from kapudf_cli.wire.framing import DEFAULT_MAX_FRAME_BYTES
from kapudf_cli.wire.requests import RequestReader
from kapudf_cli.wire.udf_pb2 import STREAM, Point, RestoreRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.callee import HandlerFactory
    from kapudf_cli.checkpoints import Checkpoints, Resumption
    from kapudf_cli.on_error import OnError
    from kapudf_cli.streams import Stream

_log = logging.getLogger(__name__)

#: How long Kapacitor may take to read what was sent last. Closing before it has would
#: give its next write a broken pipe, for which it drops what it has not read: answers,
#: or the error that the task should fail with.
_SETTLE_TIMEOUT_S = 1.0


class _HandedOver(Exception):  # noqa: N818 - it is no error
    """Another agent serves the connection from here on."""


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
        """
        self._stream = stream
        self._linger = Linger(linger_ms)
        self._checkpoints = checkpoints or NothingKept()
        self._resumption = resumption
        self._age_s = age_s
        self._on_resumed = on_resumed
        self._requests = RequestReader(max_frame_bytes)
        self._outbox = Outbox(
            stream,
            max_frame_bytes=max_frame_bytes,
            on_failure=stream.interrupt,
            provides=getattr(handler, "provides", STREAM),
        )
        self._account = Account()
        self._callee = Callee(handler, self._outbox)
        self._dispatcher = Dispatcher(
            self._callee, self._outbox, self._account, on_error=on_error, on_init=on_init
        )
        self._repetition = Repetition(
            self._callee, self._dispatcher, self._outbox, max_frame_bytes=max_frame_bytes
        )
        self._run_points = 0
        self._stopping = False
        self._cut_wanted = False
        self._on_paused: Callable[[], None] | None = None
        # Set when a pause is over, one way or the other.
        self._decided = threading.Event()
        self._released = False
        self._takes_over = resumption is not None

    # --- from any thread ---

    def stop(self) -> None:
        """Process what has arrived, then end; returns at once."""
        self._stopping = True
        self._stream.interrupt()

    def abort(self) -> None:
        """Break the connection, so that a peer that does not read holds nobody up."""
        self._stream.abort()
        self._decided.set()

    def pause(self, on_paused: Callable[[], None]) -> None:
        """Stand still at the next frame's boundary, call `on_paused`, and wait.

        For `go`, `release`, `decide_alone` or `abort`; with an end of the connection before that
        boundary, `on_paused` is never called.
        """
        self._on_paused = on_paused
        self._stream.pause()

    def go(self) -> None:
        """Go on after a pause, or after the connection was taken over."""
        self._takes_over = False
        self._decided.set()

    def release(self) -> None:
        """Let go of the connection after a pause: another agent has it."""
        self._released = True
        self._decided.set()

    def decide_alone(self) -> None:
        """Go on after a pause, but do not take over: whoever would decide is gone."""
        self._released = self._released or self._takes_over
        self._decided.set()

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
        return self._outbox.bytes

    # --- the connection's thread ---

    def run(self) -> Account:
        """Serve until the connection ends; close it and return the account.

        Raises nothing: every failure is in the account.
        """
        started = time.monotonic() - self._age_s
        self._outbox.adopt()
        try:
            self._serve()
        except _HandedOver:
            self._let_go()
        except ConnectionClosedError:
            self._end(Reason.CLOSED)
        except ProtocolError as error:
            self._end(Reason.PROTOCOL_ERROR, error)
        except (HandlerError, WorkerLostError) as error:
            self._end(Reason.HANDLER_ERROR, error)
        except RefusedError as error:
            self._account.refusal = str(error)
            self._end(Reason.CLOSED)
        else:
            self._end(Reason.CLOSED)
        self._account.duration_s = time.monotonic() - started
        return self._account

    def _serve(self) -> None:
        try:
            if self._resumption is None:
                self._callee.make()
            else:
                self._resume(self._resumption)
            self._serve_input()
            self._raise_failure()
            if not self._stopping:
                self._requests.finish()
        except ProtocolError as error:
            if error.offset is None:
                error.offset = self._requests.offset
            raise
        if self._dispatcher.order.state is Incoming.BEFORE_INIT:
            self._outbox.drop_data()
        else:
            self._outbox.send_data()
        self._callee.stop()
        self._outbox.flush()
        self._raise_failure()

    def _serve_input(self) -> None:
        """Deal with input until it ends."""
        dispatcher = self._dispatcher
        careful_until = 0 if self._resumption is None else self._resumption.until
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
                messages = self._take_carefully(data)
            else:
                messages = self._take(data)
            if not messages:
                continue  # a part of a frame; the rest is on its way
            forgets = dispatcher.stateless and dispatcher.order.state is Incoming.READY
            self._outbox.flush(self._progress(), forgets=forgets)
            now_s = time.monotonic()
            if self._cut_wanted or self._checkpoints.is_due(
                now_s, stateless=dispatcher.stateless, asked=dispatcher.snapshot_asked
            ):
                self._cut()
            # Nothing waits in the outbox while this thread does.
            pause_s = self._linger.pause_s(now_s, messages)
            if pause_s:
                time.sleep(pause_s)

    def _take(self, data: bytes) -> int:
        """Deal with the requests that `data` completes; return how many.

        The hot path: what is done here for a point is done for every point. Nothing
        is looked up, allocated or called that can be had once for the piece.
        """
        dispatcher = self._dispatcher
        order = dispatcher.order
        outbox = self._outbox
        requests = self._requests
        handler = self._callee.handler
        point = handler.point
        raw_point = handler.raw_point or dispatcher.decode_raw
        points = others = 0
        self._run_points = 0
        try:
            for message in requests.feed(data):
                kind = type(message)
                try:
                    if kind is bytes and order.takes_points:
                        points += 1
                        outbox.in_hand = message  # type: ignore[assignment]  # bytes it is
                        raw_point(message)  # type: ignore[arg-type]
                        continue
                    if kind is Point and order.takes_points:
                        points += 1
                        point(message)  # type: ignore[arg-type]  # a Point it is
                        continue
                except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
                    method = "raw_point" if kind is bytes else "point"
                    dispatcher.failed(method, error, requests.offset)
                else:
                    others += 1
                    dispatcher.dispatch(message, requests.offset)
                if dispatcher.wants_restart:
                    self._restart()
                    order = dispatcher.order
                # A handler may choose how it takes points, in setup say.
                handler = self._callee.handler
                point = handler.point
                raw_point = handler.raw_point or dispatcher.decode_raw
                self._choose_form()
        finally:
            outbox.in_hand = None
            self._account.points_in += points + self._run_points
        return points + self._run_points + others

    def _choose_form(self) -> None:
        """Have points read in the form in which the handler takes them."""
        raw_point = self._callee.handler.raw_point
        self._requests.raw = raw_point is not None
        # Points that a handler would forward one by one can go in one piece.
        forwards = raw_point == self._outbox.forward and self._dispatcher.order.takes_points
        self._requests.take_run = self._forward_run if forwards else None

    def _forward_run(self, frames: bytes, count: int) -> bool:
        """Send points on as they came, if they may leave just so; return whether they did."""
        if not self._outbox.forward_run(frames, count):
            return False
        self._run_points += count
        return True

    def _raise_failure(self) -> None:
        """Raise what a thread of the handler's own did wrong, if it did."""
        if self._outbox.failure is not None:
            raise self._callee.blame("write", self._outbox.failure)

    # --- what makes the handler replaceable ---

    def _take_carefully(self, data: bytes) -> int:
        """Deal with requests one at a time, each noted before and after; return how many.

        The last agent died over one of them, and the one may do it again: what is before
        it shall be done with, and it shall be known.
        """
        dispatcher = self._dispatcher
        poison = () if self._resumption is None else self._resumption.poison
        count = 0
        self._requests.take_run = None
        try:
            for message in self._requests.feed(data):
                offset = self._requests.offset
                self._outbox.flush(self._progress())
                self._checkpoints.note_in_hand(offset)
                if offset in poison:
                    _log.error(
                        "dropped what killed the worker",
                        extra={"offset": offset, "frame": excerpt(message)},
                    )
                    self._account.failures += 1
                    dispatcher.drop(message)
                else:
                    dispatcher.dispatch(message, offset)
                    if dispatcher.wants_restart:
                        self._restart()
                self._requests.raw = self._callee.handler.raw_point is not None
                count += 1
        finally:
            self._outbox.in_hand = None
        self._choose_form()
        return count

    def _progress(self) -> Progress:
        """Return how far the connection has got; only between two requests."""
        account, outbox = self._account, self._outbox
        return Progress(
            self._requests.offset,
            account.points_in,
            outbox.points,
            account.batches_in,
            outbox.batches,
            outbox.bytes_written,
            account.failures,
            account.restarts,
            account.takeovers,
        )

    def _cut(self) -> None:
        """Have the input that has been dealt with forgotten, for the state that came of it."""
        dispatcher = self._dispatcher
        # In the midst of a batch, the state is not all there is.
        whole = dispatcher.order.state is Incoming.READY and not self._outbox.in_batch
        if not whole:
            return
        prefix = dispatcher.init_frame
        if not dispatcher.stateless:
            try:
                snapshot = dispatcher.snapshot()
            except HandlerError as error:
                # Nobody has asked for it. What is kept is longer for that, and no worse.
                _log.error("snapshot failed: %s", error, exc_info=error.cause)
                self._checkpoints.postpone()
                dispatcher.snapshot_asked = False
                return
            # What it has written meanwhile does not wait for the next input, and is not
            # left to another agent, which could not know of it.
            self._outbox.flush(self._progress())
            if snapshot:
                prefix += REQUESTS.encode(RestoreRequest(snapshot=snapshot))
        self._cut_wanted = dispatcher.snapshot_asked = False
        self._repetition.forget()
        self._checkpoints.cut(prefix, self._requests.unfinished)

    def _restart(self) -> None:
        """Make the handler anew, with the state that it had before the frame in hand."""
        dispatcher, account = self._dispatcher, self._account
        dispatcher.wants_restart = False
        account.restarts += 1
        offset = self._requests.offset
        state = dispatcher.order.state
        counted = (account.points_in, account.batches_in, self._run_points)
        self._outbox.mute()
        # Where there was no cut yet, there is only Init to go by.
        history = self._checkpoints.history(offset) or dispatcher.init_frame
        try:
            self._repetition.repeat(history, offset)
            # Muted as well: what is written before there are data to answer.
            self._outbox.send_data()
            begun = dispatcher.order.state is Incoming.IN_BATCH
            if begun and state is not Incoming.IN_BATCH:
                # The new handler is given no end of it either: that is what failed.
                self._outbox.abandon_batch()
        finally:
            # Also to tell Kapacitor that the new handler failed.
            self._outbox.unmute()
        account.points_in, account.batches_in, self._run_points = counted
        dispatcher.order.state = state
        if state is Incoming.IN_BATCH and not begun:
            # The history does not go so far back as the batch's begin.
            dispatcher.leave_batch_out()
        # So that the next repetition is short. Where there can be no cut soon, as in the
        # midst of a batch, it at least need not find out again what fails.
        self._cut_wanted = True
        self._repetition.leave_out(offset)

    def _resume(self, resumption: Resumption) -> None:
        """Take the connection over: have the state that another agent's handler had.

        Raises:
            WorkerLostError: it is to be given up.
            _HandedOver: the state cannot be had, or is not wanted any more.
        """
        account, progress = self._account, resumption.progress
        account.task_id, account.node_id = resumption.task
        if not resumption.waits:
            # Whoever noted it died. One that only stands still has sent everything.
            self._send_rest()
        if resumption.give_up is not None:
            self._requests.resume_at(progress.offset)
            self._adopt(progress)
            self._outbox.unmute_after(0, in_batch=resumption.in_batch, progress=progress)
            raise WorkerLostError(resumption.give_up)
        self._outbox.defer()
        self._checkpoints.note_in_hand(None)
        try:
            self._repetition.repeat(resumption.history, progress.offset, resumption.poison)
        except (KapudfError, RefusedError) as error:
            self._report(str(error))
            raise _HandedOver from error
        self._adopt(progress)
        if progress.points_in or progress.batches_in:
            # Muted as well: what is written before there are data to answer.
            self._outbox.send_data()
        self._outbox.unmute_after(resumption.sent, in_batch=resumption.in_batch, progress=progress)
        self._requests.resume_at(progress.offset)
        self._choose_form()
        self._report(None)
        self._await_decision()
        self._outbox.undefer()

    def _send_rest(self) -> None:
        try:
            self._checkpoints.send_rest()
        except OSError as error:
            raise ConnectionClosedError(str(error)) from error

    # --- from one agent to another ---

    def _adopt(self, progress: Progress) -> None:
        """Count on from what the connection had done when another agent left it."""
        account = self._account
        account.points_in, account.batches_in = progress.points_in, progress.batches_in
        account.failures, account.restarts = progress.failures, progress.restarts
        account.takeovers = progress.takeovers + 1
        account.bytes_in = progress.offset

    def _stand_still(self) -> None:
        """Wait until it is decided who serves the connection from here on.

        Raises:
            _HandedOver: another agent does.
        """
        if self._on_paused is None:
            return
        self._cut()
        self._outbox.hold()
        self._on_paused()
        self._await_decision()
        self._outbox.unhold()

    def _await_decision(self) -> None:
        self._decided.wait()
        self._decided.clear()
        if self._released:
            raise _HandedOver

    def _report(self, problem: str | None) -> None:
        if self._on_resumed is not None:
            self._on_resumed(problem)

    def _let_go(self) -> None:
        """Leave the connection as it is to whoever has it now."""
        self._account.reason = Reason.HANDED_OVER
        self._outbox.close()
        self._repetition.stop_quietly()
        self._stream.close()

    # --- the end ---

    def _end(self, reason: Reason, error: KapudfError | None = None) -> None:
        """Tell Kapacitor, let the handler go, close, and complete the account."""
        account = self._account
        account.reason = Reason.STOPPED if self._stopping and reason is Reason.CLOSED else reason
        account.error = error
        self._tell(error)
        self._outbox.close()
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
        account.bytes_out = self._outbox.bytes
        account.batch_unfinished = self._outbox.in_batch

    def _tell(self, error: KapudfError | None) -> None:
        """Send what is pending and then the error, if Kapacitor is still there to be told."""
        try:
            if error is not None:
                self._outbox.fail(str(error))
            self._outbox.flush()
        except ConnectionClosedError:
            pass  # The account tells.
