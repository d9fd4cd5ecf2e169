"""Decodes frames into messages and encodes messages into frames, in both directions.

On the wire each message is wrapped in an envelope: `Request` from Kapacitor, `Response`
from the UDF. Only this module knows envelopes. Elsewhere a message is an instance of its
own protobuf class.

Nearly all messages are points. A point is decoded without building an envelope object,
which would cost more than the point. Each frame is parsed into a new message, because the
memory arena of a reused upb message never shrinks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar, cast

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from kapudf_cli.protocol.decode_errors import find_fault, first_field
from kapudf_cli.protocol.errors import DecodeMemoryError, EmptyMessageError, UndecodableMessageError
from kapudf_cli.protocol.framing import MAX_VARINT, FrameReader, encode_varint
from kapudf_cli.protocol.raw_points import (
    LONG_HEAD_BYTES,
    MAX_LONG_FRAME_BYTES,
    MIN_LONG_FRAME_BYTES,
    POINT_HEADS,
    POINT_TAG,
    RawPoint,
    point_head,
)
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    Request,
    Response,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

DataMessage: TypeAlias = BeginBatch | Point | EndBatch
RequestMessage: TypeAlias = (
    InfoRequest | InitRequest | KeepaliveRequest | SnapshotRequest | RestoreRequest | DataMessage
)
ResponseMessage: TypeAlias = (
    InfoResponse
    | InitResponse
    | KeepaliveResponse
    | SnapshotResponse
    | RestoreResponse
    | ErrorResponse
    | DataMessage
)

M = TypeVar("M")

#: Looked up once: the look-up takes a tenth of the time of decoding a point.
_point_from = Point.FromString

#: Wire type 2 of protobuf: a length and that many bytes.
_LENGTH_DELIMITED = 2


class Codec(Generic[M]):
    """Decodes and encodes the messages of one direction."""

    def __init__(self, envelope: type[Request | Response]) -> None:
        self._envelope = envelope
        self._name = envelope.DESCRIPTOR.name
        self._tags: dict[type, bytes] = {}
        self._kinds: dict[str, type] = {}
        for field in envelope.DESCRIPTOR.oneofs_by_name["message"].fields:
            tag = encode_varint(field.number << 3 | _LENGTH_DELIMITED)
            message = cast("Descriptor", field.message_type)  # a oneof's field is a message here
            self._tags[GetMessageClass(message)] = tag
            self._kinds[field.name] = GetMessageClass(message)

    def decode(self, frame: bytes) -> M:
        """Return the message in an envelope. Raises as `decode_in` does."""
        return self.decode_in(frame, 0, len(frame))

    def decode_in(self, data: bytes, start: int, end: int) -> M:
        """Return the message in `data[start:end]`, an envelope without its length.

        Raises:
            UndecodableMessageError: the bytes are not a valid envelope.
            EmptyMessageError: the envelope contains no message.
            DecodeMemoryError: memory ran out.
        """
        try:
            # Fast path: an envelope that contains just a point. The general way below gives
            # the same message.
            if place := _point_in(data, start, end):
                point_head(end - place)
                return Point.FromString(data[place:end])  # type: ignore[return-value]  # of both codecs
            envelope = self._envelope.FromString(data[start:end])
        except DecodeError as error:
            raise self._fault(data[start:end], error) from error
        which = envelope.WhichOneof("message")
        if which is None:
            problem = f"a {self._name} in which no message is set"
            raise EmptyMessageError(problem)
        return cast("M", getattr(envelope, which))

    def _fault(
        self, envelope: bytes, error: DecodeError
    ) -> UndecodableMessageError | DecodeMemoryError:
        """Return why an envelope cannot be decoded."""
        descriptor = cast("Descriptor", self._envelope.DESCRIPTOR)
        fault = find_fault(envelope, descriptor)
        if fault is None:
            return DecodeMemoryError(f"no memory to decode {len(envelope)} bytes: {error}")
        problem = f"{len(envelope)} bytes are not a {self._name}: {fault}"
        which = first_field(envelope, descriptor)
        return UndecodableMessageError(problem, kind=self._kinds.get(which or ""))

    def encode(self, message: M) -> bytes:
        """Return `message` in its envelope as a whole frame, length included.

        Raises:
            TypeError: the envelope cannot contain a message of this type.
        """
        tag = self._tags.get(type(message))
        if tag is None:
            problem = f"a {type(message).__name__} is not a message of a {self._name}"
            raise TypeError(problem)
        body = cast("Message", message).SerializeToString()
        envelope = tag + encode_varint(len(body))
        return encode_varint(len(envelope) + len(body)) + envelope + body


def raw_or_decode_in(data: bytes, start: int, end: int) -> RequestMessage | RawPoint:
    """Return the request in an envelope, as `REQUESTS.decode_in`, but a point as raw bytes.

    The content of a point is not checked if its envelope has the form that Kapacitor sends.
    """
    if place := _point_in(data, start, end):
        return RawPoint(point_head(end - place) + data[place:end])
    message = REQUESTS.decode_in(data, start, end)
    return RawPoint(encode_point(message)) if isinstance(message, Point) else message


def _point_in(data: bytes, start: int, end: int) -> int:
    """Return where the point in an envelope starts, 0 if the envelope has another form.

    The expected form is the tag, a length of one or two bytes, and the point up to the end.
    """
    if end - start > 3 and data[start] == POINT_TAG[0] and data[start + 1] == POINT_TAG[1]:
        length = data[start + 2]
        place = start + 3
        if length > 0x7F:
            if data[place] > 0x7F:
                return 0
            length = (length & 0x7F) | data[place] << 7
            place += 1
        if place + length == end:
            return place
    return 0


def decode_point(raw: RawPoint) -> Point:
    """Return the point in the raw bytes that a handler was given.

    Raises:
        UndecodableMessageError: the bytes are not a point.
    """
    if MIN_LONG_FRAME_BYTES <= len(raw) <= MAX_LONG_FRAME_BYTES and raw[2] == POINT_TAG[0]:
        # The usual case. If decoding fails, the general way below raises the error.
        try:
            return _point_from(raw[LONG_HEAD_BYTES:])
        except DecodeError:
            pass
    (message,) = FrameReader(REQUESTS.decode_in, MAX_VARINT).feed(raw)
    if not isinstance(message, Point):
        problem = f"a {type(message).__name__} instead of a Point"
        raise UndecodableMessageError(problem)
    return message


def encode_point(point: Point) -> bytes:
    """Return a point as a whole frame, which is the same in both directions.

    It equals the result of `Codec.encode`, and is faster.
    """
    body = point.SerializeToString()
    size = len(body)
    return (POINT_HEADS.get(size) or point_head(size)) + body


#: Messages from Kapacitor.
REQUESTS: Final[Codec[RequestMessage]] = Codec(Request)
#: Messages to Kapacitor.
RESPONSES: Final[Codec[ResponseMessage]] = Codec(Response)
