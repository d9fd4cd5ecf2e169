"""Frames: a length as an unsigned LEB128 varint, and that many bytes.

`FrameReader` is fed with input in pieces of any size, and yields the decoded content of
each complete frame. It stores at most one incomplete frame, and allocates memory only for
bytes that have arrived, not for the announced length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from kapudf_cli.protocol.errors import FrameTooLongError, TruncatedFrameError, VarintTooLongError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

T = TypeVar("T")

#: Decodes `data[start:end]`, the body of a frame. It slices itself, to copy no more than it
#: needs.
Decode: TypeAlias = "Callable[[bytes, int, int], T]"

#: The default of max_frame_bytes. Real frames are far shorter: a point has some hundred bytes.
#: Only snapshots can be long.
DEFAULT_MAX_FRAME_BYTES = 64 * 1024 * 1024

#: Kapacitor reads and writes the length as a 32-bit unsigned integer.
MAX_VARINT = 0xFFFF_FFFF
#: A 32-bit number takes five bytes, of seven bits each.
_LAST_VARINT_SHIFT = 28

#: The time in a heartbeat. No keepalive request has it.
HEARTBEAT_TIME = -1
#: A whole frame: an unrequested KeepaliveResponse (field 3 of a Response) with that time. Any
#: response resets Kapacitor's timer. As bytes, because the supervisor does not import
#: protobuf.
HEARTBEAT = b"\x0d\x1a\x0b\x08" + b"\xff" * 9 + b"\x01"


def encode_varint(value: int) -> bytes:
    """Return `value` (0 to 2**32 - 1) as an unsigned LEB128 varint of 1 to 5 bytes."""
    if not 0 <= value <= MAX_VARINT:
        message = f"{value} does not fit into an unsigned 32-bit varint"
        raise ValueError(message)
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def frame_body(data: bytes, start: int, end: int) -> bytes:
    """Return the body of a frame as bytes; see `Decode`."""
    return data[start:end]


class FrameReader(Generic[T]):
    """Splits a stream of bytes into frames and decodes them.

    Attributes:
        decode: decodes the body of a frame. A change applies from the next frame on.
        offset: where the current frame starts, with its length, in bytes from the first byte
            ever fed. Between two calls of `feed`, where the next frame starts.
    """

    __slots__ = ("_base", "_data", "_fed", "_limit", "_needed", "_pending", "decode", "offset")

    def __init__(self, decode: Decode[T], max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self.decode = decode
        self._limit = max_frame_bytes
        self._fed = 0
        self._pending = bytearray()
        # The bytes that `feed` works on, and how many were fed before them.
        self._data = b""
        self._base = 0
        # `feed` only appends to `_pending` until it has this length. Otherwise a long frame
        # in small pieces would be copied once per piece.
        self._needed = 0
        self.offset = 0

    def feed(self, data: bytes) -> Iterator[T]:
        """Add `data` to the input, and yield the decoded content of each complete frame.

        The iterator must be exhausted before `feed` is called again. Frames before a faulty
        one are yielded before it raises.

        Raises:
            ProtocolError: `decode` raised it.
            VarintTooLongError: a length has more than 32 bits.
            FrameTooLongError: a length is over the limit.
        """
        self._fed += len(data)
        if self._pending:
            if len(self._pending) + len(data) < self._needed:
                self._pending += data
                return
            data = b"".join((self._pending, data))
            self._pending = bytearray()
        base = self._fed - len(data)
        end = len(data)
        start = 0
        self._data, self._base = data, base
        while start < end:
            start = yield from self._decode_known(data, start, end, base)
            if start == end:
                break
            self.offset = base + start
            length = data[start]
            place = start + 1
            if length > 0x7F:
                # The length of nearly every point has two bytes.
                if place < end and (byte := data[place]) <= 0x7F:
                    length = (length & 0x7F) | byte << 7
                    place += 1
                else:
                    length, place = self._long_length(data, start)
                    if place == 0:
                        self._keep(data[start:], needed=end - start + 1)
                        return
            if length > self._limit:
                raise FrameTooLongError(length, self._limit, offset=self.offset)
            following = place + length
            if following > end:
                self._keep(data[start:], needed=following - start)
                return
            yield self.decode(data, place, following)
            start = following
        self.offset = base + start
        self._data = b""

    def _decode_known(
        self, data: bytes, start: int, end: int, base: int
    ) -> Generator[T, None, int]:
        """Yield the content of complete frames from `start` on that need no general decoding.

        A hook for subclasses; here it handles no frame.

        Args:
            data: the bytes that `feed` works on.
            start: where a frame starts in them.
            end: where they end.
            base: how many bytes were fed before them, to update `offset`.

        Returns:
            Where the next frame starts.
        """
        del data, end, base
        yield from ()
        return start

    def _long_length(self, data: bytes, place: int) -> tuple[int, int]:
        """Return a length of any size and the position after it, 0 if it is incomplete."""
        length = 0
        for shift in range(0, _LAST_VARINT_SHIFT + 1, 7):
            if place == len(data):
                return 0, 0
            byte = data[place]
            place += 1
            length |= (byte & 0x7F) << shift
            if byte <= 0x7F:
                if length > MAX_VARINT:
                    break
                return length, place
        problem = "a frame's length takes more than 32 bits"
        raise VarintTooLongError(problem, offset=self.offset)

    @property
    def rest(self) -> bytes:
        """The input from `offset` on. Between two calls of `feed`: the incomplete frame."""
        if self._pending:
            return bytes(self._pending)
        return self._data[self.offset - self._base :]

    def resume_at(self, offset: int) -> None:
        """Set the offset of the first byte; call it before anything is fed."""
        self._fed = self.offset = offset

    def finish(self) -> None:
        """Check that the input ended at the end of a frame.

        Raises:
            TruncatedFrameError: it ended inside a frame.
        """
        if self._pending:
            received = len(self._pending)
            length_is_whole = any(byte <= 0x7F for byte in self._pending[:5])
            raise TruncatedFrameError(
                received,
                self._needed if length_is_whole else None,
                offset=self.offset,
            )

    def _keep(self, unfinished: bytes, *, needed: int) -> None:
        self._pending += unfinished
        self._needed = needed
        self._data = b""
