"""Framing: a table of vectors, and properties for any bytes."""

from __future__ import annotations

import contextlib
import itertools
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.protocol.errors import (
    FrameTooLongError,
    ProtocolError,
    TruncatedFrameError,
    VarintTooLongError,
)
from kapudf_cli.protocol.framing import (
    DEFAULT_MAX_FRAME_BYTES,
    MAX_VARINT,
    FrameReader,
    encode_varint,
    frame_body,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Has a varint of three bytes, so that the table reaches it with lengths of each size.
LIMIT = 20_000


@dataclass(frozen=True)
class Unfinished:
    """The incomplete or invalid frame at the end of a vector, and its expected error."""

    received: int
    expected: int | None
    rest: bytes
    frame: bytes


@dataclass(frozen=True)
class Vector:
    """Input, the frames in it, and the reader's offset after them."""

    data: bytes
    frames: tuple[bytes, ...] = ()
    offset: int = 0
    error: type[ProtocolError] | None = None
    unfinished: Unfinished | None = None


def between(data: bytes, *frames: bytes) -> Vector:
    """Return a vector that ends between two frames."""
    return Vector(data, frames, offset=len(data))


VECTORS = {
    # Whole frames.
    "no input": between(b""),
    "an empty frame": between(b"\x00", b""),
    "one byte": between(b"\x01a", b"a"),
    "the longest length of one byte": between(b"\x7f" + b"a" * 127, b"a" * 127),
    "the shortest length of two bytes": between(b"\x80\x01" + b"a" * 128, b"a" * 128),
    "a length of two bytes": between(b"\xac\x02" + b"a" * 300, b"a" * 300),
    "the longest length of two bytes": between(b"\xff\x7f" + b"a" * 16_383, b"a" * 16_383),
    "the shortest length of three bytes": between(b"\x80\x80\x01" + b"a" * 16_384, b"a" * 16_384),
    "exactly the limit": between(b"\xa0\x9c\x01" + b"a" * 20_000, b"a" * 20_000),
    "0 in two bytes": between(b"\x80\x00", b""),
    "0 in five bytes": between(b"\x80\x80\x80\x80\x00", b""),
    "3 in two bytes": between(b"\x83\x00abc", b"abc"),
    "3 in five bytes": between(b"\x83\x80\x80\x80\x00abc", b"abc"),
    "several frames": between(b"\x01a\x00\x02bc\x00\x03def", b"a", b"", b"bc", b"", b"def"),
    "frames that look like lengths": between(b"\x02\xff\xff\x01\x80", b"\xff\xff", b"\x80"),
    # Frames that are refused.
    "the limit and 1": Vector(b"\xa1\x9c\x01", error=FrameTooLongError),
    "the limit and 1, all of it": Vector(b"\xa1\x9c\x01" + b"a" * 20_001, error=FrameTooLongError),
    "over the limit after good frames": Vector(
        b"\x01a\x02bc\xa1\x9c\x01", (b"a", b"bc"), 5, error=FrameTooLongError
    ),
    "2**32 - 1": Vector(b"\xff\xff\xff\xff\x0f", error=FrameTooLongError),
    "2**32": Vector(b"\x80\x80\x80\x80\x10", error=VarintTooLongError),
    "2**35 - 1": Vector(b"\xff\xff\xff\xff\x7f", error=VarintTooLongError),
    "2**32 after good frames": Vector(
        b"\x00\x03abc\x80\x80\x80\x80\x10", (b"", b"abc"), 5, error=VarintTooLongError
    ),
    "0 in six bytes": Vector(b"\x80\x80\x80\x80\x80\x00", error=VarintTooLongError),
    "terabytes": Vector(b"\x80\x80\x80\x80\x80\x80\x01", error=VarintTooLongError),
    "a sixth byte is due": Vector(b"\x01a\xff\xff\xff\xff\xff", (b"a",), 2, VarintTooLongError),
    # Incomplete frames.
    "a length breaks off": Vector(b"\x83", unfinished=Unfinished(1, None, b"\x00abc", b"abc")),
    "a length breaks off before its fifth byte": Vector(
        b"\x83\x80\x80\x80", unfinished=Unfinished(4, None, b"\x00abc", b"abc")
    ),
    "a length breaks off after good frames": Vector(
        b"\x01a\x00\x81", (b"a", b""), 3, unfinished=Unfinished(1, None, b"\x00b", b"b")
    ),
    "no body": Vector(b"\x03", unfinished=Unfinished(1, 4, b"abc", b"abc")),
    "a body breaks off": Vector(b"\x03ab", unfinished=Unfinished(3, 4, b"c", b"abc")),
    "a body of high bytes breaks off": Vector(
        b"\x03\xff\xff", unfinished=Unfinished(3, 4, b"\xff", b"\xff\xff\xff")
    ),
    "a body breaks off after good frames": Vector(
        b"\x01a\x00\xac\x02" + b"b" * 299,
        (b"a", b""),
        3,
        unfinished=Unfinished(301, 302, b"b", b"b" * 300),
    ),
    "all but the last byte of a frame at the limit": Vector(
        b"\xa0\x9c\x01" + b"a" * 19_999,
        unfinished=Unfinished(20_002, 20_003, b"a", b"a" * 20_000),
    ),
}

each_vector = pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS.keys())


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        yield data[place : place + 1]


