"""One connection of a load run: queued data, and counts of responses. It never blocks."""

from __future__ import annotations

import collections
import os
import time
from typing import TYPE_CHECKING, Final

from kapudf_cli.client.errors import UdfFaultError
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.errors import ProtocolError
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.order import fault_of
from kapudf_cli.protocol.udf_pb2 import ErrorResponse, KeepaliveRequest

if TYPE_CHECKING:
    from kapudf_cli.client.target import Connection

#: How many answers may be outstanding, about 100 bytes each. A socket and the buffers of a UDF
#: hold a few thousand points.
_MAX_DUE: Final = 1_000_000
_READ_BYTES: Final = 256 * 1024

#: The first byte of a Response with this content; see the tags in udf.proto.
POINT: Final = 0x8A
END: Final = 0x92
KEEPALIVE: Final = 0x1A
#: The second byte of the tags of points and ends of batches.
_DATA_TAG: Final = 0x01
#: How many bits of a latency are kept.
_KEPT_BITS: Final = 8

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)


class Latencies:
    """A histogram of latencies in nanoseconds, in a few kilobytes for any number of them.

    The buckets are those of an HDR histogram: 128 equal ones in each power of two, so that the
    error is below one per cent.

    Attributes:
        count: the number of latencies.
        max_ns: the longest latency, exact.
    """

    def __init__(self) -> None:
        self.count = 0
        self.max_ns = 0
        self._buckets: collections.Counter[int] = collections.Counter()

    def add(self, nanoseconds: int, count: int = 1) -> None:
        """Count `count` latencies of the same value."""
        nanoseconds = max(nanoseconds, 0)
        shift = max(nanoseconds.bit_length() - _KEPT_BITS, 0)
        # The key of a bucket is its upper end, so that no reported latency is too low.
        self._buckets[(nanoseconds >> shift << shift) + (1 << shift) - 1] += count
        self.count += count
        self.max_ns = max(self.max_ns, nanoseconds)

    def percentile_ns(self, percent: float) -> int:
        """Return a percentile; 0 if there are no latencies."""
        left = self.count * percent / 100
        for value in sorted(self._buckets):
            left -= self._buckets[value]
            if left <= 0:
                return min(value, self.max_ns)
        return self.max_ns


class LoadConnection:
    """A connection on which a task was started.

    Attributes:
        readable: the descriptor to read from.
        writable: the descriptor to write to.
        sent: the number of points that were sent or queued.
        received: the number of messages of each kind that came back, by the first byte.
    """

    def __init__(self, connection: Connection, latencies: Latencies, *, answer: int) -> None:
        """Take a connection.

        Args:
            connection: a connection on which a task was started, with all answers read.
            latencies: the histogram to add latencies to.
            answer: the kind of message to time, by its first byte.
        """
        self._connection = connection
        self._latencies = latencies
        self._answer = answer
        self.readable, self.writable = connection.side.descriptors
        os.set_blocking(self.readable, False)
        os.set_blocking(self.writable, False)
        self._frames = FrameReader(_kind)
        self._pieces: collections.deque[memoryview] = collections.deque()
        #: Due times of outstanding answers, each with the number of answers.
        self._due: collections.deque[tuple[int, int]] = collections.deque()
        self.sent = 0
        self.received: collections.Counter[int] = collections.Counter()

    @property
    def waits(self) -> bool:
        """Whether data is queued."""
        return bool(self._pieces)

    @property
    def owed(self) -> int:
        """The number of outstanding answers."""
        return sum(count for _, count in self._due)

    def put(self, pieces: tuple[bytes, ...], *, points: int, due_ns: int, answers: int) -> None:
        """Send each piece in a separate system call; queue what the socket does not take.

        Args:
            pieces: the bytes to send.
            points: the number of points in them.
            due_ns: when they were due, by time.perf_counter_ns.
            answers: the number of answers to expect.
        """
        self.sent += points
        if answers:
            self._due.append((due_ns, answers))
            if len(self._due) > _MAX_DUE:
                problem = (
                    f"owes {_MAX_DUE} answers at once; it answered each point at first, but seems "
                    "to have stopped"
                )
                raise UdfFaultError(problem)
        self._pieces.extend(map(memoryview, pieces))
        self.push()

    def keepalive(self, due_ns: int, *, timed: bool) -> None:
        """Send a keepalive; time its answer if `timed`."""
        frame = REQUESTS.encode(KeepaliveRequest(time=time.time_ns()))
        self.put((frame,), points=0, due_ns=due_ns, answers=1 if timed else 0)

    def push(self) -> None:
        """Send queued data, as far as there is room."""
        while self._pieces:
            try:
                written = os.write(self.writable, self._pieces[0])
            except BlockingIOError:
                return
            except OSError as error:
                raise self._lost() from error
            if written < len(self._pieces[0]):
                self._pieces[0] = self._pieces[0][written:]
                return
            self._pieces.popleft()

    def pull(self) -> None:
        """Read responses that have arrived.

        Raises:
            UdfFaultError: the UDF closed the connection, failed, or sent invalid data.
        """
        try:
            data = os.read(self.readable, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost() from error
        if not data:
            raise self._lost()
        answers = 0
        try:
            for kind in self._frames.feed(data):
                if isinstance(kind, ErrorResponse):
                    raise self._connection.failed(kind.error)
                self.received[kind] += 1
                answers += kind == self._answer
        except ProtocolError as error:
            raise UdfFaultError(str(fault_of(error))) from error
        if answers:
            self._time(answers)

    def _time(self, answers: int) -> None:
        """Add the latencies of answers. The data that was due first is answered first."""
        now_ns = time.perf_counter_ns()
        while answers and self._due:
            due_ns, count = self._due.popleft()
            taken = min(answers, count)
            self._latencies.add(now_ns - due_ns, taken)
            answers -= taken
            if taken < count:
                self._due.appendleft((due_ns, count - taken))

    def where(self) -> str | None:
        """Return where a handler in this process is; see `Connection.where`."""
        return self._connection.where()

    def _lost(self) -> UdfFaultError:
        return self._connection.closed(f"after {self.sent} points")


def _kind(data: bytes, start: int, end: int) -> int | ErrorResponse:
    """Return the kind of a response, its first byte; decode only errors.

    Raises:
        ProtocolError: it is not a response.
    """
    first = data[start] if end > start else 0
    if first in {POINT, END} and end - start > 1 and data[start + 1] == _DATA_TAG:
        return first
    response = RESPONSES.decode_in(data, start, end)
    return response if isinstance(response, ErrorResponse) else first
