"""Encoding and decoding of messages: the fast and the general way give the same result."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import example, given
from hypothesis import strategies as st

from kapudf_cli.protocol.codec import REQUESTS, RESPONSES, Codec, encode_point
from kapudf_cli.protocol.errors import (
    DecodeMemoryError,
    EmptyMessageError,
    ProtocolError,
    UndecodableMessageError,
)
from kapudf_cli.protocol.framing import FrameReader, encode_varint, frame_body
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STREAM,
    STRING,
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Option,
    OptionInfo,
    OptionValue,
    Point,
    Request,
    Response,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.examples import examples

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

    from kapudf_cli.protocol.codec import DataMessage, RequestMessage, ResponseMessage

CAPTURES = sorted((Path(__file__).parent.parent / "captures").glob("*.bin"))

POINT = Point(
    time=-1,
    name="cpu",
    database="telegraf",
    retentionPolicy="autogen",
    group="host=a,b=\u00e9",
    dimensions=["host", "b"],
    tags={"host": "a", "b": "\u00e9"},
    fieldsDouble={"d": 1e308, "nan-free": -0.0},
    fieldsInt={"i": -(1 << 63), "j": (1 << 63) - 1},
    fieldsString={"s": "line\nbreak", "": ""},
    byName=True,
    fieldsBool={"t": True, "f": False},
)
DATA: list[DataMessage] = [
    BeginBatch(name="cpu", group="host=a", tags={"host": "a"}, size=-1, byName=True),
    BeginBatch(),
    POINT,
    Point(),
    EndBatch(name="cpu", group="host=a", tmax=1 << 62, tags={"host": "a"}, byName=True),
    EndBatch(),
]
ALL_REQUESTS: list[RequestMessage] = [
    InfoRequest(),
    InitRequest(
        taskID="t",
        nodeID="n",
        options=[
            Option(name="empty"),
            Option(
                name="all",
                values=[
                    OptionValue(type=BOOL, boolValue=False),
                    OptionValue(type=INT, intValue=-1),
                    OptionValue(type=DOUBLE, doubleValue=0.5),
                    OptionValue(type=STRING, stringValue="\u2603"),
                    OptionValue(type=DURATION, durationValue=10**9),
                ],
            ),
        ],
    ),
    InitRequest(),
    KeepaliveRequest(time=1 << 62),
    SnapshotRequest(),
    RestoreRequest(snapshot=bytes(range(256))),
    *DATA,
]
ALL_RESPONSES: list[ResponseMessage] = [
    InfoResponse(
        wants=STREAM, provides=BATCH, options={"o": OptionInfo(valueTypes=[STRING, DOUBLE])}
    ),
    InfoResponse(),
    InitResponse(success=True),
    InitResponse(error="no"),
    KeepaliveResponse(time=-1),
    SnapshotResponse(snapshot=b"\x00\xff" * 10_000),
    RestoreResponse(success=True),
    RestoreResponse(error="no"),
    ErrorResponse(error="it broke"),
    *DATA,
]


def type_name(message: object) -> str:
    return type(message).__name__


def field(number: int, value: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def point_of_size(size: int) -> bytes:
    """Return the bytes of a point, `size` bytes long."""
    for name_length in range(size, -1, -1):
        body = Point(name="n" * name_length).SerializeToString()
        if len(body) == size:
            return body
    raise AssertionError(size)


def unframed(data: bytes) -> bytes:
    """Return the one frame in `data`, without its length."""
    reader = FrameReader(frame_body)
    (frame,) = reader.feed(data)
    reader.finish()
    return frame


def decoded_by_protobuf(frame: bytes) -> RequestMessage:
    """Return the message in a Request, decoded by protobuf."""
    envelope = Request.FromString(frame)
    which = envelope.WhichOneof("message")
    assert which is not None
    return cast("RequestMessage", getattr(envelope, which))


@pytest.mark.parametrize("message", ALL_REQUESTS, ids=type_name)
def test_a_request_comes_back_as_it_was_sent(message: RequestMessage) -> None:
    decoded = REQUESTS.decode(unframed(REQUESTS.encode(message)))
    assert type(decoded) is type(message)
    assert decoded == message


@pytest.mark.parametrize("message", ALL_RESPONSES, ids=type_name)
def test_a_response_comes_back_as_it_was_sent(message: ResponseMessage) -> None:
    decoded = RESPONSES.decode(unframed(RESPONSES.encode(message)))
    assert type(decoded) is type(message)
    assert decoded == message


@pytest.mark.parametrize(
    ("envelope", "messages"), [(Request, ALL_REQUESTS), (Response, ALL_RESPONSES)]
)
def test_the_tests_cover_all_messages(
    envelope: type[Request | Response], messages: list[object]
) -> None:
    fields = envelope.DESCRIPTOR.oneofs_by_name["message"].fields
    known = {GetMessageClass(cast("Descriptor", field.message_type)) for field in fields}
    assert {type(message) for message in messages} == known


@pytest.mark.parametrize("message", ALL_REQUESTS, ids=type_name)
def test_a_request_is_encoded_as_protobuf_would_encode_its_envelope(
    message: RequestMessage,
) -> None:
    assert decoded_by_protobuf(unframed(REQUESTS.encode(message))) == message


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_every_captured_frame_is_decoded_as_protobuf_decodes_it(capture: Path) -> None:
    reader = FrameReader(frame_body)
    for frame in reader.feed(capture.read_bytes()):
        decoded, expected = REQUESTS.decode(frame), decoded_by_protobuf(frame)
        assert type(decoded) is type(expected)
        assert decoded == expected


@pytest.mark.parametrize("size", [0, 1, 100, 119, 120, 121, 16_370, 16_383, 16_384, 70_000])
def test_a_point_has_one_encoding_in_both_directions(size: int) -> None:
    point = Point(fieldsString={"text": "x" * size})
    for _ in range(2):
        assert encode_point(point) == REQUESTS.encode(point) == RESPONSES.encode(point)
    assert encode_point(Point()) == REQUESTS.encode(Point())


INNER = POINT.SerializeToString()
UNKNOWN = field(99, b"of a later version")
KEEPALIVE = field(3, b"\x08\x07")

ODD_FRAMES = {
    "an unknown field before the point": UNKNOWN + field(17, INNER),
    "an unknown field after the point": field(17, INNER) + UNKNOWN,
    "an unknown field after an empty point": field(17, b"") + UNKNOWN,
    "an unknown field inside the point": field(17, INNER + UNKNOWN),
    "an unknown number after the point": field(17, INNER) + b"\x98\x06\x05",
    "two points, which are one": field(17, b"\x08\x05") + field(17, b"\x12\x01n"),
    "another message after the point": field(17, INNER) + KEEPALIVE,
    "another message before the point": KEEPALIVE + field(17, INNER),
    "an empty message after the point": field(17, INNER) + field(1, b""),
    "the point before and after another": field(17, INNER) + KEEPALIVE + field(17, b"\x08\x05"),
    "an empty point": field(17, b""),
    "a point of one byte's length": field(17, point_of_size(3)),
    "the longest point of one byte's length": field(17, point_of_size(127)),
    "the shortest point of two bytes' length": field(17, point_of_size(128)),
    "the longest point of two bytes' length": field(17, point_of_size(16_383)),
    "the shortest point of three bytes' length": field(17, point_of_size(16_384)),
    "a length of 2 in two bytes": b"\x8a\x01\x82\x00\x08\x05",
    "a length of 2 in three bytes": b"\x8a\x01\x82\x80\x00\x08\x05",
    "a length of 0 in two bytes": b"\x8a\x01\x80\x00",
    "a length of 0 in two bytes, and more": b"\x8a\x01\x80\x00" + KEEPALIVE,
    # If only two bytes of it were read, the length would reach the end of the frame.
    "a length of 0 in three bytes, and much more": b"\x8a\x01\x80\x80\x00"
    + field(99, b"x" * 16_379),
    "the point's tag in three bytes": b"\x8a\x81\x00\x02\x08\x05",
    "a field of the point twice": field(17, b"\x08\x05\x08\x06"),
    "a map entry of the point twice": field(
        17,
        Point(fieldsInt={"a": 1}).SerializeToString()
        + Point(fieldsInt={"a": 2}).SerializeToString(),
    ),
    "unknown fields around a message": UNKNOWN + KEEPALIVE + UNKNOWN,
}


@pytest.mark.parametrize("frame", ODD_FRAMES.values(), ids=ODD_FRAMES.keys())
def test_an_odd_frame_is_decoded_as_protobuf_decodes_it(frame: bytes) -> None:
    decoded, expected = REQUESTS.decode(frame), decoded_by_protobuf(frame)
    assert type(decoded) is type(expected)
    assert decoded.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("frame", [b"", UNKNOWN, b"\x98\x06\x05", UNKNOWN * 3])
def test_an_envelope_without_a_message_is_refused(frame: bytes) -> None:
    with pytest.raises(EmptyMessageError, match="a Request in which no message is set"):
        REQUESTS.decode(frame)
    with pytest.raises(EmptyMessageError, match="a Response in which no message is set"):
        RESPONSES.decode(frame)


GARBAGE = {
    "a tag of field 0": b"\x00",
    "a tag that breaks off": b"\x8a",
    "a point's tag alone": b"\x8a\x01",
    "a point's length breaks off": b"\x8a\x01\x80",
    "a point breaks off": field(17, INNER)[:-1],
    "a byte after the point": field(17, INNER) + b"\xff",
    "a length above all bounds": b"\x8a\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    "a group that ends unopened": b"\x0c",
    "a wire type that is none": b"\x07",
    "a tag of more than 32 bits": b"\xbd\x80\x80\x80\x10\x00\x00\x00\x00",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "broken bytes inside the point": field(17, b"\x12\x05n"),
    "a point's name that is no UTF-8": field(17, b"\x12\x02\xff\xfe"),
    "a point's tag that is no UTF-8": field(17, field(7, field(1, b"\xff") + field(2, b"v"))),
    "a long point's name that is no UTF-8": field(17, field(2, b"\xff" * 20_000)),
    "a task's name that is no UTF-8": field(2, field(2, b"\xff\xfe")),
}


@pytest.mark.parametrize("frame", GARBAGE.values(), ids=GARBAGE.keys())
def test_invalid_request_bytes_raise(frame: bytes) -> None:
    with pytest.raises(UndecodableMessageError, match=f"^{len(frame)} bytes are not a Request: "):
        REQUESTS.decode(frame)


def test_a_response_that_is_not_utf_8_raises() -> None:
    with pytest.raises(UndecodableMessageError, match="bytes are not a Response"):
        RESPONSES.decode(field(6, b"\x0a\x01\xff"))


@pytest.mark.parametrize(
    "message", [InfoResponse(), ErrorResponse(), Request(), "text", None], ids=type_name
)
def test_only_requests_are_encoded_as_requests(message: object) -> None:
    with pytest.raises(TypeError, match=f"a {type_name(message)} is not a message of a Request"):
        REQUESTS.encode(message)  # type: ignore[arg-type]


@pytest.mark.parametrize("message", [InitRequest(), Response(), Option(), b""], ids=type_name)
def test_only_responses_are_encoded_as_responses(message: object) -> None:
    with pytest.raises(TypeError, match=f"a {type_name(message)} is not a message of a Response"):
        RESPONSES.encode(message)  # type: ignore[arg-type]


def test_decoded_messages_are_independent() -> None:
    frame = field(17, INNER)
    first, second = REQUESTS.decode(frame), REQUESTS.decode(frame)
    assert isinstance(first, Point)
    first.fieldsInt["i"] = 0
    assert second == POINT


fields = st.builds(field, st.integers(1, 30), st.binary(max_size=30))
near_points = st.one_of(
    st.binary(max_size=60).map(lambda body: field(17, body)),
    st.binary(max_size=60).map(lambda rest: b"\x8a\x01" + rest),
    st.lists(fields, max_size=4).map(b"".join).map(lambda body: field(17, body)),
    st.lists(fields, max_size=4).map(b"".join),
    st.binary(max_size=60),
)


@examples(5.0)
@given(near_points)
@example(b"\x8a\x01\x80\x00")
def test_any_bytes_are_decoded_or_refused_as_protobuf_does(frame: bytes) -> None:
    try:
        envelope = Request.FromString(frame)
    except DecodeError:
        with pytest.raises(UndecodableMessageError):
            REQUESTS.decode(frame)
        return
    which = envelope.WhichOneof("message")
    if which is None:
        with pytest.raises(EmptyMessageError):
            REQUESTS.decode(frame)
        return
    decoded, expected = REQUESTS.decode(frame), getattr(envelope, which)
    assert type(decoded) is type(expected)
    # Compared as bytes, because a field may be NaN.
    assert decoded.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


def framed(frame: bytes) -> bytes:
    return encode_varint(len(frame)) + frame


@given(st.lists(near_points | near_points.map(framed), max_size=5).map(b"".join))
def test_any_bytes_framed_or_not_give_requests_or_a_protocol_error(data: bytes) -> None:
    reader = FrameReader(frame_body, 1000)
    kinds: set[type] = set()
    with contextlib.suppress(ProtocolError):
        for frame in reader.feed(data):
            kinds.add(type(REQUESTS.decode(frame)))
        reader.finish()
    assert kinds <= {type(message) for message in ALL_REQUESTS}


@pytest.mark.parametrize("message", [POINT, InitRequest(taskID="t")])
def test_a_lack_of_memory_is_not_reported_as_invalid_bytes(
    message: RequestMessage, monkeypatch: pytest.MonkeyPatch
) -> None:

    class Full:
        DESCRIPTOR = Request.DESCRIPTOR

        @staticmethod
        def FromString(data: bytes) -> Point:  # noqa: N802 - protobuf's name
            raise DecodeError(len(data))

    codec: Codec[RequestMessage] = Codec(Full)  # type: ignore[arg-type]  # as good as a Request
    monkeypatch.setattr("kapudf_cli.protocol.codec.Point", Full)
    (body,) = FrameReader(frame_body).feed(REQUESTS.encode(message))
    with pytest.raises(DecodeMemoryError, match=f"no memory to decode {len(body)} bytes"):
        codec.decode(body)
