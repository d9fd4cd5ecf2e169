"""The account of one connection: what it did, and why it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kapudf_cli.errors import HandlerError, KapudfError


class Reason(enum.StrEnum):
    """Why a connection ended, or left the agent that served it."""

    CLOSED = "closed"
    HANDLER_ERROR = "handler_error"
    PROTOCOL_ERROR = "protocol_error"
    STOPPED = "stopped"
    #: Not an end: another worker serves it from here on.
    HANDED_OVER = "handed_over"


@dataclass
class Account:
    """What one connection did, up to now or in the end.

    Counts are of messages, bytes of framed data. `unprocessed_bytes` arrived and were
    not dealt with, the frame at fault included; `error` is the cause where `reason`
    names a fault.
    """

    task_id: str = ""
    node_id: str = ""
    points_in: int = 0
    points_out: int = 0
    batches_in: int = 0
    batches_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    failures: int = 0
    restarts: int = 0
    takeovers: int = 0
    unprocessed_bytes: int = 0
    batch_unfinished: bool = False
    #: Why the handler refused Init or Restore, None if it did not.
    refusal: str | None = None
    duration_s: float = 0.0
    reason: Reason = Reason.CLOSED
    error: KapudfError | None = None
    #: What `stop` raised, where the connection had ended for another reason.
    stop_error: HandlerError | None = None
