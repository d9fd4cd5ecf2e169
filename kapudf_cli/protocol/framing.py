"""Frames: an unsigned LEB128 varint that holds a length, and that many bytes.

`FrameReader` is fed whatever pieces the input comes in and yields what whole
frames hold. It holds at most one unfinished frame, and never more of it than has
arrived: a length is a claim, and no memory is taken on the sender's word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from kapudf_cli.protocol.errors import FrameTooLongError, TruncatedFrameError, VarintTooLongError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

T = TypeVar("T")

#: Makes something of `data[start:end]`, the body of a frame. The slice is left to it,
#: for it may know of a part that it need not copy.
Decode: TypeAlias = "Callable[[bytes, int, int], T]"

#: No frame of a real task comes near: a point is some hundred bytes, and the one
#: message that grows is a snapshot. 64 MiB is the default of max_frame_bytes.
DEFAULT_MAX_FRAME_BYTES = 64 * 1024 * 1024

#: Kapacitor reads and writes the length as a 32-bit unsigned integer.
MAX_VARINT = 0xFFFF_FFFF
#: 32 bits in groups of seven take five bytes.
_LAST_VARINT_SHIFT = 28


#: The time in a heartbeat, which no request has: nobody has asked.
HEARTBEAT_TIME = -1
#: A whole frame: an unasked-for KeepaliveResponse of that time, the field 3 of a Response.
#: Any response resets Kapacitor's timer. Spelt out for the supervisor, which knows no
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
    """Make of a frame its body as it is."""
    return data[start:end]


class FrameReader(Generic[T]):
    """Cuts a stream of bytes into frames, in whatever pieces it arrives.

    Attributes:
        decode: what each frame is handed to; another one counts from the next frame on.
        offset: where the frame in hand starts, its length included, in bytes
            from the first byte ever fed. Every frame before it has been taken;
            at rest, it is where the next or the unfinished frame starts.
    """

    __slots__ = ("_base", "_data", "_fed", "_limit", "_needed", "_pending", "decode", "offset")

    def __init__(self, decode: Decode[T], max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES) -> None:
        self.decode = decode
        self._limit = max_frame_bytes
        self._fed = 0
        self._pending = bytearray()
        # The bytes in hand while they are cut, and how many were fed before them.
        self._data = b""
        self._base = 0
        # How long `_pending` must be before another look at it can tell more.
        # Without it, a large frame that comes in small pieces would be copied
        # once per piece.
        self._needed = 0
        self.offset = 0

    def feed(self, data: bytes) -> Iterator[T]:
        """Take in `data` and yield what each frame that is now whole decodes to.

        The iterator must be run to its end before `feed` is called again.

        Raises:
            ProtocolError: as the decoding raises it.
            VarintTooLongError: a length takes more than 32 bits.
            FrameTooLongError: a length is over the limit. Frames before the
                faulty one have been yielded by then.
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
            start = yield from self._take_known(data, start, end, base)
            if start == end:
                break
            self.offset = base + start
            length = data[start]
            place = start + 1
            if length > 0x7F:
                # Two bytes hold the length of nearly every point.
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

    def _take_known(self, data: bytes, start: int, end: int, base: int) -> Generator[T, None, int]:
        """Yield what frames hold that can be told at a glance; return where that ends.

        It may take any number of whole frames from `start` on, and none. A reader that
        knows more of its frames has it do so; this one knows nothing of them.

        Args:
            data: the bytes in hand.
            start: where a frame begins in them.
            end: where they end.
            base: how many were fed before them; `offset` is to be kept by it.
        """
        del data, end, base
        yield from ()
        return start

    def _long_length(self, data: bytes, place: int) -> tuple[int, int]:
        """Return a length of any size and the place after it, which is 0 if it is not whole."""
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
        """What has come from `offset` on: at rest, that of a frame that is not whole."""
        if self._pending:
            return bytes(self._pending)
        return self._data[self.offset - self._base :]

    def resume_at(self, offset: int) -> None:
        """Count from an offset on, where a frame starts; before anything is fed."""
        self._fed = self.offset = offset

    def finish(self) -> None:
        """Say that the input has ended.

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