def in_sevens(data: bytes) -> Iterator[bytes]:
    """Yield pieces of seven bytes, each after an empty piece."""
    for place in range(0, len(data), 7):
        yield b""
        yield data[place : place + 7]


each_way = pytest.mark.parametrize("pieces", [whole, byte_by_byte, in_sevens])


def framed(frame: bytes) -> bytes:
    return encode_varint(len(frame)) + frame


def read_up_to_error(
    reader: FrameReader[bytes], pieces: Iterator[bytes]
) -> tuple[list[bytes], ProtocolError | None]:
    """Return the frames, and the error after them, if any."""
    frames: list[bytes] = []
    try:
        for piece in pieces:
            frames.extend(reader.feed(piece))
    except ProtocolError as error:
        return frames, error
    return frames, None


def check_error(error: ProtocolError | None, vector: Vector) -> None:
    """Compare the error of `feed` with the vector."""
    assert type(error) is (vector.error or type(None))
    if error is not None:
        assert error.offset == vector.offset


@each_way
@each_vector
def test_a_vector_gives_its_frames_and_its_error(
    vector: Vector, pieces: Callable[[bytes], Iterator[bytes]]
) -> None:
    reader = FrameReader(frame_body, LIMIT)
    frames, error = read_up_to_error(reader, pieces(vector.data))
    assert frames == list(vector.frames)
    assert reader.offset == vector.offset
    check_error(error, vector)


@each_way
@each_vector
def test_the_end_of_input_is_refused_inside_a_frame_only(
    vector: Vector, pieces: Callable[[bytes], Iterator[bytes]]
) -> None:
    reader = FrameReader(frame_body, LIMIT)
    read_up_to_error(reader, pieces(vector.data))
    if vector.unfinished is None:
        reader.finish()
        return
    with pytest.raises(TruncatedFrameError) as caught:
        reader.finish()
    assert caught.value.received == vector.unfinished.received
    assert caught.value.expected == vector.unfinished.expected
    assert caught.value.offset == reader.offset == vector.offset


@each_way
@each_vector
def test_rest_is_the_input_from_the_current_frame_on(
    vector: Vector, pieces: Callable[[bytes], Iterator[bytes]]
) -> None:
    reader = FrameReader(frame_body, LIMIT)
    fed = b""
    for piece in pieces(vector.data):
        fed += piece
        with contextlib.suppress(ProtocolError):
            for _ in reader.feed(piece):
                assert reader.rest == fed[reader.offset :]
            assert reader.rest == fed[reader.offset :]


@each_way
@each_vector
def test_a_tail_of_further_bytes_is_read_after_a_vector(
    vector: Vector, pieces: Callable[[bytes], Iterator[bytes]]
) -> None:
    rest, frames = b"", list(vector.frames)
    if vector.unfinished is not None:
        rest = vector.unfinished.rest
        frames.append(vector.unfinished.frame)
    if vector.error is None:
        frames += [b"tail", b""]
    data = vector.data + rest + b"\x04tail\x00"

    reader = FrameReader(frame_body, LIMIT)
    found, error = read_up_to_error(reader, pieces(data))

    assert found == frames
    check_error(error, vector)
    assert reader.offset == (len(data) if vector.error is None else vector.offset)


