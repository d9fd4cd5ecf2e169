"""One connection to a UDF, driven as Kapacitor drives the connection of a task.

A `Session` sends requests, waits for answers, sends data while it receives, sends keepalives,
waits until everything is answered, and ends the connection. It checks each response against
the protocol. Each mistake of the UDF is a `UdfFaultError`.

Everything runs in the caller's thread. Methods that wait for the UDF are generators: they
yield the data that arrives meanwhile, and return the answer. `drain` is for callers that do
not need the data. A caller may pause between two yields for as long as it likes: only the time
in which the session waits for the UDF counts for its limits.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import time
from typing import TYPE_CHECKING, Final, TypeVar

from kapudf_cli.client import errors
from kapudf_cli.client.driver import Event
from kapudf_cli.client.errors import UdfFaultError, Wait
from kapudf_cli.client.target import EXIT_S, Counts
from kapudf_cli.protocol.errors import ProtocolError, ResponseFaultError, TruncatedFrameError
from kapudf_cli.protocol.framing import HEARTBEAT_TIME
from kapudf_cli.protocol.order import ResponseOrder, fault_of
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from kapudf_cli.client.driver import Source, Step
    from kapudf_cli.client.target import Connection, Ending
    from kapudf_cli.protocol.codec import DataMessage, RequestMessage, ResponseMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType

A = TypeVar("A", InfoResponse, InitResponse, SnapshotResponse, RestoreResponse)
R = TypeVar("R")

#: The responses that carry data.
DATA: Final = (BeginBatch, Point, EndBatch)

#: A UDF has answered everything once it has answered this many keepalives, sent one after the
#: other behind the data, and has then sent nothing for a while. One answer is not enough: in
#: Kapacitor's Go agent it overtakes the points before it.
SETTLE_KEEPALIVES: Final = 2
SETTLE_QUIET_S: Final = 0.05
#: How long `settle` waits for a UDF that keeps sending; in timeouts.
_SETTLE_TIMEOUTS: Final = 6
#: Before a connection is given up, it is read until it has been quiet for this long, and at
#: most for that long.
_PART_QUIET_S: Final = 0.2
_PART_S: Final = 1.0


class Session:
    """Drives one connection; see the module.

    Attributes:
        counts: the number of messages so far; any thread may read it.
        settled: False if the UDF was still sending when its input ended. Agents that drop
            unsent output at the end of the input, as Kapacitor's Go agent does, have lost some.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        timeout_s: float,
        provides: EdgeType | None = None,
        limit_s: float = math.inf,
        limit_messages: float = math.inf,
        settle_limit_s: float | None = None,
        keepalives: bool = False,
    ) -> None:
        """Use a fresh connection; it stays the caller's to close.

        Args:
            connection: to the UDF.
            timeout_s: how long the UDF may be silent, as `timeout` in kapacitor.conf. Any
                response restarts it.
            provides: the edge that the UDF has declared, None if unknown.
            limit_s: how long the whole session may take, even if the UDF keeps sending.
            limit_messages: how many points and batches the UDF may send.
            settle_limit_s: how long `settle` waits for a UDF that keeps sending, None for
                several timeouts.
            keepalives: whether to send a keepalive at each half of the timeout.
        """
        self.counts = Counts()
        self.settled = True
        self._connection = connection
        self._side = connection.side
        self._timeout_s = timeout_s
        self._limit_s = limit_s
        self._limit_messages = limit_messages
        self._until_s = time.monotonic() + limit_s
        self._settle_limit_s = settle_limit_s or _SETTLE_TIMEOUTS * timeout_s
        self._order = ResponseOrder(provides)
        self._keepalive_s = timeout_s / 2 if keepalives else math.inf
        self._next_keepalive_s = time.monotonic() + self._keepalive_s
        #: How long the session has waited for the UDF so far.
        self._waited_s = 0.0
        #: The times in the keepalives that are not answered yet, oldest first.
        self._unanswered: collections.deque[int] = collections.deque()
        #: The request behind data that may not be answered yet; "" if all data is answered.
        self._unsettled = ""
        self._input_ended = False
        self._over = False

    def restart_limit(self) -> None:
        """Let the session take `limit_s` from now."""
        self._until_s = time.monotonic() + self._limit_s

    # --- what Kapacitor does ---

    def start(self, init: InitRequest) -> Generator[DataMessage, None, None]:
        """Send Init, and fail if the UDF refuses it."""
        answer = yield from self.ask(init, InitResponse, "Init")
        if not answer.success:
            raise errors.refused("Init", answer.error)

    def restore(self, snapshot: bytes) -> Generator[DataMessage, None, None]:
        """Restore a snapshot, and fail if the UDF refuses it."""
        request = RestoreRequest(snapshot=snapshot)
        answer = yield from self.ask(request, RestoreResponse, "Restore")
        if not answer.success:
            raise errors.refused("Restore", answer.error)

    def snapshot(self, *, at_most_s: float = math.inf) -> Generator[DataMessage, None, bytes]:
        """Ask for a snapshot, and return it."""
        request, what = SnapshotRequest(), "a snapshot request"
        answer = yield from self.ask(request, SnapshotResponse, what, at_most_s=at_most_s)
        return answer.snapshot

    def ask(
        self, request: RequestMessage, answer: type[A], what: str, *, at_most_s: float = math.inf
    ) -> Generator[DataMessage, None, A]:
        """Send a request, and return its answer.

        Args:
            request: what to send.
            answer: the class of its answer.
            what: the name of the request in error messages: `Info`.
            at_most_s: how long the answer may take, even if the UDF keeps sending.
        """
        self._queue([request])
        wait = errors.answering(what, self._timeout_s)
        until_s = self._waited_s + at_most_s
        while not isinstance(response := self._receive(wait), answer):
            if isinstance(response, DATA):
                yield response
            if self._waited_s > until_s:
                raise UdfFaultError(f"gave no answer to {what} within {at_most_s:g} s")
        return response

    def exchange(
        self,
        data: Iterable[RequestMessage] = (),
        what: str = "a keepalive",
        *,
        at_most_s: float = math.inf,
    ) -> Generator[DataMessage, None, bool]:
        """Send data and then a keepalive, and return when the keepalive is answered.

        Some of the data may still be unanswered then; see `settle`.

        Args:
            data: what to send.
            what: the name of the request in error messages: `a keepalive behind 100 points`.
            at_most_s: how long to wait for a UDF that keeps sending other responses.

        Returns:
            Whether the keepalive was answered in that time.
        """
        until_s = self._waited_s + at_most_s
        messages = [*data]
        if messages:
            self._unsettled = what
        keepalive = self._keepalive()
        self._queue([*messages, keepalive])
        wait = errors.answering(what, self._timeout_s)
        while self._unanswered and self._unanswered[0] <= keepalive.time:
            response = self._receive(wait)
            if isinstance(response, DATA):
                yield response
            if self._waited_s > until_s:
                return False
        return True

    def stream(self, source: Source) -> Generator[DataMessage, None, None]:
        """Send the frames of a source, and return when the last bytes are sent.

        The source itself adds them to `counts`.
        """
        self._unsettled = "a keepalive behind the data"
        self._side.queue(source)
        yield from self._send_queued()

    def settle(self) -> Generator[DataMessage, None, None]:
        """Wait until the UDF has probably answered all data.

        The answer to a keepalive may overtake points. But after several answers and a quiet
        while, all points are answered.
        """
        what = self._unsettled
        if self._connection.drains:
            self._unsettled = ""
        if not self._unsettled or self._over:
            return
        until_s = self._waited_s + self._settle_limit_s
        for _ in range(SETTLE_KEEPALIVES):
            left_s = until_s - self._waited_s
            self.settled = yield from self.exchange((), what, at_most_s=left_s)
            if not self.settled:
                return
        self.settled = yield from self.quiet(SETTLE_QUIET_S, at_most_s=until_s - self._waited_s)
        if self.settled:
            self._unsettled = ""

    def quiet(
        self, quiet_s: float, *, at_most_s: float = math.inf
    ) -> Generator[DataMessage, None, bool]:
        """Wait until nothing has come for `quiet_s`; return False if that did not happen."""
        until_s = self._waited_s + at_most_s
        wait = Wait("", "while nothing was asked of it")
        while self._waited_s < until_s:
            try:
                response = self._receive(wait, quiet_s)
            except TimeoutError:
                return True
            if isinstance(response, DATA):
                yield response
        return False

    def finish(self, data: Iterable[RequestMessage] = ()) -> Generator[DataMessage, None, None]:
        """Send data, half-close at once, and return when the UDF has closed the connection.

        It waits first for the answers to the data that was sent before.
        """
        yield from self.settle()
        self._queue(data)
        yield from self._send_queued()
        with contextlib.suppress(OSError):
            self._side.half_close()
        self._input_ended = True
        wait = errors.closing(self._timeout_s)
        while (step := self._step(wait)) is not Event.CLOSED:
            if isinstance(step, DATA):
                yield step
        self._over = True
        try:
            self._order.finish()
        except ResponseFaultError as error:
            raise UdfFaultError(f"{error}{self._ended()}") from error

    def keep_alive(self) -> None:
        """Send a keepalive if one is due, and what else is queued, as far as there is room.

        Call it now and then while you cannot continue a generator of this session.
        """
        self._queue_due_keepalive()
        self._side.push()

    # --- what only tests of UDFs do ---

    def post(self, *messages: RequestMessage) -> None:
        """Send messages without waiting for answers."""
        self._unsettled = "a keepalive behind data"
        self._queue(messages)
        self.post_bytes(b"")

    def post_bytes(self, data: bytes) -> None:
        """Send bytes unchanged."""
        self._side.extend(self._timeout_s)
        wait = errors.sending(self._timeout_s)
        try:
            self._side.send_bytes(data)
        except TimeoutError:
            raise self._silent(wait) from None
        except OSError as error:
            raise self._closed(wait) from error

    def cut(self) -> None:
        """Close the connection at once, without reading the answers."""
        self._over = True
        self._side.connection.close()

    def part(self) -> None:
        """End the connection, and read what the UDF still sends.

        If an agent cannot write its answers, its server may exit, with all of its tasks.
        """
        if self._over:
            return
        self._over = True
        until_s = time.monotonic() + min(self._timeout_s, _PART_S)
        at_rest = not self._unsettled and not self._side.has_unsent
        with contextlib.suppress(OSError, ProtocolError):
            if at_rest:
                self._side.half_close()
            else:
                self._side.drop_queue()
            while (left_s := until_s - time.monotonic()) > 0:
                quiet_s = left_s if at_rest else min(left_s, _PART_QUIET_S)
                if self._side.receive_within(quiet_s) is None:
                    return

    def ending(self, wait_s: float) -> Ending | None:
        """Wait for the end of the UDF's process or handler; see `Connection.ending`."""
        return self._connection.ending(wait_s)

    # --- underneath ---

    def _queue(self, messages: Iterable[RequestMessage]) -> None:
        messages = list(messages)
        for message in messages:
            self._order.send(message)
            self.counts.sent(message)
        if messages:
            self._side.queue(messages)

    def _keepalive(self) -> KeepaliveRequest:
        """Return a new keepalive, with a unique time."""
        last_ns = self._unanswered[-1] if self._unanswered else 0
        self._unanswered.append(max(time.time_ns(), last_ns + 1))
        return KeepaliveRequest(time=self._unanswered[-1])

    def _answered(self, keepalive: KeepaliveResponse) -> None:
        if keepalive.time not in self._unanswered:
            # The UDF does not return the time: count all keepalives as answered.
            self._unanswered.clear()
            return
        while self._unanswered.popleft() != keepalive.time:
            pass

    def _send_queued(self) -> Generator[DataMessage, None, None]:
        wait = errors.sending(self._timeout_s)
        while self._side.has_unsent and (step := self._step(wait)) is not Event.SENT:
            if step is Event.CLOSED:
                raise self._closed(wait)
            if isinstance(step, DATA):
                yield step

    def _receive(self, wait: Wait, quiet_s: float | None = None) -> ResponseMessage:
        while (step := self._step(wait, quiet_s)) is Event.SENT:
            pass
        if step is Event.CLOSED:
            raise self._closed(wait)
        return step

    def _step(self, wait: Wait, quiet_s: float | None = None) -> Step:
        """Return the next response or event of the connection; check and count a response.

        Args:
            wait: the error messages of this wait.
            quiet_s: raise TimeoutError after this time without a response.
        """
        with self._explained(wait, time_out_is_fault=quiet_s is None):
            began_s = time.monotonic()
            try:
                step = self._next_step(self._timeout_s if quiet_s is None else quiet_s)
            finally:
                self._waited_s += time.monotonic() - began_s
            if isinstance(step, Event):
                return step
            self._order.receive(step)
        match step:
            case ErrorResponse():
                raise self._connection.failed(step.error)
            case BeginBatch() | Point() | EndBatch():
                self.counts.received(step)
                came = self.counts.points_received + self.counts.batches_received
                if came > self._limit_messages:
                    raise UdfFaultError(f"sent more than {self._limit_messages} messages")
            case KeepaliveResponse():
                self._answered(step)
        return step

    def _next_step(self, timeout_s: float) -> Step:
        """Wait for the next step, and send keepalives. A heartbeat restarts the timeout."""
        silent_s = time.monotonic() + timeout_s
        while True:
            now_s = time.monotonic()
            if now_s > self._until_s:
                raise UdfFaultError(f"is still not done after {self._limit_s:g} s")
            self._queue_due_keepalive()
            try:
                step = self._side.step(min(silent_s, self._next_keepalive_s) - now_s)
            except TimeoutError:
                if time.monotonic() >= silent_s:
                    raise
                continue
            if isinstance(step, KeepaliveResponse) and step.time == HEARTBEAT_TIME:
                silent_s = time.monotonic() + timeout_s
                continue
            return step

    def _queue_due_keepalive(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_keepalive_s:
            self._next_keepalive_s = now_s + self._keepalive_s
            if not self._input_ended:
                self._side.queue_urgent(self._keepalive())

    # --- error messages ---

    @contextlib.contextmanager
    def _explained(self, wait: Wait, *, time_out_is_fault: bool) -> Iterator[None]:
        """Turn errors of the connection into a UdfFaultError."""
        try:
            yield
        except TimeoutError:
            if not time_out_is_fault:
                raise
            raise self._silent(wait) from None
        except ProtocolError as error:
            ended = self._ended() if isinstance(error, TruncatedFrameError) else ""
            raise UdfFaultError(f"{fault_of(error)}{ended}") from error
        except ResponseFaultError as error:
            raise UdfFaultError(str(error)) from error
        except OSError as error:
            raise self._closed(wait) from error

    def _silent(self, wait: Wait) -> UdfFaultError:
        unfinished = f"; {self._side.unfinished}" if self._side.unfinished else ""
        in_process = self._connection.pid == os.getpid()
        where = self._connection.where()
        place = f"; it is in {where}" if where else ""
        return UdfFaultError(
            f"{wait.silent}{self._progress()}{unfinished}{place}",
            advice=errors.HEARTBEATS if in_process else wait.advice,
        )

    def _closed(self, wait: Wait) -> UdfFaultError:
        return self._connection.closed(f"{wait.closed}{self._progress()}")

    def _ended(self) -> str:
        ending = self._connection.ending(EXIT_S)
        return f"; it {ending}" if ending is not None else ""

    def _progress(self) -> str:
        return f" ({self.counts})" if self.counts.points_sent else ""


def drain(waiting: Generator[object, None, R]) -> R:
    """Run a generator of `Session` to its end, drop the data, and return the result."""
    while True:
        try:
            next(waiting)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
