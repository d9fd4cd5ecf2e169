"""What an agent asks of its bytes' way in and out.

A stream is blocking and has one reading thread. Any thread may write, one at a
time. Three more calls may come from any thread at any time: `interrupt`, which
lets the reader finish what has arrived and then see the end of input, `pause`,
which makes it look up from its waiting, and `abort`, which ends a blocked read or
write now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kapudf_cli.transport.commit import Commit


class ReadPaused(Exception):  # noqa: N818 - it is no error
    """`pause` was called: nothing was read, and the next `read` goes on."""


class Stream(Protocol):
    """Bytes in and bytes out, as an agent needs them."""

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
            commit: what becomes true with this write. A stream whose connection another
                process can take over stores it with the data; others ignore it.

        Raises:
            OSError: the connection broke, or was aborted.
        """

    def has_room(self) -> bool:
        """Return whether something can be written without waiting. From any thread."""

    def interrupt(self) -> None:
        """Let `read` return what has arrived by now, and then b"". From any thread."""

    def pause(self) -> None:
        """Make the reader raise ReadPaused before it reads again. From any thread."""

    def abort(self) -> None:
        """Break the connection, so that no call blocks any longer. From any thread."""

    def settle(self, timeout_s: float) -> int:
        """Wait until the peer has read all that was written, and had a moment to pass it on.

        Input that comes meanwhile is thrown away; returns how many bytes of it.
        Ends after `timeout_s` at the latest, or when the peer has closed.
        """

    def close(self) -> int:
        """Release everything; return how many bytes had arrived that nobody read."""
