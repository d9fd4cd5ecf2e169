"""Points as raw frames, recognised by their head.

Nearly all messages are points. The frame of a point is the same in both directions: the
frame's length, the tag of `point`, the point's length, the point. All before the point is
the head, which depends only on the point's length. So each head is encoded once and
remembered, and a frame that starts with a known head is recognised without decoding varints.
"""

from __future__ import annotations

from typing import Final, NewType

from kapudf_cli.protocol.framing import encode_varint

#: An undecoded point: a whole frame with the head that `point_head` returns.
RawPoint = NewType("RawPoint", bytes)

#: Tag of the field `point`, number 17 in both envelopes, of wire type 2 (length-delimited).
POINT_TAG: Final = encode_varint(17 << 3 | 2)

#: Longer points are too rare to be remembered.
_MAX_KNOWN_POINT_BYTES = 8192
#: The length of a head whose two lengths take one byte each, or two bytes each.
SHORT_HEAD_BYTES: Final = 4
LONG_HEAD_BYTES: Final = 6
#: The longest frame with a short head.
MAX_SHORT_FRAME_BYTES: Final = 0x7F + 1
#: The shortest frame with a long head (a point of 0x80 bytes), and the longest one.
MIN_LONG_FRAME_BYTES: Final = 0x80 + LONG_HEAD_BYTES
MAX_LONG_FRAME_BYTES: Final = 0x3FFF + 2
#: The longest frame that can be in KNOWN_FRAMES.
MAX_KNOWN_FRAME_BYTES: Final = _MAX_KNOWN_POINT_BYTES + LONG_HEAD_BYTES

#: The known heads, by the length of the point.
POINT_HEADS: Final[dict[int, bytes]] = {}
#: The length of the frame, by its short or long head.
KNOWN_FRAMES: Final[dict[bytes, int]] = {}


def point_head(size: int) -> bytes:
    """Return the head of a point of `size` bytes, and remember it."""
    head = POINT_HEADS.get(size)
    if head is None:
        envelope = POINT_TAG + encode_varint(size)
        head = encode_varint(len(envelope) + size) + envelope
        if size <= _MAX_KNOWN_POINT_BYTES:
            POINT_HEADS[size] = head
            # Heads of other lengths are too rare to be worth a third look-up for each frame.
            if len(head) in {SHORT_HEAD_BYTES, LONG_HEAD_BYTES}:
                KNOWN_FRAMES[head] = len(head) + size
    return head


def frame_bytes(data: bytes, start: int) -> int | None:
    """Return the length of the frame at `start`, None if its head is not known."""
    return KNOWN_FRAMES.get(data[start : start + LONG_HEAD_BYTES]) or KNOWN_FRAMES.get(
        data[start : start + SHORT_HEAD_BYTES]
    )


def point_run(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return where the run of known, complete frames in `data[start:end]` ends, and their number.

    The run ends at a frame with an unknown head. Decoding that frame makes its head known.
    """
    known = KNOWN_FRAMES.get
    count = 0
    while True:
        size = known(data[start : start + LONG_HEAD_BYTES]) or known(
            data[start : start + SHORT_HEAD_BYTES]
        )
        if size is None or start + size > end:
            return start, count
        start += size
        count += 1


def extend_point(raw: RawPoint, entries: bytes) -> bytes:
    """Return a point's frame with encoded map entries appended to the point.

    Protobuf merges bytes that are appended to a message: the entries are added to their maps.
    """
    size = len(raw)
    if size <= MAX_SHORT_FRAME_BYTES:
        start = SHORT_HEAD_BYTES
    elif MIN_LONG_FRAME_BYTES <= size <= MAX_LONG_FRAME_BYTES:
        start = LONG_HEAD_BYTES
    else:
        start = _skip_varint(raw, _skip_varint(raw, 0) + len(POINT_TAG))
    size += len(entries) - start
    return (POINT_HEADS.get(size) or point_head(size)) + raw[start:] + entries


def _skip_varint(data: bytes, place: int) -> int:
    """Return where the varint at `place` ends."""
    while data[place] > 0x7F:
        place += 1
    return place + 1


def extend_points(frames: bytes, entries: bytes, max_bytes: int) -> tuple[bytes, int, int]:
    """Return a run of points with the same encoded map entries appended to each.

    Args:
        frames: points whose heads are known.
        entries: the map entries, as for `extend_point`.
        max_bytes: the longest frame to return; the run ends before a longer one.

    Returns:
        The new frames, their number, and how many bytes of `frames` they took.
    """
    known, heads = KNOWN_FRAMES.get, POINT_HEADS.get
    growth = len(entries)
    pieces: list[bytes] = []
    start = count = 0
    end = len(frames)
    while start < end:
        # As in frame_bytes; a call for each point costs time.
        size = known(frames[start : start + LONG_HEAD_BYTES]) or known(
            frames[start : start + SHORT_HEAD_BYTES]
        )
        if size is None:
            break
        head_bytes = SHORT_HEAD_BYTES if size <= MAX_SHORT_FRAME_BYTES else LONG_HEAD_BYTES
        extended = size - head_bytes + growth
        head = heads(extended) or point_head(extended)
        if extended + len(head) > max_bytes:
            break
        following = start + size
        pieces += (head, frames[start + head_bytes : following], entries)
        start = following
        count += 1
    return b"".join(pieces), count, start
