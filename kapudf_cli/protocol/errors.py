"""Errors of the protocol: invalid bytes, and messages that are not allowed."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class ProtocolError(KapudfError):
    """The peer sent what the protocol does not allow.

    Attributes:
        problem: what is wrong, without the offset.
        offset: where the faulty frame starts in the input, in bytes; None while unknown.
    """

    def __init__(self, problem: str, *, offset: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.offset = offset

    def __str__(self) -> str:
        """Return the problem, and the offset if it is known."""
        if self.offset is None:
            return self.problem
        return f"{self.problem} (in the frame at byte {self.offset})"


class VarintTooLongError(ProtocolError):
    """A frame's length does not fit into 32 bits."""


class FrameTooLongError(ProtocolError):
    """The length of a frame is over the limit. None of the frame was stored."""

    def __init__(self, length: int, limit: int, *, offset: int | None = None) -> None:
        super().__init__(
            f"a frame of {length} bytes is announced, the limit max_frame_bytes is {limit}",
            offset=offset,
        )
        self.length = length
        self.limit = limit


class TruncatedFrameError(ProtocolError):
    """The input ended inside a frame."""

    def __init__(self, received: int, expected: int | None, *, offset: int | None = None) -> None:
        whole = "its length is not complete" if expected is None else f"it has {expected}"
        super().__init__(
            f"the input ended inside a frame: {received} bytes of it came, {whole}",
            offset=offset,
        )
        self.received = received
        self.expected = expected


class UndecodableMessageError(ProtocolError):
    """A frame's bytes are not the protobuf message they should be.

    Attributes:
        kind: the class of the message in it, None if it is unknown.
    """

    def __init__(self, problem: str, *, kind: type | None = None) -> None:
        super().__init__(problem)
        self.kind = kind


class EmptyMessageError(UndecodableMessageError):
    """A Request or Response in which no message is set."""


class UnexpectedMessageError(ProtocolError):
    """A message that is not allowed at this point of the conversation."""


class InvalidWriteError(KapudfError):
    """A handler wrote a message that would harm Kapacitor. It was not sent."""


class DecodeMemoryError(MemoryError):
    """A message cannot be decoded because memory ran out.

    The message may be valid: another process may be able to decode it.
    """


class ResponseFaultError(KapudfError):
    """A UDF sent something that Kapacitor does not accept.

    Attributes:
        problem: what the UDF did, to be written after its name.
        consequence: what Kapacitor would do.
    """

    def __init__(self, problem: str, consequence: str) -> None:
        super().__init__(f"{problem}; {consequence}")
        self.problem = problem
        self.consequence = consequence
