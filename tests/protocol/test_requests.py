"""The request reader: runs, raw and decoded points give the same as single frames."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.protocol.codec import REQUESTS, raw_or_decode_in
from kapudf_cli.protocol.errors import FrameTooLongError, ProtocolError, UndecodableMessageError
from kapudf_cli.protocol.framing import FrameReader, encode_varint
from kapudf_cli.protocol.raw_points import KNOWN_FRAMES, point_head, point_run
from kapudf_cli.protocol.request_reader import RequestReader
from kapudf_cli.protocol.udf_pb2 import KeepaliveRequest, Point
from tests.examples import examples

if TYPE_CHECKING:
    from kapudf_cli.protocol.framing import Decode


def frame(body: bytes) -> bytes:
    return encode_varint(len(body)) + body


# Lengths at which the form of heads changes, and lengths of usual points.
sizes = st.integers(0, 20) | st.integers(115, 135) | st.integers(300, 305) | st.just(9000)
point_frames = sizes.map(lambda size: REQUESTS.encode(Point(name="n" * size)))
# An invalid point, two points, a length with too many bytes, no message.
odd_frames = st.sampled_from(
    [
        point_head(200) + b"\xff" * 200,
        point_head(20) + b"\xff" * 20,
        frame(b"\x8a\x01\x02\x08\x05\x8a\x01\x02\x08\x06"),
        frame(b"\x8a\x01\x82\x00\x08\x05"),
        b"\x86\x80\x00" + b"\x8a\x01\x82\x00\x08\x05",
        frame(b"\x8a\x01\xff\xff" + b"x" * 300),
        frame(b""),
        b"\xff" * 6,
    ]
)
keepalives = st.integers(0, 1 << 40).map(lambda time: REQUESTS.encode(KeepaliveRequest(time=time)))
streams = st.lists(
    point_frames | point_frames | point_frames | keepalives | odd_frames, max_size=30
)
cuts = st.lists(st.integers(0, 1 << 20), max_size=8)


def shown(message: object) -> object:
    """Return a message or an error in a form that can be compared."""
    return (type(message), str(message)) if isinstance(message, ProtocolError) else message


def decoding(decode: Decode[Any]) -> Decode[Any]:
    """Decode a frame; return the error if that fails."""

    def decode_or_error(data: bytes, start: int, end: int) -> object:
        try:
            return decode(data, start, end)
        except UndecodableMessageError as error:
            return error

    return decode_or_error


def told(reader: FrameReader[Any], pieces: list[bytes]) -> list[tuple[int, object]]:
    """Return each message with its offset, and the final error."""
    found: list[tuple[int, object]] = []
    try:
        for piece in pieces:
            for message in reader.feed(piece):
                found.append((reader.offset, shown(message)))  # noqa: PERF401 - the offset as of now
        reader.finish()
    except ProtocolError as error:
        found.append((reader.offset, (type(error), str(error))))
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


@examples(3.0)
@given(frames=streams, places=cuts, raw=st.booleans())
def test_known_frames_decode_like_any_frames(
    *, frames: list[bytes], places: list[int], raw: bool
) -> None:
    pieces = cut(b"".join(frames), places)
    decode: Decode[object] = raw_or_decode_in if raw else REQUESTS.decode_in
    reader = RequestReader()
    reader.raw = raw
    assert told(reader, pieces) == told(FrameReader(decoding(decode)), pieces)


@examples(3.0)
@given(streams, cuts, st.integers(1, 3), st.integers(0, 2))
def test_runs_are_the_points_that_would_have_come_one_by_one(
    frames: list[bytes], places: list[int], taken: int, left: int
) -> None:
    pieces = cut(b"".join(frames), places)
    reader = RequestReader()
    reader.raw = True
    one_by_one = FrameReader(decoding(raw_or_decode_in))
    found: list[tuple[int, object]] = []
    offered = 0

    def take(data: bytes, start: int, end: int) -> int:
        """Handle one of `taken` runs, without its last `left` frames."""
        nonlocal offered
        offered += 1
        if offered % taken:
            return start
        following, count = point_run(data, start, end)
        single = FrameReader(raw_or_decode_in)
        points = [(single.offset, message) for message in single.feed(data[start:following])]
        handled = points[: max(count - left, 0)]
        found.extend((reader.offset + offset, message) for offset, message in handled)
        return start + points[len(handled)][0] if len(handled) < count else following

    reader.take_run = take
    try:
        for piece in pieces:
            for message in reader.feed(piece):
                found.append((reader.offset, shown(message)))  # noqa: PERF401 - the offset as of now
        reader.finish()
    except ProtocolError as error:
        found.append((reader.offset, (type(error), str(error))))
    assert found == told(one_by_one, pieces)


def test_a_run_has_a_maximum_length() -> None:
    one = REQUESTS.encode(Point(name="n" * 300))
    list(FrameReader(REQUESTS.decode_in).feed(one))  # known from here on
    reader = RequestReader()
    reader.raw = True
    runs: list[int] = []

    def take(data: bytes, start: int, end: int) -> int:
        following, _ = point_run(data, start, end)
        runs.append(following - start)
        return following

    reader.take_run = take
    assert list(reader.feed(one * 1000)) == []
    assert sum(runs) == len(one) * 1000
    assert max(runs) <= 96 * 1024


@pytest.mark.parametrize("raw", [False, True])
def test_a_known_frame_over_the_limit_is_refused(*, raw: bool) -> None:
    data = REQUESTS.encode(Point(name="n" * 300))
    list(FrameReader(REQUESTS.decode_in).feed(data))
    assert data[:6] in KNOWN_FRAMES
    reader = RequestReader(max_frame_bytes=300)
    reader.raw = raw
    reader.take_run = lambda data, start, end: point_run(data, start, end)[0]
    with pytest.raises(FrameTooLongError):
        list(reader.feed(data))


def test_the_number_of_known_heads_is_limited() -> None:
    before = len(KNOWN_FRAMES)
    for size in range(10_000, 10_100):
        point_head(size)
    assert len(KNOWN_FRAMES) == before
