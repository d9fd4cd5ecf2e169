"""What every kind of target is: something to open connections to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kapudf_cli.client.last_words import cause_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from kapudf_cli.client.driver import KapacitorSide


@dataclass(frozen=True)
class Ending:
    """How a UDF's end of a connection came to its end.

    Attributes:
        clean: nothing went wrong: a process exited with status 0, a handler raised nothing.
        text: what happened, to be put after the UDF's name: `exited with status 1`.
        last_words: the last lines that it wrote to stderr, oldest first. The `panic:` line
            of a Go program comes first, however long the stacks after it are.
    """

    clean: bool
    text: str
    last_words: tuple[str, ...] = ()

    @property
    def cause(self) -> str:
        """The line on its stderr that says why it ended; empty where there is none."""
        return cause_line(self.last_words)


@dataclass(frozen=True)
class Connection:
    """One connection to the UDF under test.

    Attributes:
        side: Kapacitor's end of it.
        pid: the process at the other end, None where the system does not say.
        ending: waits for up to so many seconds for the UDF to end, and returns how it
            did; None if it has not, or if that cannot be seen from here, as with a socket.
        drains: whether the UDF is known to answer all of its input before it closes, and a
            keepalive only after the points before it. True for kapudf's own agent; other
            agents may drop answers that are not written when their input ends.
    """

    side: KapacitorSide
    pid: int | None
    ending: Callable[[float], Ending | None]
    drains: bool = False


class Target(Protocol):
    """A UDF that can be connected to, as often as wanted."""

    @property
    def name(self) -> str:
        """What messages call it: a path, a command, a handler's name."""

    def open(self, *, timeout_s: float) -> AbstractContextManager[Connection]:
        """Connect; leaving the block closes the connection, and ends what was started for it.

        Args:
            timeout_s: how long connecting may take, and then every wait on the connection
                until `side.extend`.

        Raises:
            TargetError: there is nothing to connect to, or it cannot be started.
        """
