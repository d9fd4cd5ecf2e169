"""What the log says of a connection: where its thread is, and how it went."""

from __future__ import annotations

import itertools
import shlex
import sys
import traceback
from typing import TYPE_CHECKING

from kapudf_cli.agent.summary import Reason

if TYPE_CHECKING:
    import threading

    from structlog.stdlib import BoundLogger

    from kapudf_cli.agent.summary import ConnectionSummary


def where(thread: threading.Thread) -> str:
    """Return the line that a thread is at, innermost first."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the documented way
    if frame is None:
        return "ended"
    calls = reversed(traceback.extract_stack(frame))
    return " < ".join(
        f"{call.name} ({call.filename}:{call.lineno})" for call in itertools.islice(calls, 5)
    )


def log_finish(log: BoundLogger, summary: ConnectionSummary) -> None:
    """Log the one event that says how a connection went."""
    stats = summary.stats
    facts: dict[str, object] = {
        "reason": summary.reason.value,
        "task_id": summary.task_id,
        "node_id": summary.node_id,
        "points_in": stats.points_in,
        "points_out": stats.points_out,
        "batches_in": stats.batches_in,
        "batches_out": stats.batches_out,
        "bytes_in": summary.bytes_in,
        "bytes_out": stats.bytes_out,
        "duration_s": round(summary.duration_s, 6),
    }
    unusual = {
        "failures": stats.failures,
        "restarts": stats.restarts,
        "takeovers": stats.takeovers,
        "unprocessed_bytes": summary.unprocessed_bytes,
        "refusal": summary.refusal,
        "batch_unfinished": summary.batch_unfinished,
    }
    facts |= {name: value for name, value in unusual.items() if value}
    goes_on = summary.reason in {Reason.CLOSED, Reason.HANDED_OVER} and summary.refusal is None
    if summary.task_id and not goes_on:
        # Kapacitor does not connect again by itself, and enabling a failed task does nothing.
        facts["recover"] = f"kapacitor reload {shlex.quote(summary.task_id)}"
    if summary.stop_error is not None:
        log.error("stop failed", error=str(summary.stop_error), exc_info=summary.stop_error.cause)
    match summary.reason:
        case Reason.HANDLER_ERROR:
            cause = summary.error.__cause__ if summary.error else None
            log.error("connection finished", **facts, error=str(summary.error), exc_info=cause)
        case Reason.PROTOCOL_ERROR:
            log.warning("connection finished", **facts, error=str(summary.error))
        case _ if summary.refusal is not None:
            log.warning("connection finished", **facts)
        case _:
            log.info("connection finished", **facts)
