"""What a stream may store with a write, so that another process can take over."""

from __future__ import annotations

from typing import NamedTuple


class ConnectionStats(NamedTuple):
    """What a connection has done, between two requests.

    Attributes:
        offset: bytes of input that were handled, always whole frames.
        points_in: points received.
        points_out: points sent.
        batches_in: batches received.
        batches_out: batches sent.
        bytes_out: bytes sent.
        failures: exceptions of the handler that `on_error` passed over.
        restarts: how often a new handler replaced one that had raised.
        takeovers: how often another agent took the connection over.
    """

    offset: int = 0
    points_in: int = 0
    points_out: int = 0
    batches_in: int = 0
    batches_out: int = 0
    bytes_out: int = 0
    failures: int = 0
    restarts: int = 0
    takeovers: int = 0


class Commit(NamedTuple):
    """What becomes true with a write, all at once.

    Attributes:
        messages: without `stats`, how many messages of the write answer input that is
            not part of any stats yet. With `stats`, how many messages that the next
            input will produce were sent already.
        in_batch: whether the last message sent belongs to a batch that has not ended.
        stats: how much input was handled; None in the middle of a read.
        forget_input: whether the handler's state does not depend on that input.
    """

    messages: int = 0
    in_batch: bool = False
    stats: ConnectionStats | None = None
    forget_input: bool = False
