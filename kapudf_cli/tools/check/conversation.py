"""One connection to the UDF under test: what it breaks is put into words for its author."""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Final, TypeVar

from kapudf_cli.client.driver import SETTLE_KEEPALIVES, SETTLE_QUIET_S
from kapudf_cli.protocol.errors import ProtocolError, ResponseFaultError
from kapudf_cli.protocol.response_order import ResponseOrder, fault_of
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InfoRequest,
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
from kapudf_cli.tools.check.errors import RuleBrokenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from kapudf_cli.client import Connection, Ending
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType, Option

A = TypeVar("A", InfoResponse, InitResponse, SnapshotResponse, RestoreResponse)

#: What a UDF may send in one conversation. The longest check sends it some ten thousand
#: messages, and a UDF that answers each with a hundred is none that was ever seen.
_MAX_MESSAGES: Final = 2_000_000
#: A conversation ends after so many time-outs, however lively it is: somebody who sends
#: keepalives for ever would hold the run up for ever.
_MAX_TIMEOUTS: Final = 12
#: How long a UDF that has closed its end may take to exit, for its status to be told.
_LAST_WORDS_S: Final = 1.0
#: How long it may take to close a connection where that is not what is tested.
_PART_S: Final = 1.0


class Conversation:
    """Speaks with the UDF as Kapacitor does; whatever it breaks is a RuleBrokenError.

    Every wait is bounded by `timeout_s`, which any response starts anew, as with
    Kapacitor's keepalive timeout.

    Attributes:
        messages: how many points, begins and ends of batches have come.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        timeout_s: float,
        provides: EdgeType | None,
        sees_end: bool,
    ) -> None:
        """Speak on a connection.

        Args:
            connection: the connection.
            timeout_s: how long each answer may take.
            provides: what the UDF says that it provides, None while that is not known.
            sees_end: whether the end of what serves the connection can be seen, as it can
                where that was started for it.
        """
        self._connection = connection
        self._sees_end = sees_end
        self._side = connection.side
        self._timeout_s = timeout_s
        self._order = ResponseOrder(provides)
        self._until_s = time.monotonic() + timeout_s * _MAX_TIMEOUTS
        self._over = False
        #: What is to be answered behind data that may not be answered yet, for a message.
        self._unsettled = ""
        self.messages = 0

    # --- what Kapacitor asks ---

    def info(self) -> InfoResponse:
        """Ask what it is."""
        return self._ask(InfoRequest(), InfoResponse, "Info")

    def init(self, options: Sequence[Option]) -> InitResponse:
        """Start a task."""
        request = InitRequest(taskID="kapudf-check", nodeID="udf1", options=options)
        return self._ask(request, InitResponse, "Init")

    def snapshot(self) -> bytes:
        """Ask for its state."""
        return self._ask(SnapshotRequest(), SnapshotResponse, "a snapshot request").snapshot

    def restore(self, snapshot: bytes) -> RestoreResponse:
        """Give its state back."""
        return self._ask(RestoreRequest(snapshot=snapshot), RestoreResponse, "Restore")

    def keepalive(self) -> None:
        """Send a keepalive, and take what comes until it is answered."""
        self.exchange((), "a keepalive")

    # --- data ---

    def exchange(self, data: Iterable[RequestMessage], what: str) -> None:
        """Send data and a keepalive behind it, and take what comes until that is answered.

        The data need not be answered by then; see `settle`.

        Args:
            data: what to send.
            what: what is to be answered, for a message: `a keepalive after 1,000 points`.
        """
        messages = [*data, KeepaliveRequest(time=time.time_ns())]
        if len(messages) > 1:
            self._unsettled = what
        with self._sending(messages):
            self._receive_until(lambda response: isinstance(response, KeepaliveResponse), what)

    def settle(self) -> None:
        """Take what comes until all data is answered, as far as that can be told from here.

        The answer to a keepalive may overtake points; after several, and a while in which
        nothing came, all points have been answered. It does not wait longer than the
        time-out for a UDF that never stops sending.
        """
        what, self._unsettled = self._unsettled, ""
        if not what or self._over or self._connection.drains:
            return
        for _ in range(SETTLE_KEEPALIVES):
            self.exchange((), what)
        self.quiet(SETTLE_QUIET_S, at_most_s=self._timeout_s)

    def quiet(self, quiet_s: float, *, at_most_s: float = math.inf) -> None:
        """Take what comes until nothing has come for so long."""
        until_s = time.monotonic() + at_most_s
        while time.monotonic() < until_s:
            try:
                response = self._receive(quiet_s)
            except TimeoutError:
                return
            if response is None:
                raise RuleBrokenError(self._closed("while nothing was asked of it"))
            self._take(response)

    def finish(self, data: Iterable[RequestMessage] = ()) -> None:
        """Send data, half-close at once, and take what comes until the UDF closes.

        Data that was sent before is answered first.
        """
        self.settle()

        def data_and_end() -> Iterable[RequestMessage]:
            yield from data
            self._side.half_close()

        self._extend(self._timeout_s)
        with self._explained(), self._side.sending(data_and_end()):
            while True:
                try:
                    response = self._receive(self._timeout_s)
                except TimeoutError:
                    problem = (
                        f"did not close the connection within {self._timeout_s:g} s of the end of "
                        "its input; Kapacitor waits for that"
                    )
                    raise RuleBrokenError(problem) from None
                if response is None:
                    break
                self._take(response)
        self._over = True
        with self._explained():
            self._order.finish()

    def send(self, *messages: RequestMessage) -> None:
        """Send and wait for nothing."""
        self._unsettled = "a keepalive behind data"
        with self._explained():
            for message in messages:
                self._order.send(message)
                self._side.send(message)

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are."""
        with self._explained():
            self._side.send_bytes(data)

    def break_off(self) -> None:
        """Close at once, without reading the answers."""
        self._over = True
        self._side.connection.close()

    def part(self) -> None:
        """End the conversation as Kapacitor ends a replay, without testing how the UDF ends it."""
        if self._over:
            return
        with contextlib.suppress(OSError, ProtocolError):
            self._side.extend(min(self._timeout_s, _PART_S))
            self._side.half_close()
            while self._side.receive() is not None:
                pass

    def expect_end(self) -> Ending | None:
        """Wait for what serves the connection to end; None where that cannot be seen."""
        if not self._sees_end:
            return None
        ending = self._connection.ending(self._timeout_s)
        if ending is None:
            problem = f"still runs {self._timeout_s:g} s after its connection was closed"
            raise RuleBrokenError(problem)
        return ending

    # --- underneath ---

    def _ask(self, request: RequestMessage, answer: type[A], what: str) -> A:
        with self._sending([request]):
            found = self._receive_until(lambda response: isinstance(response, answer), what)
        assert isinstance(found, answer)
        return found

    @contextlib.contextmanager
    def _sending(self, messages: Iterable[RequestMessage]) -> Iterator[None]:
        messages = list(messages)
        self._extend(self._timeout_s)
        for message in messages:
            self._order.send(message)
        with self._explained(), self._side.sending(messages):
            yield

    def _receive_until(
        self, enough: Callable[[ResponseMessage], bool], what: str
    ) -> ResponseMessage:
        while True:
            try:
                response = self._receive(self._timeout_s)
            except TimeoutError:
                problem = f"gave no answer to {what} within {self._timeout_s:g} s"
                raise RuleBrokenError(problem + self._unfinished()) from None
            if response is None:
                raise RuleBrokenError(self._closed(f"instead of answering {what}"))
            self._take(response)
            if enough(response):
                return response

    def _receive(self, timeout_s: float) -> ResponseMessage | None:
        self._extend(timeout_s)
        with self._explained():
            return self._side.receive()

    def _take(self, response: ResponseMessage) -> None:
        with self._explained():
            self._order.receive(response)
        match response:
            case ErrorResponse():
                text = " ".join(response.error.split()) or "(no text)"
                raise RuleBrokenError(f"failed the task with an error: {text:.500}")
            case BeginBatch() | Point() | EndBatch():
                self.messages += 1
        if self.messages > _MAX_MESSAGES:
            raise RuleBrokenError(f"sent more than {_MAX_MESSAGES} messages, and no end of them")

    def _extend(self, timeout_s: float) -> None:
        if time.monotonic() > self._until_s:
            problem = f"is still not done after {self._timeout_s * _MAX_TIMEOUTS:g} s"
            raise RuleBrokenError(problem)
        self._side.extend(timeout_s)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what goes wrong with the connection into words; a time-out stays one."""
        try:
            yield
        except TimeoutError:
            raise
        except ProtocolError as error:
            raise RuleBrokenError(str(fault_of(error))) from error
        except ResponseFaultError as error:
            raise RuleBrokenError(str(error)) from error
        except OSError as error:
            raise RuleBrokenError(self._closed("in the middle of the conversation")) from error

    def _unfinished(self) -> str:
        return f"; {self._side.unfinished}" if self._side.unfinished else ""

    def _closed(self, when: str) -> str:
        problem = f"closed the connection {when}"
        ending = self._connection.ending(_LAST_WORDS_S)
        return problem if ending is None else f"{problem}; it {told(ending)}"


def told(ending: Ending) -> str:
    """Return how a UDF ended, with the line on its stderr that says why."""
    said = f", after saying: {ending.cause:.200}" if ending.cause else ""
    return f"{ending.text}{said}"