@each_way
def test_offset_is_that_of_the_current_frame(
    pieces: Callable[[bytes], Iterator[bytes]],
) -> None:
    reader = FrameReader(frame_body)
    offsets: list[tuple[bytes, int]] = []
    for piece in pieces(b"\x01a\x02bc\x01d\x80\x00\x01e"):
        offsets.extend((frame, reader.offset) for frame in reader.feed(piece))
    assert offsets == [(b"a", 0), (b"bc", 2), (b"d", 5), (b"", 7), (b"e", 9)]
    assert reader.offset == 11


def test_a_frame_over_the_limit_is_refused_before_it_arrives() -> None:
    with pytest.raises(FrameTooLongError) as caught:
        list(FrameReader(frame_body, 5).feed(b"\x06"))
    assert (caught.value.length, caught.value.limit) == (6, 5)


def test_the_default_limit_is_that_of_max_frame_bytes() -> None:
    assert list(FrameReader(frame_body).feed(encode_varint(DEFAULT_MAX_FRAME_BYTES))) == []
    with pytest.raises(FrameTooLongError):
        list(FrameReader(frame_body).feed(encode_varint(DEFAULT_MAX_FRAME_BYTES + 1)))


def test_the_longest_length_may_come_where_the_limit_allows_it() -> None:
    reader = FrameReader(frame_body, MAX_VARINT)
    assert list(reader.feed(b"\xff\xff\xff\xff\x0f...")) == []
    with pytest.raises(TruncatedFrameError) as caught:
        reader.finish()
    assert caught.value.expected == 5 + MAX_VARINT
    with pytest.raises(VarintTooLongError):
        list(FrameReader(frame_body, 1 << 40).feed(b"\x80\x80\x80\x80\x10"))


def test_an_announced_length_allocates_no_memory() -> None:
    tracemalloc.start()
    try:
        reader = FrameReader(frame_body)
        assert list(reader.feed(encode_varint(60 << 20) + b"0123456789")) == []
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 * 1024


def test_a_frame_in_many_pieces_is_stored_once() -> None:
    size, piece = 4 << 20, b"a" * 1024
    tracemalloc.start()
    try:
        reader = FrameReader(frame_body)
        assert list(reader.feed(encode_varint(size))) == []
        for _ in range(size // len(piece) - 1):
            assert list(reader.feed(piece)) == []
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.5 * size
    assert list(reader.feed(piece)) == [b"a" * size]


def test_decoded_frames_are_not_stored() -> None:
    reader = FrameReader(frame_body)
    data = framed(b"a" * (4 << 20))
    pieces = (data[:1000], data[1000:])
    tracemalloc.start()
    try:
        assert [len(frame) for piece in pieces for frame in reader.feed(piece)] == [4 << 20]
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 64 * 1024


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (300, b"\xac\x02"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (MAX_VARINT, b"\xff\xff\xff\xff\x0f"),
    ],
)
def test_a_length_is_encoded_in_as_few_bytes_as_it_takes(value: int, encoded: bytes) -> None:
    assert encode_varint(value) == encoded


@pytest.mark.parametrize("value", [-1, MAX_VARINT + 1])
def test_an_invalid_length_is_not_encoded(value: int) -> None:
    with pytest.raises(ValueError, match="32-bit"):
        encode_varint(value)


@st.composite
def cut_frames(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Draw frames, and their bytes in pieces of any size."""
    frames = draw(st.lists(st.binary(max_size=300), max_size=8))
    data = b"".join(map(framed, frames))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    edges = [0, *cuts, len(data)]
    return frames, [data[a:b] for a, b in itertools.pairwise(edges)]


@given(cut_frames())
def test_any_frames_cut_anywhere_come_back(sent: tuple[list[bytes], list[bytes]]) -> None:
    frames, pieces = sent
    reader = FrameReader(frame_body)
    assert [frame for piece in pieces for frame in reader.feed(piece)] == frames
    reader.finish()
    assert reader.offset == sum(map(len, pieces))


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 50))
def test_any_bytes_give_frames_or_a_protocol_error(pieces: list[bytes], limit: int) -> None:
    data = b"".join(pieces)
    reader = FrameReader(frame_body, limit)
    frames, error = read_up_to_error(reader, iter(pieces))
    if error is None:
        try:
            reader.finish()
        except TruncatedFrameError as truncated:
            error = truncated
    assert all(len(frame) <= limit for frame in frames)
    place = 0
    for frame in frames:
        place = data.index(frame, place + 1) + len(frame)
    assert reader.offset <= len(data)
    if error is None:
        assert reader.offset == len(data)
    else:
        assert error.offset == reader.offset
