"""Messages that are written and cannot leave yet, up to a limit; sans-I/O."""

from __future__ import annotations

from typing import Final, NamedTuple

#: The most that is kept of what cannot leave yet, in bytes.
BACKLOG_BYTES: Final = 1024 * 1024


class Written(NamedTuple):
    """A message that was written, as a frame.

    Attributes:
        frame: the whole frame.
        kind: the class of the message in it.
        by_owner: whether the thread that reads the connection's input wrote it.
    """

    frame: bytes
    kind: type
    by_owner: bool


class Backlog:
    """Messages in the order in which they were written.

    Attributes:
        size: bytes in their frames.
    """

    __slots__ = ("_messages", "size")

    def __init__(self) -> None:
        """Begin with nothing."""
        self._messages: list[Written] = []
        self.size = 0

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self._messages)

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be added; what comes last may pass the limit."""
        return self.size >= BACKLOG_BYTES

    def add(self, message: Written) -> None:
        """Add a message at the end."""
        self._messages.append(message)
        self.size += len(message.frame)

    def take(self) -> list[Written]:
        """Return all messages, and forget them."""
        messages, self._messages = self._messages, []
        self.size = 0
        return messages
