"""What the log says of a connection: where its thread is, and how it went."""

from __future__ import annotations

import itertools
import shlex
import sys
import traceback
from typing import TYPE_CHECKING

from kapudf_cli.agent.account import Reason

if TYPE_CHECKING:
    import threading

    from structlog.stdlib import BoundLogger

    from kapudf_cli.agent.account import Account


def where(thread: threading.Thread) -> str:
    """Return the line that a thread is at, innermost first."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the documented way
    if frame is None:
        return "ended"
    calls = reversed(traceback.extract_stack(frame))
    return " < ".join(
        f"{call.name} ({call.filename}:{call.lineno})" for call in itertools.islice(calls, 5)
    )


def log_finish(log: BoundLogger, account: Account) -> None:
    """Log the one event that says how a connection went."""
    facts = {
        "reason": account.reason.value,
        "task_id": account.task_id,
        "node_id": account.node_id,
        "points_in": account.points_in,
        "points_out": account.points_out,
        "batches_in": account.batches_in,
        "batches_out": account.batches_out,
        "bytes_in": account.bytes_in,
        "bytes_out": account.bytes_out,
        "duration_s": round(account.duration_s, 6),
    }
    for name in ("failures", "restarts", "takeovers", "unprocessed_bytes", "refusal"):
        if getattr(account, name):
            facts[name] = getattr(account, name)
    if account.batch_unfinished:
        facts["batch_unfinished"] = True
    goes_on = account.reason in {Reason.CLOSED, Reason.HANDED_OVER} and account.refusal is None
    if account.task_id and not goes_on:
        # Kapacitor does not connect again by itself, and enabling a failed task does nothing.
        facts["recover"] = f"kapacitor reload {shlex.quote(account.task_id)}"
    if account.stop_error is not None:
        log.error("stop failed", error=str(account.stop_error), exc_info=account.stop_error.cause)
    match account.reason:
        case Reason.HANDLER_ERROR:
            cause = account.error.__cause__ if account.error else None
            log.error("connection finished", **facts, error=str(account.error), exc_info=cause)
        case Reason.PROTOCOL_ERROR:
            log.warning("connection finished", **facts, error=str(account.error))
        case _ if account.refusal is not None:
            log.warning("connection finished", **facts)
        case _:
            log.info("connection finished", **facts)
