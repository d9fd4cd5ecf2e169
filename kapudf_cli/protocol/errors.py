"""Bytes and messages that the protocol does not allow."""

from __future__ import annotations

from kapudf_cli.errors import KapudfError


class ProtocolError(KapudfError):
    """The peer sent what the protocol does not allow.

    Attributes:
        problem: what is wrong, without the place.
        offset: where in the incoming stream the faulty frame starts, in bytes
            from the connection's first, or None while that is not known.
    """

    def __init__(self, problem: str, *, offset: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.offset = offset

    def __str__(self) -> str:
        """Return the problem, and the place where it is known."""
        if self.offset is None:
            return self.problem
        return f"{self.problem} (in the frame at byte {self.offset})"


class VarintTooLongError(ProtocolError):
    """A frame's length does not fit into 32 bits."""


class FrameTooLongError(ProtocolError):
    """A frame is announced as longer than the limit; none of it was kept."""

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
        kind: the class of the message in it, None where that cannot be told.
    """

    def __init__(self, problem: str, *, kind: type | None = None) -> None:
        super().__init__(problem)
        self.kind = kind


class EmptyMessageError(UndecodableMessageError):
    """A Request or Response in which no message is set."""


class UnexpectedMessageError(ProtocolError):
    """A message that may not come at this point of the conversation."""


class InvalidWriteError(KapudfError):
    """A handler wrote what would break Kapacitor's side; nothing of it was sent."""


class DecodeMemoryError(MemoryError):
    """A message cannot be decoded because this process has no memory left for it.

    It is no fault of the message, of the handler or of the peer: another process may be able to.
    """


class ResponseFaultError(KapudfError):
    """A UDF sent what Kapacitor cannot bear.

    Attributes:
        problem: what it did, to be put after the UDF's name.
        consequence: what Kapacitor would do.
    """

    def __init__(self, problem: str, consequence: str) -> None:
        super().__init__(f"{problem}; {consequence}")
        self.problem = problem
        self.consequence = consequence
