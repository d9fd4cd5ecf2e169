"""Error messages about a UDF that fails, hangs or closes, for replay, check, load and testing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kapudf_cli.client.errors import UdfFaultError

if TYPE_CHECKING:
    from kapudf_cli.client.target import Connection

#: How long a process may take to exit after it has closed its connection.
EXIT_S: Final = 2.0
_TASK_FAILS: Final = "In Kapacitor the task fails; `kapacitor reload TASK` starts it again"
#: What to look for in a UDF from which nothing comes.
STUCK: Final = "Is it stuck in a call, or does it not flush what it writes?"
HEARTBEATS: Final = (
    "When served, kapudf tells Kapacitor that the handler is busy, and the task goes on until "
    "busy_limit_s, five minutes by default. To wait longer here, raise --timeout"
)


@dataclass(frozen=True)
class Wait:
    """What is awaited, for error messages.

    Attributes:
        silent: what a UDF did that sent nothing for too long.
        closed: when a UDF closed that closes now: `instead of answering Info`.
        advice: what to look for in a silent UDF.
    """

    silent: str
    closed: str
    advice: str = ""


def answering(what: str, timeout_s: float) -> Wait:
    """Return the messages for a wait for an answer."""
    return Wait(
        f"gave no answer to {what} within {timeout_s:g} s", f"instead of answering {what}", STUCK
    )


def sending(timeout_s: float) -> Wait:
    """Return the messages for the time in which data is sent."""
    return Wait(
        f"sent nothing for {timeout_s:g} s, not even an answer to a keepalive",
        "before the end of the data",
        f"{STUCK} Kapacitor aborts such a task",
    )


def closing(timeout_s: float) -> Wait:
    """Return the messages for a wait for the end of the connection."""
    return Wait(
        f"did not close the connection within {timeout_s:g} s of the end of its input",
        "before it had answered everything",
        "At the end of its input it must flush what it has and close; Kapacitor waits for that",
    )


def closed(connection: Connection, when: str) -> UdfFaultError:
    """Return the error for a UDF that closed too early, with how its process ended."""
    ending = connection.ending(EXIT_S)
    if ending is None:
        advice = f"Its log may say why. {_TASK_FAILS}"
        return UdfFaultError(f"closed the connection {when}", advice=advice)
    return UdfFaultError(f"closed the connection {when}; it {ending}", advice=_TASK_FAILS)


def refused(what: str, reason: str) -> UdfFaultError:
    """Return the error for an answer without success."""
    text = " ".join(reason.split()) or "it gives no reason; set `error` in its answer"
    return UdfFaultError(f"refused {what}: {text:.500}")


def failed(text: str) -> UdfFaultError:
    """Return the error for an ErrorResponse."""
    line = " ".join(text.split()) or "(no text)"
    return UdfFaultError(f"failed the task: {line:.500}", reported=text)
