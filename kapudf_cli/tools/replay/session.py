"""One connection to a UDF, from Init to its end, as a task of Kapacitor's holds it.

The session sends Init and waits for the answer, then Restore if there is something to
restore. A second thread then sends the data, and a third a keepalive every half of the
time-out. At last the session asks for a snapshot, if one is wanted, waits until the UDF
has answered everything, and half-closes. Each response is checked before it is handed
on; one that Kapacitor would refuse ends the session with an error for the UDF's author.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from kapudf_cli.client.driver import SETTLE_KEEPALIVES, SETTLE_QUIET_S
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.errors import ProtocolError, ResponseFaultError
from kapudf_cli.protocol.framing import HEARTBEAT_TIME
from kapudf_cli.protocol.response_order import ResponseOrder, fault_of
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from kapudf_cli.tools.replay import faults
from kapudf_cli.tools.replay.errors import ReplayError
from kapudf_cli.tools.replay.summary import Counts

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from kapudf_cli.client import Connection
    from kapudf_cli.protocol.codec import DataMessage, RequestMessage, ResponseMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType, InitRequest

A = TypeVar("A", InitResponse, RestoreResponse)

#: A send may wait for as long as the UDF answers keepalives, which is what is timed.
_UNLIMITED_S: Final = 1_000_000.0
#: How long a UDF may answer keepalives and not the snapshot request; in time-outs.
_SNAPSHOT_TIMEOUTS: Final = 6
#: A UDF that keeps sending is waited for this long before its input ends; in time-outs.
_SETTLE_TIMEOUTS: Final = 6
#: A session that is cut short takes what comes until nothing has come for so long, and
#: no longer than that.
_PART_QUIET_S: Final = 0.2
_PART_S: Final = 1.0
#: How long a process may take to be seen to have ended once its connection has.
_ENDING_S: Final = 2.0


class Session:
    """Sends data through a UDF, once.

    Attributes:
        counts: what has gone through so far; read it from any thread.
        snapshot: what the UDF answered to Snapshot, None if it was not asked.
        settled: False if the UDF was still sending when its input ended. An agent that drops
            what it has not written by then, as Kapacitor's Go agent does, has lost output.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        provides: EdgeType,
        timeout_s: float,
        piece_bytes: int = 1,
    ) -> None:
        """Use a fresh connection.

        Args:
            connection: to the UDF; it stays the caller's to close.
            provides: the edge that the UDF has declared.
            timeout_s: how long the UDF may be silent, as `timeout` of kapacitor.conf.
            piece_bytes: how much of the data is gathered before it is sent. With 1, each
                message is sent when it is there, as Kapacitor does.
        """
        self.counts = Counts()
        self.snapshot: bytes | None = None
        self.settled = True
        self._connection = connection
        self._side = connection.side
        self._timeout_s = timeout_s
        self._piece_bytes = piece_bytes
        self._order = ResponseOrder(provides)
        # Messages are sent from two threads, and frames must not mix.
        self._sending = threading.Lock()
        self._stopped = threading.Event()
        self._snapshot_arrived = threading.Event()
        self._snapshot_asked = False
        self._half_closed = False
        self._source_error: BaseException | None = None
        # Guards the two below, which say what has come; the receiver notifies.
        self._heard = threading.Condition()
        self._keepalive_answered_ns = 0
        #: Since when the receiver waits for a response; None while it does something else.
        self._waiting_since_s: float | None = None

    def run(
        self,
        init: InitRequest,
        data: Iterable[RequestMessage],
        *,
        restore: bytes | None = None,
        take_snapshot: bool = False,
    ) -> Generator[DataMessage, None, None]:
        """Send everything and yield the points and batches that come back, until the UDF closes.

        Args:
            init: what the task begins with.
            data: taken from in another thread. If it raises, what it gave before is sent
                through to the end, and then the error is raised here.
            restore: a snapshot to give back after Init. Without any bytes it is not sent:
                Kapacitor keeps no empty snapshot.
            take_snapshot: whether to ask for one after the last of the data.

        Raises:
            ReplayError: the UDF failed, hung, or sent what it must not.

        Close the iterator before the connection where not all of it is wanted: what is on
        its way is then taken first.
        """
        self._side.extend(_UNLIMITED_S)
        keepalive = threading.Thread(target=self._keep_alive, name="keepalive", daemon=True)
        keepalive.start()
        try:
            self._ask(init)
            answer = yield from self._until(InitResponse)
            if not answer.success:
                raise ReplayError(faults.refused("Init", answer.error))
            if restore:
                self._ask(RestoreRequest(snapshot=restore))
                restored = yield from self._until(RestoreResponse)
                if not restored.success:
                    raise ReplayError(faults.refused("Restore", restored.error))
            sender = threading.Thread(
                target=self._send, args=(data, take_snapshot), name="sender", daemon=True
            )
            sender.start()
            while (response := self._receive()) is not None:
                if isinstance(response, BeginBatch | Point | EndBatch):
                    yield response
                else:
                    self._take(response)
            self._check_end()
        except BaseException:
            # The UDF did wrong, the caller wants no more, or Ctrl-C came.
            self._part()
            raise
        finally:
            self._stop()
        if self._source_error is not None:
            raise self._source_error

    # --- sending ---

    def _ask(self, request: RequestMessage) -> bool:
        """Send a request; return False if the UDF is gone, which its answers will tell better."""
        self._order.send(request)
        return self._send_bytes(REQUESTS.encode(request))

    def _send_bytes(self, frames: bytes) -> bool:
        """Send whole frames; return False if the UDF is gone."""
        try:
            with self._sending:
                if frames and not self._half_closed:
                    self._side.send_bytes(frames)
        except (OSError, ValueError):
            # ValueError is what a connection closed in the meantime raises.
            return False
        return True

    def _keep_alive(self) -> None:
        while not self._stopped.wait(self._timeout_s / 2):
            self._ask(KeepaliveRequest(time=time.time_ns()))

    def _send(self, data: Iterable[RequestMessage], take_snapshot: bool) -> None:  # noqa: FBT001 - of a thread
        piece = bytearray()
        try:
            for message in data:
                # Counted before it is sent: it may be back before this thread goes on.
                if isinstance(message, Point):
                    self.counts.points_sent += 1
                elif isinstance(message, BeginBatch):
                    self.counts.batches_sent += 1
                piece += REQUESTS.encode(message)
                if len(piece) >= self._piece_bytes:
                    if not self._send_bytes(bytes(piece)) or self._stopped.is_set():
                        return
                    piece.clear()
            if take_snapshot and self._send_bytes(bytes(piece)):
                piece.clear()
                self._snapshot_asked = True
                self._ask(SnapshotRequest())
                self._snapshot_arrived.wait(_SNAPSHOT_TIMEOUTS * self._timeout_s)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the data is read
            self._source_error = error
        self._send_bytes(bytes(piece))
        self._settle()
        if self._stopped.is_set():
            # The session was cut short; see `_part`.
            return
        with contextlib.suppress(OSError, ValueError), self._sending:
            self._half_closed = True
            self._side.half_close()

    def _settle(self) -> None:
        """Wait until the UDF has answered all data, as far as that can be told from here."""
        if self._connection.drains:
            return
        until_s = time.monotonic() + _SETTLE_TIMEOUTS * self._timeout_s
        for _ in range(SETTLE_KEEPALIVES):
            asked_ns = time.time_ns()
            self._ask(KeepaliveRequest(time=asked_ns))
            with self._heard:
                while self._keepalive_answered_ns < asked_ns and not self._stopped.is_set():
                    # A UDF that is silent for too long is found by the receiver.
                    if not self._heard.wait(until_s - time.monotonic()):
                        self.settled = False
                        return
        while (quiet_s := self._quiet_s()) < SETTLE_QUIET_S and not self._stopped.is_set():
            if time.monotonic() > until_s:
                self.settled = False
                return
            self._stopped.wait(SETTLE_QUIET_S - quiet_s)

    def _quiet_s(self) -> float:
        """Return for how long nothing has come though the receiver was waiting for it."""
        with self._heard:
            since_s = self._waiting_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def _part(self) -> None:
        """Stop sending, and read for a moment what the UDF still sends.

        The server of an agent that cannot write its answers may exit, with all of its tasks.
        """
        self._stop()
        until_s = time.monotonic() + _PART_S
        with contextlib.suppress(OSError, ProtocolError):
            while time.monotonic() < until_s:
                if self._side.receive_within(_PART_QUIET_S) is None:
                    return

    def _stop(self) -> None:
        """Have the other threads end."""
        self._stopped.set()
        self._snapshot_arrived.set()
        with self._heard:
            self._heard.notify_all()

    # --- receiving ---

    def _receive(self) -> ResponseMessage | None:
        """Return the next response that the protocol allows; None once the UDF has closed."""
        with self._heard:
            self._waiting_since_s = time.monotonic()
        try:
            response = self._side.receive_within(self._timeout_s)
            with self._heard:
                self._waiting_since_s = None
            if response is None:
                return None
            self._order.receive(response)
        except ResponseFaultError as error:
            raise ReplayError(f"the UDF {error}") from error
        except ProtocolError as error:
            self._fail_of_end(f"the UDF {fault_of(error)}")
        except TimeoutError as error:
            raise ReplayError(
                faults.silent(
                    self._timeout_s,
                    self.counts,
                    after_data=self._half_closed,
                    in_process=self._connection.pid == os.getpid(),
                )
            ) from error
        except OSError:
            # The connection was reset: the UDF closed with input that it had not read.
            self._fail_of_end(faults.closed_early(self.counts, snapshot=self._snapshot_asked))
        match response:
            case Point():
                self.counts.points_received += 1
            case EndBatch():
                self.counts.batches_received += 1
            case ErrorResponse():
                raise ReplayError(faults.reported(response.error))
        return response

    def _until(self, answer: type[A]) -> Generator[DataMessage, None, A]:
        """Yield data until an answer comes, and return that."""
        while not isinstance(response := self._receive(), answer):
            if isinstance(response, BeginBatch | Point | EndBatch):
                yield response
            elif response is None:
                self._fail_of_end(faults.closed_instead_of(answer.__name__))
            else:
                self._take(response)
        return response

    def _take(self, response: ResponseMessage) -> None:
        """Take what is no data."""
        match response:
            case SnapshotResponse():
                self.snapshot = response.snapshot
                self._snapshot_arrived.set()
            case KeepaliveResponse() if response.time != HEARTBEAT_TIME:
                with self._heard:
                    # A UDF that does not return the time answers whatever was asked last.
                    self._keepalive_answered_ns = response.time or time.time_ns()
                    self._heard.notify_all()

    def _check_end(self) -> None:
        """Say what is wrong with the UDF's end, if something is."""
        if not self._half_closed:
            self._fail_of_end(faults.closed_early(self.counts, snapshot=self._snapshot_asked))
        try:
            self._order.finish()
        except ResponseFaultError as error:
            self._fail_of_end(f"the UDF {error}")
        if self._snapshot_asked and self.snapshot is None:
            self._fail_of_end(faults.NO_SNAPSHOT)
        ending = self._connection.ending(_ENDING_S)
        if ending is not None and not ending.clean:
            raise ReplayError(faults.ended_badly(self.counts, ending))

    def _fail_of_end(self, problem: str) -> NoReturn:
        raise ReplayError(faults.with_ending(problem, self._connection.ending(_ENDING_S)))
