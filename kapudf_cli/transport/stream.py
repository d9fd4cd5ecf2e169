"""The byte stream that an agent reads and writes.

A stream blocks. One thread reads. Any thread may write, one at a time. Any thread may at any
time call `interrupt` (read what has arrived, then end), `pause` (stop waiting for input) and
`abort` (end a blocked read or write now).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kapudf_cli.transport.commit import Commit


class ReadPaused(Exception):  # noqa: N818 - it is no error
    """`pause` was called: nothing was read, and the next `read` goes on."""


class Stream(Protocol):
    """A byte stream in both directions."""

    @property
    def waits(self) -> bool:
        """Whether the reader waits for input."""

    def read(self) -> bytes:
        """Wait for input and return it; b"" once it has ended or was interrupted.

        Raises:
            OSError: the connection broke.
            ReadPaused: `pause` was called.
        """

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
