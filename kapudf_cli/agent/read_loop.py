"""The read loop of one connection: bytes in, requests to the handler.

Everything that is done for each point is here. Requests that are not points go through
the dispatcher.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from time import monotonic_ns
from typing import TYPE_CHECKING

from kapudf_cli.agent.dispatcher import Next, excerpt
from kapudf_cli.agent.read_coalescing import ReadCoalescing
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.handler.output import write_returned
from kapudf_cli.handler.patch import PointPatch
from kapudf_cli.protocol.order import Incoming
from kapudf_cli.protocol.raw_points import point_run
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.system import loggers
from kapudf_cli.transport.meter import BOUNDS_NS, HANDLER_NS

if TYPE_CHECKING:
    from collections.abc import Collection

    from kapudf_cli.agent.dispatcher import Dispatcher
    from kapudf_cli.agent.recovery import Recovery
    from kapudf_cli.protocol.request_reader import RequestReader
    from kapudf_cli.transport import Stream

_log = loggers.get(__name__)


class ReadLoop:
    """Reads input and gives it to the handler, until the input ends.

    Attributes:
        bytes_in: bytes received on this connection, by this agent and those before it.
    """

    def __init__(
        self,
        stream: Stream,
        dispatcher: Dispatcher,
        recovery: Recovery[RequestReader],
        *,
        linger_ms: float,
    ) -> None:
        """Read from `stream`.

        Args:
            stream: the input.
            dispatcher: gives the handler all that is not a point.
            recovery: keeps the input since the last checkpoint and replaces the handler.
            linger_ms: the longest pause before a read under load, in milliseconds.
        """
        self._stream = stream
        self._meter = stream.meter
        self._dispatcher = dispatcher
        self._outbox = dispatcher.outbox
        self._recovery = recovery
        self._requests = recovery.requests
        self._coalescing = ReadCoalescing(linger_ms)
        self.bytes_in = 0
        # Points of the current read that were forwarded in runs.
        self._run_points = 0

    @property
    def current_frame(self) -> int:
        """The offset of the current frame in the input, in bytes. From any thread."""
        return self._requests.offset

    def wake(self) -> None:
        """Do nothing: `Stream.pause` and `Stream.interrupt` wake the reader."""

    def abort(self) -> None:
        """Do nothing: `Stream.abort` wakes the reader."""

    def run(self, careful_until: int = 0, poison: Collection[int] = ()) -> None:
        """Handle input until it ends.

        Args:
            careful_until: handle one frame at a time before this offset in the input.
            poison: offsets of frames there that killed workers and are dropped.

        Raises:
            ReadPaused: the stream was paused; call again to go on.
            ConnectionClosedError: the connection broke.
            ProtocolError, HandlerError, RefusedError: as `handle` does.
        """
        dispatcher, recovery, meter = self._dispatcher, self._recovery, self._meter
        meter.adopt()
        counts = meter.counts
        ready, begun = Incoming.READY, Incoming.IN_BATCH
        # Whether the last read ended inside a batch.
        in_batch = False
        while True:
            try:
                data = self._stream.read()
            except OSError as error:
                # Kapacitor resets the connection when a task is disabled while data is on
                # its way to Kapacitor. That is an ordinary end.
                raise ConnectionClosedError(str(error)) from error
            if not data:
                return
            self.bytes_in += len(data)
            points_before = dispatcher.points_in
            with dispatcher.caller.turn:
                meter.began_ns = monotonic_ns()
                if self._requests.offset < careful_until or dispatcher.done:
                    messages = self.handle_carefully(data, poison)
                else:
                    messages = self.handle(data)
            if not messages:
                continue  # Only a part of a frame came.
            took_ns = monotonic_ns() - meter.began_ns
            counts[HANDLER_NS] += took_ns
            points = dispatcher.points_in - points_before
            state = dispatcher.order.state
            if state is begun or in_batch:
                in_batch = state is begun
                points, took_ns = meter.add_to_batch(points, took_ns, ends=not in_batch)
            if points:
                counts[bisect_left(BOUNDS_NS, took_ns // points)] += points
            forget_input = dispatcher.stateless and state is ready
            self._outbox.flush(recovery.stats(), forget_input=forget_input)
            now_s = time.monotonic()
            recovery.compact_if_due(now_s)
            # All output is flushed, so that a pause delays nothing.
            pause_s = self._coalescing.pause_s(now_s, messages, len(data))
            if pause_s:
                time.sleep(pause_s)

    def handle(self, data: bytes) -> int:  # noqa: C901, PLR0912, PLR0915 - a call for each point costs time
        """Handle the requests that `data` completes; return how many.

        The hot path: what is done here for a point is done for every point, so that
        nothing is looked up, allocated or called that can be prepared once for a read.

        Raises:
            ProtocolError: the bytes are no requests, or their order is not allowed.
            HandlerError: the handler raised, and `on_error` is `fail`.
            ConnectionClosedError: the connection broke.
            RefusedError: the handler refused Init or Restore.
        """
        dispatcher, outbox, requests = self._dispatcher, self._outbox, self._requests
        caller = dispatcher.caller
        order = dispatcher.order
        write_point, forward = outbox.write_point, outbox.forward
        point, raw_point = caller.point_calls()
        points = others = counted = 0
        self._run_points = 0
        try:
            for message in requests.feed(data):
                kind = type(message)
                try:
                    if kind is bytes and order.takes_points:
                        points += 1
                        outbox.current_frame = message  # type: ignore[assignment]  # bytes it is
                        returned = raw_point(message)  # type: ignore[arg-type]
                        if returned is None:
                            continue
                        if returned is message:
                            forward(message)  # type: ignore[arg-type]
                        elif isinstance(returned, PointPatch):
                            forward(message, returned)  # type: ignore[arg-type]
                        else:
                            write_returned(outbox, "raw_point", returned, raw=message)  # type: ignore[arg-type]
                        continue
                    if kind is Point and order.takes_points:
                        points += 1
                        returned = point(message)  # type: ignore[arg-type, assignment]
                        if type(returned) is Point:
                            write_point(returned)
                        elif returned is not None:
                            write_returned(outbox, "point", returned)
                        continue
                except BaseException as error:  # noqa: BLE001 - a plugin's sys.exit() included
                    method = "raw_point" if kind is bytes else "point"
                    following = dispatcher.failed(method, error, requests.offset)
                else:
                    others += 1
                    if kind is BeginBatch or kind is EndBatch:
                        dispatcher.points_in += points + self._run_points - counted
                        counted = points + self._run_points
                        if kind is BeginBatch:
                            self._recovery.compact_before_batch()
                    following = dispatcher.dispatch(message, requests.offset)
                self._follow(following)
                # The handler may be another one, or may have changed how it takes points.
                order = dispatcher.order
                point, raw_point = caller.point_calls()
                self.choose_form()
        finally:
            outbox.current_frame = None
            dispatcher.points_in += points + self._run_points - counted
        return points + self._run_points + others

    def handle_carefully(self, data: bytes, poison: Collection[int]) -> int:
        """Handle requests one at a time, each recorded before and after; return how many.

        The last worker died while it handled one of them, which may kill this one too. Then
        everything before must be committed, and it must be known which request it was. Or it was
        a worker with an async handler, which has answered some of them.

        Args:
            data: input, as for `handle`.
            poison: the offsets of frames that the handler is not given.

        Raises:
            as `handle` does.
        """
        dispatcher = self._dispatcher
        count = 0
        self._requests.take_run = None
        try:
            for message in self._requests.feed(data):
                offset = self._requests.offset
                self._outbox.flush(self._recovery.stats())
                self._recovery.record_current_frame(offset)
                is_done = dispatcher.take_done()
                if offset in poison:
                    _log.error(
                        "dropped what killed the worker",
                        extra={"offset": offset, "frame": excerpt(message)},
                    )
                    dispatcher.failures += 1
                    dispatcher.drop(message)
                    self._recovery.skip_in_replays(offset)
                elif is_done:
                    with self._outbox.discarding():
                        self._follow(dispatcher.dispatch(message, offset))
                else:
                    self._follow(dispatcher.dispatch(message, offset))
                self._requests.raw = dispatcher.caller.reads_raw
                count += 1
        finally:
            self._outbox.current_frame = None
        self.choose_form()
        return count

    def choose_form(self) -> None:
        """Have points read in the form in which the handler takes them: raw or decoded."""
        caller = self._dispatcher.caller
        self._requests.raw = caller.reads_raw
        runs = caller.passes_through is not False and self._dispatcher.order.takes_points
        self._requests.take_run = self._forward_run if runs else None

    def _follow(self, following: Next) -> None:
        if following is Next.RESTART_HANDLER:
            self._recovery.restart()
        elif following is Next.COMPACT:
            self._recovery.request_compaction()

    def _forward_run(self, data: bytes, start: int, end: int) -> int:
        """Send points on as they came or patched; see `TakeRun`."""
        following, count = point_run(data, start, end)
        if not count:
            return start
        patch = self._dispatcher.caller.passes_through
        count, size = self._outbox.forward_run(
            data[start:following], count, patch if isinstance(patch, PointPatch) else None
        )
        self._run_points += count
        return start + size
