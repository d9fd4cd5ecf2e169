"""The line of a partitioned handler: input that is not handled, in its order; sans-I/O.

The line splits input into parts. A part has the frames of consecutive points and batches, and a
share of them for each partition. Partitions return their shares in any order. A part leaves the
line when all of its shares are back and all parts before it have left. So output leaves in the
order of the input, and at any time the handled input is a prefix of the input.

If the order of output does not matter, a share that is back may be written before those of other
partitions. The frames of such shares are stored as a set of bits until their part leaves, so that
a new handler's output for them is discarded.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import itertools
from typing import TYPE_CHECKING, Final

from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.errors import ProtocolError, UndecodableMessageError
from kapudf_cli.protocol.framing import (
    DEFAULT_MAX_FRAME_BYTES,
    MAX_VARINT,
    FrameReader,
    frame_body,
)
from kapudf_cli.protocol.input_window import Frame
from kapudf_cli.protocol.raw_points import (
    KNOWN_FRAMES,
    LONG_HEAD_BYTES,
    MAX_SHORT_FRAME_BYTES,
    MIN_LONG_FRAME_BYTES,
    SHORT_HEAD_BYTES,
    RawPoint,
)
from kapudf_cli.protocol.request_reader import RequestReader
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kapudf_cli.agent.partition_messages import Failure, Result
    from kapudf_cli.protocol.order import IncomingOrder
    from kapudf_cli.protocol.request_reader import ReadRequest

_DATA: Final = frozenset({BeginBatch, Point, EndBatch})
#: So many groups are remembered with their partitions.
_MAX_KNOWN_GROUPS: Final = 100_000
#: Tags of fields of a point, as they are encoded: time, name, database, retention policy, group.
_TIME, _NAME, _DATABASE, _POLICY, _GROUP = 0x08, 0x12, 0x1A, 0x22, 0x2A
#: Bytes of a varint that another one follows are not below this.
_CONTINUES: Final = 0x80
#: The bytes of a time after 1971 and before 2262, in nanoseconds, with its tag.
_TIME_BYTES: Final = 10


@functools.lru_cache(_MAX_KNOWN_GROUPS)
def partition_of(group: bytes, count: int) -> int:
    """Return which of `count` partitions has a group, the same in every process."""
    digest = hashlib.blake2b(group, digest_size=8).digest()
    return int.from_bytes(digest, "little") % count


def group_of(raw: RawPoint) -> bytes:
    """Return the group of an undecoded point; b"" if the bytes are not a point.

    The point is not decoded if it has the form that Kapacitor sends.
    """
    place = _place_of_group(raw)
    if place is not None:
        return raw[place + 1 : place + 1 + raw[place]]
    try:
        (message,) = FrameReader(REQUESTS.decode_in, len(raw)).feed(raw)
    except ProtocolError:
        return b""
    return message.group.encode() if isinstance(message, Point) else b""


def _place_of_group(raw: RawPoint) -> int | None:
    """Return where the length of the group is; None unless it follows a time as it is today."""
    size = len(raw)
    if MAX_SHORT_FRAME_BYTES < size < MIN_LONG_FRAME_BYTES:
        return None
    start = SHORT_HEAD_BYTES if size <= MAX_SHORT_FRAME_BYTES else LONG_HEAD_BYTES
    place = start + _TIME_BYTES
    try:
        if raw[start] != _TIME or not raw[place - 1] < _CONTINUES <= min(
            raw[start + 1 : place - 1]
        ):
            return None
        for tag in (_NAME, _DATABASE, _POLICY):
            # The length takes one byte if the text is short.
            if raw[place] == tag and raw[place + 1] < _CONTINUES:
                place += 2 + raw[place + 1]
        if raw[place] == _GROUP and raw[place + 1] < _CONTINUES:
            return place + 1
    except IndexError:
        pass
    return None


class Part:
    """Consecutive frames of the input, with a share for each partition.

    Attributes:
        start: where the first frame starts in the input, in bytes.
        end: where the frame after the last one starts.
        route: the partition of each frame.
        shares: the frames of each partition that gets any.
        in_batch: whether it begins inside a batch.
        begins: the numbers of the frames that begin a batch.
        ends: the numbers of those that end one.
        results: what the partitions have returned.
        written: the partitions whose output is written, by this agent or an earlier one.
        done: their frames, as bits.
    """

    __slots__ = (
        "begins",
        "done",
        "end",
        "ends",
        "in_batch",
        "results",
        "route",
        "shares",
        "start",
        "written",
    )

    def __init__(self, start: int, *, in_batch: bool) -> None:
        """Begin without frames at an offset."""
        self.start = self.end = start
        self.in_batch = in_batch
        self.route = bytearray()
        self.shares: dict[int, bytes] = {}
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.results: dict[int, Result] = {}
        self.written: set[int] = set()
        self.done = 0

    @property
    def is_done(self) -> bool:
        """Whether all partitions have returned their shares."""
        return len(self.results) == len(self.shares)

    def first_failure(self) -> tuple[int, Failure] | None:
        """Return the number of the first frame that was not handled, and why; None if all were."""
        found = [
            (self.place(partition, result.failure.frame), result.failure)
            for partition, result in self.results.items()
            if result.failure is not None
        ]
        return min(found, key=lambda each: each[0], default=None)

    def outputs(self, count: int) -> list[bytes]:
        """Return the output for the first `count` frames that is not written, in their order."""
        route = self.route[:count]
        if self.written:
            route = route.translate(None, bytes(self.written))
        left = {number: iter(result.outputs) for number, result in self.results.items()}
        counted = {number: result.counts for number, result in self.results.items()}
        if all(counts is None for counts in counted.values()):
            following = {number: outputs.__next__ for number, outputs in left.items()}
            return [following[number]() for number in route]
        sizes = {
            number: itertools.repeat(1) if counts is None else iter(counts)
            for number, counts in counted.items()
        }
        return [
            output
            for number in route
            for output in itertools.islice(left[number], next(sizes[number]))
        ]

    @property
    def only_points(self) -> bool:
        """Whether all that was written are points."""
        return all(result.only_points for result in self.results.values())

    def tally(self, count: int) -> tuple[int, int, int, int]:
        """Return the points, batches, failures and dropped points of the first `count` frames."""
        batches = sum(number < count for number in self.ends)
        points = count - batches - sum(number < count for number in self.begins)
        failures = dropped = 0
        for partition, result in self.results.items():
            for each in result.passed:
                if self.place(partition, each.frame) < count:
                    failures += each.failures
                    dropped += each.points
        return points, batches, failures, dropped

    def ends_in_batch(self, count: int) -> bool:
        """Return whether a batch is open after the first `count` frames."""
        begun = max((number for number in self.begins if number < count), default=-1)
        ended = max((number for number in self.ends if number < count), default=-1)
        return self.in_batch if begun == ended else begun > ended

    def note_written(self, partition: int) -> None:
        """Note that the output of a partition is written."""
        self.written.add(partition)
        self.done |= sum(1 << place for place, each in enumerate(self.route) if each == partition)

    def place(self, partition: int, number: int) -> int:
        """Return the number in the part of a frame that has this number in a share."""
        places = (place for place, each in enumerate(self.route) if each == partition)
        return next(itertools.islice(places, number, None))


class PartitionLine:
    """Splits input into parts, and keeps it until it is handled.

    Attributes:
        offset: where the first frame starts that is not handled, in bytes.
        parts: the parts that have not left the line.
        frames: how many frames they have.
        batch: the partition of the batch that is open where the next part begins; None outside
            of a batch.
        next_offset: where the frame after those in parts starts.
        error: why no more frames can be split off; None if they can.
    """

    def __init__(self, count: int, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        """Begin at offset 0, with a number of partitions and a limit for the length of a frame."""
        self._count = count
        self._max_frame_bytes = max_frame_bytes
        # The partitions of points, by their bytes from the end of the time to that of the group. In
        # the last point that was new, the length of the group was `_group_at` bytes after the time.
        self._numbers: dict[bytes, int] = {}
        self._group_at = 0
        # Input as it was read: the first piece starts at `_start`, the last one ends at `_end`.
        self._pieces: collections.deque[bytes] = collections.deque()
        self._start = self._end = 0
        self.offset = 0
        self.parts: collections.deque[Part] = collections.deque()
        self.frames = 0
        self.batch: int | None = None
        self.error: ProtocolError | None = None
        self._begin(0)

    def _begin(self, offset: int) -> None:
        self._reader = RequestReader(self._max_frame_bytes)
        self._reader.raw = True
        self._reader.resume_at(offset)
        self._reading: Iterator[ReadRequest] = iter(())
        self._unread: list[bytes] = []
        # The frame after those in parts.
        self._next: ReadRequest | None = None
        self.next_offset = offset

    # --- input ---

    def feed(self, data: bytes) -> None:
        """Add input."""
        self._pieces.append(data)
        self._end += len(data)
        self._unread.append(data)

    def _bytes(self, start: int, end: int) -> bytes:
        """Return the input between two offsets; it is not handled."""
        pieces = []
        place = self._end
        for piece in reversed(self._pieces):
            if place <= start:
                break
            place -= len(piece)
            pieces.append(piece[max(start - place, 0) : max(end - place, 0)])
        return b"".join(reversed(pieces))

    def peek(self) -> ReadRequest | None:
        """Return the frame after those in parts, None if there is none."""
        if self._next is None and self._unread and self.error is None:
            self._reading = iter(self._reader.feed(b"".join(self._unread)))
            self._unread.clear()
            self._advance()
        return self._next

    def _advance(self) -> ReadRequest | None:
        """Go on to the next frame, and return it."""
        try:
            self._next = next(self._reading, None)
        except ProtocolError as error:
            error.offset = self._reader.offset
            self.error, self._next = error, None
        self.next_offset = self._reader.offset
        return self._next

    def take(self) -> Frame:
        """Take the next frame, which is no data."""
        message, offset = self._next, self.next_offset
        assert message is not None
        self._advance()
        return Frame(offset, self.next_offset, message)

    def split(
        self, order: IncomingOrder, *, most: int, until: int, stops_before_batch: bool = False
    ) -> Part | None:
        """Put frames with data into a part at the end of the line.

        Args:
            order: the state of the conversation, which is updated.
            most: the most frames.
            until: no frame is taken that starts at this offset or later.
            stops_before_batch: whether the part ends before the next BeginBatch.

        Returns:
            The part; None if the next frame may not come now, or must wait.
        """
        part = Part(self.next_offset, in_batch=self.batch is not None)
        route, reader = part.route, self._reader
        shares: dict[int, list[bytes]] = {number: [] for number in range(self._count)}
        takes = {number: share.append for number, share in shares.items()}

        def take_run(data: bytes, start: int, end: int) -> int:
            end = min(end, start + until - reader.offset)
            return self._take_points(
                data, start, end, most=most - len(route), route=route, takes=takes
            )

        while self._next is not None and len(route) < most and self.next_offset < until:
            message, offset = self._next, self.next_offset
            kind = kind_of(message)
            if kind is None or kind not in _DATA or (kind is BeginBatch and stops_before_batch):
                break
            if not self._receive(order, kind):
                break
            number = self._number_of(message, kind)
            self._note_batch(part, kind, number)
            route.append(number)
            if isinstance(message, bytes):
                takes[number](message)
                reader.take_run = take_run
                self._advance()
                reader.take_run = None
            else:
                self._advance()
                takes[number](self._bytes(offset, self.next_offset))
        if not route:
            return None
        part.end = self.next_offset
        part.shares = {number: b"".join(share) for number, share in shares.items() if share}
        self.parts.append(part)
        self.frames += len(route)
        return part

    def _take_points(
        self,
        data: bytes,
        start: int,
        end: int,
        *,
        most: int,
        route: bytearray,
        takes: Mapping[int, Callable[[bytes], None]],
    ) -> int:
        """Take points from `data[start:end]`; see `TakeRun`.

        The hot path: what is done here for a point is done for every point.

        Args:
            data: input.
            start: where a frame starts in it.
            end: where the points end at the latest.
            most: the most points.
            route: gets the partition of each point.
            takes: get the points of each partition.
        """
        known, number_of, note = KNOWN_FRAMES.get, self._numbers.get, route.append
        batch, group_at, time = self.batch, self._group_at, b""
        with contextlib.suppress(IndexError):  # `data` ends before the group of a short point.
            for _ in range(most):
                if (size := known(data[start : start + LONG_HEAD_BYTES])) is not None:
                    place = start + LONG_HEAD_BYTES + _TIME_BYTES
                elif (size := known(data[start : start + SHORT_HEAD_BYTES])) is not None:
                    place = start + SHORT_HEAD_BYTES + _TIME_BYTES
                else:
                    break
                following = start + size
                if following > end:
                    break
                if batch is None:
                    group_end = place + group_at + 1 + data[place + group_at]
                    number = number_of(data[place:group_end])
                    if data[place - _TIME_BYTES : place] != time:
                        # Many points have the same time. Its length is that of a time of today.
                        time = data[place - _TIME_BYTES : place]
                        if time[0] != _TIME or min(time[1:-1]) < _CONTINUES:
                            number, time = None, b""
                    if number is None:
                        number = self._number_of_point(RawPoint(data[start:following]))
                        group_at = self._group_at
                else:
                    number = batch
                takes[number](data[start:following])
                note(number)
                start = following
        return start

    def _receive(self, order: IncomingOrder, kind: type) -> bool:
        """Check that a frame may come now; if not, no more frames are split off."""
        try:
            order.receive(kind)
        except ProtocolError as error:
            error.offset = self.next_offset
            self.error, self._next = error, None
            return False
        return True

    def _note_batch(self, part: Part, kind: type, number: int) -> None:
        if kind is BeginBatch:
            part.begins.append(len(part.route))
            self.batch = number
        elif kind is EndBatch:
            part.ends.append(len(part.route))
            self.batch = None

    def _number_of(self, message: ReadRequest, kind: type) -> int:
        """Return the partition of a frame."""
        if kind is not BeginBatch and self.batch is not None:
            return self.batch
        if isinstance(message, bytes):
            return self._number_of_point(message)
        group = message.group if isinstance(message, BeginBatch) else ""
        return partition_of(group.encode(), self._count)

    def _number_of_point(self, raw: RawPoint) -> int:
        """Return the partition of a point outside of a batch, and remember it for the next one."""
        number = partition_of(group_of(raw), self._count)
        place = _place_of_group(raw)
        if place is not None:
            if len(self._numbers) >= _MAX_KNOWN_GROUPS:
                self._numbers.clear()
            is_short = len(raw) <= MAX_SHORT_FRAME_BYTES
            time_end = (SHORT_HEAD_BYTES if is_short else LONG_HEAD_BYTES) + _TIME_BYTES
            self._numbers[raw[time_end : place + 1 + raw[place]]] = number
            self._group_at = place - time_end
        return number

    # --- results ---

    def note(self, partition: int, result: Result) -> bool:
        """Note the result for the oldest share of a partition that has none yet.

        Returns:
            Whether there is such a share.
        """
        for part in self.parts:
            if partition in part.shares and partition not in part.results:
                part.results[partition] = result
                return True
        return False

    @property
    def busy(self) -> set[int]:
        """The partitions that have not returned all of their shares."""
        return {each for part in self.parts for each in part.shares.keys() - part.results.keys()}

    def first_done(self) -> Part | None:
        """Return the first part if all of its shares are back."""
        return self.parts[0] if self.parts and self.parts[0].is_done else None

    def overtaking(self) -> Iterator[tuple[Part, int]]:
        """Yield the shares that may be written before others, as parts and partitions.

        Output of a partition is written in order. What follows a failure waits for it.
        """
        waiting: set[int] = set()
        for part in self.parts:
            for number in part.shares.keys() - part.written - waiting:
                result = part.results.get(number)
                if result is not None and result.may_overtake:
                    yield part, number
                if number not in part.written:
                    waiting.add(number)
            if len(waiting) == self._count:
                return

    @property
    def done(self) -> int:
        """Which frames from `offset` on have their output written, as bits."""
        done = place = 0
        for part in self.parts:
            done |= part.done << place
            place += len(part.route)
        return done

    @property
    def unanswered(self) -> int:
        """How many frames of the parts do not have their output written."""
        return self.frames - self.done.bit_count()

    def leave(self) -> None:
        """Remove the first part, and count its input as handled."""
        part = self.parts.popleft()
        self.frames -= len(part.route)
        self.advance(part.end)

    def place(self, part: Part, number: int) -> tuple[int, int]:
        """Return where a frame of the first part starts and ends in the input."""
        reader = FrameReader(frame_body, MAX_VARINT)
        reader.resume_at(part.start)
        frames = self._bytes(part.start, part.end)
        starts = [*(reader.offset for _ in reader.feed(frames)), part.end]
        return starts[number], starts[number + 1]

    def advance(self, offset: int) -> None:
        """Forget the input before `offset`: it was handled."""
        self.offset = offset
        pieces = self._pieces
        while pieces and self._start + len(pieces[0]) <= offset:
            self._start += len(pieces.popleft())

    def rewind(self, *, batch: int | None) -> None:
        """Split the input from `offset` on again, for a new handler; see `batch`."""
        self.parts.clear()
        self.frames = 0
        self.batch = batch
        self.error = None
        self._begin(self.offset)
        self._unread.append(self.rest)

    @property
    def is_between_batches(self) -> bool:
        """Whether the input that is handled ends outside of a batch."""
        return not self.parts[0].in_batch if self.parts else self.batch is None

    @property
    def unhandled_bytes(self) -> int:
        """The length of the input that is not handled."""
        return self._end - self.offset

    # --- see `Input` in `recovery` ---

    @property
    def rest(self) -> bytes:
        """The input that is not handled."""
        return self._bytes(self.offset, self._end)

    def resume_at(self, offset: int) -> None:
        """Set the offset of the first byte; call it before anything is fed."""
        self.offset = self._start = self._end = offset
        self._begin(offset)

    def finish(self) -> None:
        """Check that the input ended at the end of a frame.

        Raises:
            TruncatedFrameError: it ended inside a frame.
        """
        self._reader.finish()


def kind_of(message: ReadRequest) -> type | None:
    """Return the class of a request, None if it is unknown."""
    if isinstance(message, UndecodableMessageError):
        return message.kind
    return Point if isinstance(message, bytes) else type(message)
