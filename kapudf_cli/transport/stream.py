"""The byte stream that an agent reads and writes, and what it may store with a write.

A stream blocks. One thread reads. Any thread may write, one at a time. Any thread may at any
time call `interrupt` (read what has arrived, then end), `pause` (stop waiting for input) and
`abort` (end a blocked read or write now).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.transport.meter import Meter


#: How many frames `ConnectionStats.done` has a bit for.
DONE_BITS: Final = 256


class ConnectionStats(msgspec.Struct, frozen=True, gc=False):
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
        dropped_points: points received for which the handler's answer was dropped, or which it
            was not given.
        done: which frames from `offset` on were answered although frames before them were not,
            as bits; at most `DONE_BITS`.
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
    dropped_points: int = 0
    done: int = 0


class Commit(msgspec.Struct, frozen=True, gc=False):
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


class ReadPaused(Exception):  # noqa: N818 - it is no error
    """`pause` was called: nothing was read, and the next `read` goes on."""


class Stream(Protocol):
    """A byte stream in both directions.

    Attributes:
        on_full: called when a write has to wait until the peer reads.
        meter: measures the connection.
    """

    on_full: Callable[[], None] | None
    meter: Meter

    @property
    def waits(self) -> bool:
        """Whether the reader waits for input."""

    def read(self) -> bytes:
        """Wait for input and return it; b"" once it has ended or was interrupted.

        Raises:
            OSError: the connection broke.
            ReadPaused: `pause` was called.
        """

    def read_now(self) -> bytes | None:
        """Return input as `read` does, but None instead of waiting for it.

        Raises:
            OSError, ReadPaused: as `read` does.
        """

    def wait_with(self, wait: Callable[[int], object]) -> None:
        """Have `read` wait for input with a function.

        Args:
            wait: called with the descriptor that becomes readable with the input. It may return
                earlier, and must after each call of `interrupt`, `pause` and `abort`.
        """

    @property
    def input_descriptor(self) -> int:
        """The descriptor that becomes readable with input, and at its end."""

    @property
    def is_pausing(self) -> bool:
        """Whether `pause` was called and the reader has not raised ReadPaused yet."""

    @property
    def has_input_ended(self) -> bool:
        """Whether the peer has ended its side, so that no input follows what has arrived."""

    def write(self, data: bytes, commit: Commit | None = None) -> None:
        """Write all of `data`, waiting for as long as the peer does not read.

        Args:
            data: whole messages, or none.
            commit: what becomes true with this write. A stream that another process can
                take over stores it with the data; others ignore it.

        Raises:
            OSError: the connection broke, or was aborted.
        """

    def has_room(self) -> bool:
        """Return whether a write would not wait. From any thread."""

    def interrupt(self) -> None:
        """Make `read` return what has arrived by now, and then b"". From any thread."""

    def pause(self) -> None:
        """Make the reader raise ReadPaused before it reads again. From any thread."""

    def abort(self) -> None:
        """Break the connection, so that no call blocks any longer. From any thread."""

    def settle(self, timeout_s: float) -> int:
        """Wait until the peer has read everything that was written, and a moment longer.

        Input that comes meanwhile is discarded. The wait ends after `timeout_s` at the
        latest, or when the peer has closed. Return the number of bytes discarded.
        """

    def close(self) -> int:
        """Close the stream; return how many bytes had arrived and were not read."""
