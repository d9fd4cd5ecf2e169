"""Messages for the author of a UDF: what it did wrong, and what Kapacitor would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kapudf_cli.tools.replay.summary import counted

if TYPE_CHECKING:
    from kapudf_cli.client import Ending
    from kapudf_cli.tools.replay.summary import Counts

NO_SNAPSHOT: Final = (
    "the UDF did not answer Snapshot; one without state answers with no bytes, at once"
)
_ITS_LOG: Final = "its log may say why"
_TASK_STOPS: Final = "In Kapacitor the task fails; `kapacitor reload TASK` starts it again"
_HEARTBEATS: Final = (
    "When served, kapudf tells Kapacitor that the handler is busy, and the task goes on until "
    "busy_limit_s, five minutes by default. To wait longer here, raise --timeout"
)


def refused(question: str, reason: str) -> str:
    """Return what to say of an answer without success."""
    told = _one_line(reason) or "it gives no reason; set `error` in its answer"
    return f"the UDF refused {question}: {told}"


def reported(text: str) -> str:
    """Return what to say of an ErrorResponse."""
    return f"the UDF failed the task: {_one_line(text) or '(no text)'}"


def silent(timeout_s: float, counts: Counts, *, after_data: bool, in_process: bool) -> str:
    """Return the message about a UDF that sent nothing for too long.

    Args:
        timeout_s: for how long nothing came.
        counts: what had gone through by then.
        after_data: whether the data were at their end.
        in_process: whether it is a handler in this process, without the heartbeats that
            `serve` and `exec` send for it.
    """
    progress = f"{_came(counts)} of {_sent(counts)} sent"
    if in_process:
        when = " after the end of the data" if after_data else ""
        problem = f"a call of the handler took more than {timeout_s:g} s{when} ({progress})"
        return f"{problem}. {_HEARTBEATS}"
    if after_data:
        return (
            f"nothing came from the UDF for {timeout_s:g} s after the end of the data "
            f"({progress}), and it did not close; is it stuck in a call? "
            "At the end of its input it must flush what it has and close"
        )
    return (
        f"nothing came from the UDF for {timeout_s:g} s, not even an answer to a keepalive "
        f"({progress}); is it stuck in a call, or does it not flush what it writes? "
        f"Kapacitor aborts such a task"
    )


def closed_instead_of(answer: str) -> str:
    """Return what to say of a UDF that closed while it was being waited for."""
    return f"the UDF closed the connection instead of sending {answer}; {_ITS_LOG}"


def closed_early(counts: Counts, *, snapshot: bool) -> str:
    """Return what to say of a UDF that closed before the end of its input."""
    when = "when it was asked for a snapshot" if snapshot else "before the end of the data"
    return (
        f"the UDF closed the connection {when}, with {_came(counts)} of {_sent(counts)} sent; "
        f"{_ITS_LOG}. {_TASK_STOPS}"
    )


def ended_badly(counts: Counts, ending: Ending) -> str:
    """Return what to say of a UDF that had all of its input, and then ended with an error."""
    problem = f"the UDF ended badly, with {_came(counts)} of {_sent(counts)} sent"
    return with_ending(problem, ending)


def with_ending(problem: str, ending: Ending | None) -> str:
    """Return a problem with how the UDF ended, if it did, and why by its stderr."""
    if ending is None:
        return problem
    said = f", after saying: {ending.cause}" if ending.cause else ""
    return f"{problem} ({ending.text}{said})"


def _came(counts: Counts) -> str:
    return counted(counts.points_received, "point") + " back"


def _sent(counts: Counts) -> str:
    return f"{counts.points_sent:,}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
