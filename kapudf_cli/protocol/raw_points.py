"""The frames of points, told and made by what stands before the point.

Nearly all of the traffic is points, and a point's frame is the same in both
directions: a length, the tag of `point`, the point's length, the point. That head
follows from the point's length alone. So it is made once for each length, and a
frame that begins with a head made before is known without a look at its varints.
"""

from __future__ import annotations

from typing import Final, NewType

from kapudf_cli.protocol.framing import encode_varint

#: A point as it came, undecoded: a whole frame, with the head that `point_head` gives.
RawPoint = NewType("RawPoint", bytes)

#: Tag of the field `point`, number 17 in both envelopes, of wire type 2: a length and
#: that many bytes.
POINT_TAG: Final = encode_varint(17 << 3 | 2)

#: A task's points differ by some bytes only, and longer ones are too rare to remember.
_MAX_KNOWN_POINT_BYTES = 8192
#: A head is as long as this where both lengths take one byte, or both two.
SHORT_HEAD_BYTES: Final = 4
LONG_HEAD_BYTES: Final = 6
#: The longest frame with a short head; one more byte of point lengthens the head as well.
MAX_SHORT_FRAME_BYTES: Final = 0x7F + 1
#: The frames with a long head: of a point of 0x80 bytes, and what two bytes can say.
MIN_LONG_FRAME_BYTES: Final = 0x80 + LONG_HEAD_BYTES
MAX_LONG_FRAME_BYTES: Final = 0x3FFF + 2
#: The longest frame that can be in KNOWN_FRAMES.
MAX_KNOWN_FRAME_BYTES: Final = _MAX_KNOWN_POINT_BYTES + LONG_HEAD_BYTES

#: The head of a point of each length, as lengths turn up.
POINT_HEADS: Final[dict[int, bytes]] = {}
#: The length of the frame that begins with each short or long head made so far.
KNOWN_FRAMES: Final[dict[bytes, int]] = {}


def point_head(size: int) -> bytes:
    """Return what comes before a point of this many bytes in its frame, and remember it."""
    head = POINT_HEADS.get(size)
    if head is None:
        envelope = POINT_TAG + encode_varint(size)
        head = encode_varint(len(envelope) + size) + envelope
        if size <= _MAX_KNOWN_POINT_BYTES:
            POINT_HEADS[size] = head
            # The few between short and long are not worth a third look at each frame.
            if len(head) in {SHORT_HEAD_BYTES, LONG_HEAD_BYTES}:
                KNOWN_FRAMES[head] = len(head) + size
    return head


def point_run(data: bytes, start: int, end: int) -> tuple[int, int]:
    """Return where the run of known, whole frames at `data[start:end]` ends, and their number.

    It may end for a frame whose head is not known yet, be it a point's; the one who
    decodes that makes it known.
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


def extend_point(raw: RawPoint, entries: bytes) -> bytes | None:
    """Return a point's frame with encoded fields added to the point's end, as a whole frame.

    To protobuf, what is added to a message's bytes is merged into it: entries of a
    map are entered. None if the frame's head is neither short nor long.
    """
    size = len(raw)
    if size > MAX_SHORT_FRAME_BYTES:
        if not MIN_LONG_FRAME_BYTES <= size <= MAX_LONG_FRAME_BYTES:
            return None
        place = LONG_HEAD_BYTES
    else:
        place = SHORT_HEAD_BYTES
    size += len(entries) - place
    return (POINT_HEADS.get(size) or point_head(size)) + raw[place:] + entries
