"""Messages and the frames that carry them, both ways.

On the wire every message sits in an envelope, `Request` towards the UDF and
`Response` towards Kapacitor. Past this module nobody sees an envelope: a
message is one of the concrete protobuf classes, and its type says what it is.

A point, which is nearly all of the traffic, is decoded straight from its frame:
the envelope is a tag and a length, and building an envelope object just to take
the point out of it costs more than the point. Every frame is parsed into a
fresh message, for upb's arena of a message that is reused grows for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar, cast

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from kapudf_cli.errors import EmptyMessageError, UndecodableMessageError
from kapudf_cli.wire.framing import encode_varint
from kapudf_cli.wire.udf_pb2 import (
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

#: Wire type 2 of protobuf: a length and that many bytes.
_LENGTH_DELIMITED = 2
#: Tag of the field `point`, number 17 in both envelopes.
_POINT_TAG = encode_varint(17 << 3 | _LENGTH_DELIMITED)


class Codec(Generic[M]):
    """Turns frames into the messages of one direction, and messages into frames."""

    def __init__(self, envelope: type[Request | Response]) -> None:
        self._envelope = envelope
        self._name = envelope.DESCRIPTOR.name
        self._tags: dict[type, bytes] = {}
        for field in envelope.DESCRIPTOR.oneofs_by_name["message"].fields:
            tag = encode_varint(field.number << 3 | _LENGTH_DELIMITED)
            message = cast("Descriptor", field.message_type)  # a oneof's field is a message here
            self._tags[GetMessageClass(message)] = tag

    def decode(self, frame: bytes) -> M:
        """Return the message in `frame` (an envelope's bytes, without the length).

        Raises:
            UndecodableMessageError: the bytes are no such envelope.
            EmptyMessageError: the envelope holds no message.
        """
        try:
            if frame.startswith(_POINT_TAG) and (start := _single_field_start(frame)):
                return cast("M", Point.FromString(frame[start:]))
            envelope = self._envelope.FromString(frame)
        except DecodeError as error:
            problem = f"{len(frame)} bytes are no {self._name}: {error}"
            raise UndecodableMessageError(problem) from error
        which = envelope.WhichOneof("message")
        if which is None:
            problem = f"a {self._name} in which no message is set"
            raise EmptyMessageError(problem)
        return cast("M", getattr(envelope, which))

    def encode(self, message: M) -> bytes:
        """Return `message` in its envelope as a whole frame, length included.

        Raises:
            TypeError: the envelope has no place for a message of this type.
        """
        tag = self._tags.get(type(message))
        if tag is None:
            problem = f"a {type(message).__name__} is no message of a {self._name}"
            raise TypeError(problem)
        body = cast("Message", message).SerializeToString()
        envelope = tag + encode_varint(len(body))
        return b"".join((encode_varint(len(envelope) + len(body)), envelope, body))


def _single_field_start(frame: bytes) -> int:
    """Return where the body of the frame's only field starts, 0 for any other frame.

    The field's length must run to the frame's very end. Whatever else a frame
    may hold (several fields, unknown ones, a length of three bytes or more) is
    left to the general decoder, which gives the same message more slowly.
    """
    size = len(frame)
    if size < 4:  # a tag of two bytes, a length, a byte of body
        return 0
    length = frame[2]
    if length <= 0x7F:
        return 3 if 3 + length == size else 0
    high = frame[3]
    if high <= 0x7F and 4 + (length & 0x7F | high << 7) == size:
        return 4
    return 0


#: What Kapacitor sends.
REQUESTS: Final[Codec[RequestMessage]] = Codec(Request)
#: What a UDF sends.
RESPONSES: Final[Codec[ResponseMessage]] = Codec(Response)
