"""The read loop of a handler that awaits: reads ahead while calls are in flight.

It gives the handler frames while there is room, sends the output of calls that are done in
the order of the input, and runs the event loop when it has nothing else to do. What is
committed is always a prefix of the input; see `calls_in_flight`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from kapudf_cli.agent.dispatcher import Next, excerpt
from kapudf_cli.agent.handover import DRAIN_LIMIT_S
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.protocol.order import Incoming
from kapudf_cli.system import loggers
from kapudf_cli.transport.meter import BOUNDS_NS, HANDLER_NS, IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Collection

    from kapudf_cli.agent.calls_in_flight import Call
    from kapudf_cli.agent.concurrent_dispatcher import ConcurrentDispatcher
    from kapudf_cli.agent.event_loop import EventLoop
    from kapudf_cli.agent.recovery import Recovery
    from kapudf_cli.protocol.input_window import Frame, InputWindow
    from kapudf_cli.transport import Stream
    from kapudf_cli.transport.stream import ConnectionStats

_log = loggers.get(__name__)

#: A checkpoint that was due and could not be stored is tried again after this time.
_RETRY_S: Final = 1.0


class ConcurrentLoop:
    """Reads input and gives it to a handler that awaits, until the input ends.

    Attributes:
        bytes_in: bytes received on this connection, by this agent and those before it.
    """

    def __init__(
        self,
        stream: Stream,
        dispatcher: ConcurrentDispatcher,
        recovery: Recovery[InputWindow],
    ) -> None:
        """Read from `stream`.

        Args:
            stream: the input.
            dispatcher: starts calls of the handler.
            recovery: keeps the input since the last checkpoint and replaces the handler.
        """
        self._stream = stream
        self._dispatcher = dispatcher
        self._caller = dispatcher.caller
        self._calls = dispatcher.caller.calls
        self._outbox = dispatcher.outbox
        self._recovery = recovery
        self._window = recovery.requests
        self._counts = stream.meter.counts
        self.bytes_in = 0
        self._ended = self._aborted = False
        self._compact_not_before_s = 0.0

    # --- from any thread ---

    @property
    def current_frame(self) -> int:
        """The offset of the current frame in the input, in bytes. From any thread."""
        return self._window.offset

    def wake(self) -> None:
        """Look at once whether to pause or to end."""
        self._caller.wake()

    def abort(self) -> None:
        """Do not wait for calls in flight any longer."""
        self._aborted = True
        self._caller.wake()

    # --- the connection's thread ---

    def choose_form(self) -> None:
        """Do nothing: a handler that awaits gets all points decoded."""

    def run(self, careful_until: int = 0, poison: Collection[int] = ()) -> None:
        """Handle input until it ends and no call is in flight.

        Args:
            careful_until: handle one frame at a time before this offset in the input.
            poison: offsets of frames there that killed workers and are dropped.

        Raises:
            ReadPaused: the stream was paused; call again to go on.
            ConnectionClosedError: the connection broke, or was aborted.
            ProtocolError, HandlerError, RefusedError: as `Dispatcher.dispatch` does.
        """
        self._stream.wait_with(lambda descriptor: self._loop.wait(input_descriptor=descriptor))
        frames = self._window.frames
        if not self._calls:
            self._recovery.record_given(self._window.offset)
        while True:
            if self._stream.is_pausing:
                self._pause()
            if self._aborted:
                raise ConnectionClosedError("the connection was aborted")
            if (frames and self._begin(frames[0], careful_until, poison)) or self._retire():
                continue
            if self._calls and (frames or self._ends or not self._calls.has_room):
                self._loop.wait()
            elif self._ends:
                return self._finish()
            elif not frames:
                self._read()

    @property
    def _loop(self) -> EventLoop:
        return self._caller.loop

    @property
    def _ends(self) -> bool:
        """Whether no further frame will come."""
        return self._ended or self._window.error is not None

    def _finish(self) -> None:
        if self._window.error is not None:
            raise self._window.error

    def _read(self) -> None:
        """Read input. Wait for it, or for the end of a call if one is in flight."""
        try:
            data = self._stream.read_now() if self._calls else self._stream.read()
        except OSError as error:
            raise ConnectionClosedError(str(error)) from error
        if data is None:
            self._loop.wait(input_descriptor=self._stream.input_descriptor)
        elif data:
            self.bytes_in += len(data)
            self._window.feed(data)
            if self._calls:
                # While there is always more input, calls must go on too.
                self._loop.run_ready()
        else:
            self._ended = True

    # --- frames ---

    def _begin(self, frame: Frame, careful_until: int, poison: Collection[int]) -> bool:
        """Give the handler a frame, unless that must wait; return whether it was given."""
        if self._window.offset < careful_until:
            if self._calls:
                return False
            self._begin_carefully(frame, poison)
            return True
        if not self._calls.has_room or self._is_checkpoint_in_the_way():
            return False
        if self._dispatcher.needs_drain(frame.message):
            if self._calls:
                return False
            self._take(frame)
            self._dispatch(frame)
        else:
            self._start(frame, is_done=self._take(frame))
        return True

    def _start(self, frame: Frame, *, is_done: bool) -> None:
        self._dispatcher.start(frame.message, frame.offset, frame.end, is_done=is_done)
        self._counts[IN_FLIGHT] = len(self._calls)

    def _begin_carefully(self, frame: Frame, poison: Collection[int]) -> None:
        """Give the handler a frame that may kill the worker, while no other is in flight."""
        dispatcher = self._dispatcher
        self._outbox.flush(self._recovery.stats())
        self._recovery.record_current_frame(frame.offset)
        is_done = self._take(frame)
        if frame.offset in poison:
            _log.error(
                "dropped what killed the worker",
                extra={"offset": frame.offset, "frame": excerpt(frame.message)},
            )
            dispatcher.failures += 1
            dispatcher.drop(frame.message)
            self._recovery.skip_in_replays(frame.offset)
            self._window.advance(frame.end)
            self._commit()
        elif dispatcher.needs_drain(frame.message):
            self._dispatch(frame)
        else:
            self._start(frame, is_done=is_done)

    def _take(self, frame: Frame) -> bool:
        """Take the first frame, to give it to the handler; return whether it was answered."""
        self._window.frames.popleft()
        self._recovery.record_given(frame.end)
        return self._dispatcher.take_done()

    def _dispatch(self, frame: Frame) -> None:
        """Handle a frame while no call is in flight."""
        following = self._dispatcher.dispatch(frame.message, frame.offset)
        self._follow(following, frame.end)
        self._commit()
        self._recovery.compact_if_due(time.monotonic())

    def _follow(self, following: Next, end: int) -> None:
        """Do what comes after a frame, and count it as handled."""
        if following is Next.RESTART_HANDLER:
            self._recovery.restart()
            self._window.advance(end)
            self._window.rewind()
            return
        if following is Next.COMPACT:
            self._recovery.request_compaction()
        self._window.advance(end)

    # --- output ---

    def _retire(self) -> bool:
        """Send the output of calls that are done; return whether there is any."""
        calls, outbox = self._calls, self._outbox
        if calls.next_done() is None:
            return False
        with outbox.changing() as output:
            while (call := calls.next_done()) is not None and call.error is None:
                call.error = outbox.release(call, output)
                if call.error is not None:
                    break
                self._leave_line(call)
                outbox.commit(output, self._stats, forget_input=self._forgets_input)
            outbox.commit(output, self._stats, forget_input=self._forgets_input, at_least=0)
        if call is not None and call.error is not None:
            self._fail(call, call.error)
        elif not calls:
            self._recovery.compact_if_due(time.monotonic())
        return True

    def _leave_line(self, call: Call) -> None:
        """Retire a call, and count the frames that are handled with it."""
        for each in self._calls.retire(call):
            self._count(each)
            self._window.advance(each.end)
        self._counts[IN_FLIGHT] = len(self._calls)

    def _count(self, call: Call) -> None:
        self._counts[HANDLER_NS] += call.took_ns
        if points := self._dispatcher.count(call):
            self._counts[bisect_left(BOUNDS_NS, call.took_ns // points)] += points

    def _fail(self, call: Call, error: BaseException) -> None:
        """Do what `on_error` says about the first call, which has failed."""
        if self._caller.handler.ordered:
            with self._outbox.changing() as output:
                # As for a method that is not async, what it wrote before is sent.
                error = self._outbox.release(call, output) or error
        self._count(call)
        following = self._dispatcher.failed(call.method, error, call.offset)
        if following is Next.RESTART_HANDLER:
            # The frames after this one are given to the new handler.
            done = self._calls.done >> 1
            self._caller.cancel()
            self._dispatcher.order.state = call.state
            self._follow(following, call.end)
            self._dispatcher.resume_done(done)
        else:
            self._leave_line(call)
        self._commit()

    def _stats(self) -> ConnectionStats:
        return self._recovery.stats()

    @property
    def _forgets_input(self) -> bool:
        dispatcher = self._dispatcher
        return dispatcher.stateless and dispatcher.order.state is Incoming.READY

    def _commit(self) -> None:
        self._outbox.flush(self._stats(), forget_input=self._forgets_input)

    # --- checkpoints and handovers ---

    def _is_checkpoint_in_the_way(self) -> bool:
        """Store a checkpoint if one is due; return whether that must wait for calls in flight."""
        dispatcher = self._dispatcher
        now_s = time.monotonic()
        if (
            now_s < self._compact_not_before_s
            or dispatcher.order.state is not Incoming.READY
            or not self._recovery.is_compaction_due(now_s)
        ):
            return False
        self._recovery.compact()
        if not self._recovery.is_compaction_due(now_s):
            return False
        if self._calls:
            return True
        self._compact_not_before_s = now_s + _RETRY_S
        return False

    def _pause(self) -> None:
        """Wait for calls in flight, for a limited time.

        Raises:
            ReadPaused: always, unless it raises as `run` does.
        """
        deadline_s = time.monotonic() + DRAIN_LIMIT_S
        while self._calls and not self._aborted:
            if self._retire():
                continue
            rest_s = deadline_s - time.monotonic()
            if rest_s <= 0:
                _log.info("paused with calls in flight", extra={"calls": len(self._calls)})
                break
            self._loop.wait(timeout_s=rest_s)
        self._stream.read_now()
