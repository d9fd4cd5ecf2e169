"""One connection to a UDF, driven as Kapacitor drives the connection of a task.

A `Session` asks and awaits answers, sends data while it receives, sends keepalives, waits
until everything is answered, and ends the connection. It checks each response against the
protocol. Whatever the UDF does wrong is a `UdfFaultError`, worded in `faults.py`.

All of it runs in the caller's thread. Methods that wait for the UDF are generators: they
yield the data that comes meanwhile, and return the answer. `drain` is for callers that do
not need the data.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from kapudf_cli.client import faults
from kapudf_cli.client.driver import Event
from kapudf_cli.client.errors import UdfFaultError
from kapudf_cli.client.faults import Wait
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
from kapudf_cli.system.terminal_text import counted

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

#: A UDF has answered everything when it has answered this many keepalives that were sent
#: one after the other behind the data, and then nothing comes for a while. A single answer
#: is not enough: in Kapacitor's Go agent it overtakes the points before it.
SETTLE_KEEPALIVES: Final = 2
SETTLE_QUIET_S: Final = 0.05
#: How long `settle` waits for a UDF that keeps sending; in timeouts.
_SETTLE_TIMEOUTS: Final = 6
#: A connection that is given up is read until nothing has come for so long, and no longer
#: than that.
_PART_QUIET_S: Final = 0.2
_PART_S: Final = 1.0


@dataclass
class Counts:
    """How much was sent and how much came back so far."""

    points_sent: int = 0
    batches_sent: int = 0
    points_received: int = 0
    batches_received: int = 0
    messages_received: int = 0

    def sent(self, message: RequestMessage) -> None:
        """Count a request that is about to be sent."""
        if isinstance(message, Point):
            self.points_sent += 1
        elif isinstance(message, BeginBatch):
            self.batches_sent += 1

    def received(self, message: DataMessage) -> None:
        """Count a point, or the begin or end of a batch."""
        self.messages_received += 1
        if isinstance(message, Point):
            self.points_received += 1
        elif isinstance(message, EndBatch):
            self.batches_received += 1

    def __str__(self) -> str:
        """Return `2 points back of 5 sent`."""
        return f"{counted(self.points_received, 'point')} back of {self.points_sent:,} sent"


class Session:
    """Drives one connection; see the module.

    Attributes:
        counts: what has gone through so far; read it from any thread.
        settled: False if the UDF was still sending when its input ended. An agent that drops
            what it has not written by then, as Kapacitor's Go agent does, has lost output.
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
            timeout_s: how long the UDF may be silent, as `timeout` of kapacitor.conf. Any
                response restarts it.
            provides: the edge that the UDF has declared, None if that is not known.
            limit_s: how long the whole session may take, however lively it is.
            limit_messages: how many points and batches the UDF may send.
            settle_limit_s: how long `settle` waits for a UDF that keeps sending, None for
                several timeouts.
            keepalives: whether to send a keepalive every half of the timeout.
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
        #: The times in the keepalives that are not answered yet, oldest first.
        self._unanswered: collections.deque[int] = collections.deque()
        #: What was asked for behind data that may not be answered yet; "" if all is.
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
            raise faults.refused("Init", answer.error)

    def restore(self, snapshot: bytes) -> Generator[DataMessage, None, None]:
        """Give a snapshot back, and fail if the UDF refuses it."""
        request = RestoreRequest(snapshot=snapshot)
        answer = yield from self.ask(request, RestoreResponse, "Restore")
        if not answer.success:
            raise faults.refused("Restore", answer.error)

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
            what: what is asked, for error messages: `Info`.
            at_most_s: how long the answer may take, however lively the UDF is.
        """
        self._queue([request])
        wait = faults.answering(what, self._timeout_s)
        until_s = time.monotonic() + at_most_s
        while not isinstance(response := self._receive(wait), answer):
            if response is None:
                raise self._closed(wait)
            if isinstance(response, DATA):
                yield response
            if time.monotonic() > until_s:
                raise UdfFaultError(f"gave no answer to {what} within {at_most_s:g} s")
        return response

    def exchange(
        self,
        data: Iterable[RequestMessage] = (),
        what: str = "a keepalive",
        *,
        at_most_s: float = math.inf,
    ) -> Generator[DataMessage, None, bool]:
        """Send data with a keepalive behind it, and return when the keepalive is answered.

        The data need not be answered by then; see `settle`.

        Args:
            data: what to send.
            what: what is asked, for error messages: `a keepalive behind 100 points`.
            at_most_s: how long to wait for a UDF that keeps sending other responses.

        Returns:
            Whether the keepalive was answered in that time.
        """
        until_s = time.monotonic() + at_most_s
        messages = [*data]
        if messages:
            self._unsettled = what
        keepalive = self._keepalive()
        self._queue([*messages, keepalive])
        wait = faults.answering(what, self._timeout_s)
        while self._unanswered and self._unanswered[0] <= keepalive.time:
            response = self._receive(wait)
            if response is None:
                raise self._closed(wait)
            if isinstance(response, DATA):
                yield response
            if time.monotonic() > until_s:
                return False
        return True

    def stream(self, source: Source) -> Generator[DataMessage, None, None]:
        """Send what a source gives, and return when its last bytes are sent.

        The source counts what it gives in `counts`.
        """
        self._unsettled = "a keepalive behind the data"
        self._side.queue(source)
        wait = faults.sending(self._timeout_s)
        while (step := self._step(wait)) is not Event.SENT:
            if step is Event.CLOSED:
                raise self._closed(wait)
            if isinstance(step, DATA):
                yield step

    def settle(self) -> Generator[DataMessage, None, None]:
        """Wait until the UDF has answered all data, as far as that can be told from here.

        The answer to a keepalive may overtake points. After several, and a while in which
        nothing came, all points have been answered.
        """
        what = self._unsettled
        if self._connection.drains:
            self._unsettled = ""
        if not self._unsettled or self._over:
            return
        until_s = time.monotonic() + self._settle_limit_s
        for _ in range(SETTLE_KEEPALIVES):
            left_s = until_s - time.monotonic()
            self.settled = yield from self.exchange((), what, at_most_s=left_s)
            if not self.settled:
                return
        self.settled = yield from self.quiet(SETTLE_QUIET_S, at_most_s=until_s - time.monotonic())
        if self.settled:
            self._unsettled = ""

    def quiet(
        self, quiet_s: float, *, at_most_s: float = math.inf
    ) -> Generator[DataMessage, None, bool]:
        """Wait until nothing has come for so long; return False if it never was quiet."""
        until_s = time.monotonic() + at_most_s
        wait = Wait("", "while nothing was asked of it")
        while time.monotonic() < until_s:
            try:
                response = self._receive(wait, quiet_s)
            except TimeoutError:
                return True
            if response is None:
                raise self._closed(wait)
            if isinstance(response, DATA):
                yield response
        return False

    def finish(self, data: Iterable[RequestMessage] = ()) -> Generator[DataMessage, None, None]:
        """Send data, half-close at once, and return when the UDF has closed the connection.

        Data that was sent before is answered first.
        """
        yield from self.settle()
        self._queue(data)
        wait = faults.sending(self._timeout_s)
        while self._side.has_unsent and (step := self._step(wait)) is not Event.SENT:
            if step is Event.CLOSED:
                raise self._closed(wait)
            if isinstance(step, DATA):
                yield step
        with contextlib.suppress(OSError):
            self._side.half_close()
        self._input_ended = True
        wait = faults.closing(self._timeout_s)
        while (response := self._receive(wait)) is not None:
            if isinstance(response, DATA):
                yield response
        self._over = True
        try:
            self._order.finish()
        except ResponseFaultError as error:
            raise UdfFaultError(f"{error}{self._ended()}") from error

    # --- what tests do besides ---

    def post(self, *messages: RequestMessage) -> None:
        """Send messages, and wait for no answer."""
        self._unsettled = "a keepalive behind data"
        self._queue(messages)
        self.post_bytes(b"")

    def post_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._side.extend(self._timeout_s)
        wait = faults.sending(self._timeout_s)
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
        """End the connection without testing how the UDF ends it; read what it still sends.

        The server of an agent that cannot write its answers may exit, with all of its tasks.
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
        """Wait for what serves the connection to end; None if it does not, or is not seen."""
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
        """Return a keepalive to send, with a time that no other one has."""
        last_ns = self._unanswered[-1] if self._unanswered else 0
        self._unanswered.append(max(time.time_ns(), last_ns + 1))
        return KeepaliveRequest(time=self._unanswered[-1])

    def _answered(self, keepalive: KeepaliveResponse) -> None:
        if keepalive.time not in self._unanswered:
            # The UDF does not return the time: it answers all that it was asked.
            self._unanswered.clear()
            return
        while self._unanswered.popleft() != keepalive.time:
            pass

    def _receive(self, wait: Wait, quiet_s: float | None = None) -> ResponseMessage | None:
        while (step := self._step(wait, quiet_s)) is Event.SENT:
            pass
        return None if step is Event.CLOSED else step

    def _step(self, wait: Wait, quiet_s: float | None = None) -> Step:
        """Take a step of the connection; a response has been checked and counted.

        Args:
            wait: what is awaited, for error messages.
            quiet_s: raise TimeoutError when nothing has come for so long.
        """
        with self._explained(wait, time_out_is_fault=quiet_s is None):
            step = self._next_step(self._timeout_s if quiet_s is None else quiet_s)
            if isinstance(step, Event):
                return step
            self._order.receive(step)
        match step:
            case ErrorResponse():
                raise faults.failed(step.error)
            case BeginBatch() | Point() | EndBatch():
                self.counts.received(step)
                came = self.counts.points_received + self.counts.batches_received
                if came > self._limit_messages:
                    raise UdfFaultError(f"sent more than {self._limit_messages} messages")
            case KeepaliveResponse():
                self._answered(step)
        return step

    def _next_step(self, timeout_s: float) -> Step:
        """Take a step, and send keepalives while it is awaited. Heartbeats restart the timeout."""
        silent_s = time.monotonic() + timeout_s
        while True:
            now_s = time.monotonic()
            if now_s > self._until_s:
                raise UdfFaultError(f"is still not done after {self._limit_s:g} s")
            if now_s >= self._next_keepalive_s:
                self._next_keepalive_s = now_s + self._keepalive_s
                if not self._input_ended:
                    self._side.queue_urgent(self._keepalive())
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
        return UdfFaultError(
            f"{wait.silent}{self._progress()}{unfinished}",
            advice=faults.HEARTBEATS if in_process else wait.advice,
        )

    def _closed(self, wait: Wait) -> UdfFaultError:
        return faults.closed(self._connection, f"{wait.closed}{self._progress()}")

    def _ended(self) -> str:
        ending = self._connection.ending(faults.EXIT_S)
        return f"; it {ending}" if ending is not None else ""

    def _progress(self) -> str:
        return f" ({self.counts})" if self.counts.points_sent else ""


def drain(waiting: Generator[object, None, R]) -> R:
    """Run a generator of `Session` to its end, drop the data, and return its result."""
    while True:
        try:
            next(waiting)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
