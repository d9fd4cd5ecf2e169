"""Errors of UDFs that cannot be reached, do not answer, or break the protocol; and their texts.

Replay, check, load and testing use the same texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kapudf_cli.errors import KapudfError


class TargetError(KapudfError):
    """A UDF cannot be connected to, or cannot be started.

    Attributes:
        target: the path or command as the user gave it.
        problem: the reason, without the target.
    """

    def __init__(self, target: str, problem: str) -> None:
        super().__init__(f"{target}: {problem}")
        self.target = target
        self.problem = problem


class ProbeError(KapudfError):
    """A UDF did not answer Info as Kapacitor needs it to."""


class UdfFaultError(KapudfError):
    """A UDF broke a rule: it failed its task, hung, closed, or sent what it must not send.

    Attributes:
        problem: what it did, without a subject: `closed the connection instead of …`.
        reported: the text of its ErrorResponse, None if it sent none.
    """

    def __init__(self, problem: str, *, advice: str = "", reported: str | None = None) -> None:
        super().__init__(f"the UDF {problem}" + (f". {advice}" if advice else ""))
        self.problem = problem
        self.reported = reported


# --- texts ---

#: What Kapacitor does, and what to do then.
TASK_FAILS: Final = "In Kapacitor the task fails; `kapacitor reload TASK` starts it again"
#: What to look for in a silent UDF.
STUCK: Final = "Is it stuck in a call, or does it not flush what it writes?"
HEARTBEATS: Final = (
    "When served, kapudf tells Kapacitor that the handler is busy, and the task goes on until "
    "busy_limit_s, five minutes by default. To wait longer here, raise --timeout"
)


@dataclass(frozen=True)
class Wait:
    """The error messages for one kind of wait.

    Attributes:
        silent: what the UDF did if it sends nothing: `gave no answer to Info within 10 s`.
        closed: when the UDF closed if it closes now: `instead of answering Info`.
        advice: what to look for if it sends nothing.
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
    """Return the messages while data is sent."""
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


def refused(what: str, reason: str) -> UdfFaultError:
    """Return the error for an answer without success."""
    text = " ".join(reason.split()) or "it gives no reason; set `error` in its answer"
    return UdfFaultError(f"refused {what}: {text:.500}")


def failed(text: str) -> UdfFaultError:
    """Return the error for an ErrorResponse."""
    line = " ".join(text.split()) or "(no text)"
    return UdfFaultError(f"failed the task: {line:.500}", reported=text)
