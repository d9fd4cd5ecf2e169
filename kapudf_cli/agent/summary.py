"""The summary of one connection: what it did, and why it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kapudf_cli.transport.stream import ConnectionStats

if TYPE_CHECKING:
    from kapudf_cli.agent.errors import HandlerError
    from kapudf_cli.errors import KapudfError


class Reason(enum.StrEnum):
    """Why a connection ended, or left the agent that served it."""

    CLOSED = "closed"
    HANDLER_ERROR = "handler_error"
    PROTOCOL_ERROR = "protocol_error"
    STOPPED = "stopped"
    #: Not an end: another worker serves it from here on.
    HANDED_OVER = "handed_over"


@dataclass(frozen=True)
class ConnectionSummary:
    """How a connection went.

    Attributes:
        reason: why it ended.
        error: the cause, where `reason` names a fault.
        task_id: the task, empty before Init.
        node_id: the node of the task, empty before Init.
        stats: what the connection did.
        bytes_in: bytes received, handled or not.
        unprocessed_bytes: bytes that arrived and were not handled, the frame at fault included.
        batch_unfinished: whether the handler left a batch open.
        refusal: why the handler refused Init or Restore, None if it did not.
        duration_s: from the first agent's start to the end, in seconds.
        stop_error: what `stop` raised, where the connection ended for another reason.
    """

    reason: Reason = Reason.CLOSED
    error: KapudfError | None = None
    task_id: str = ""
    node_id: str = ""
    stats: ConnectionStats = field(default_factory=ConnectionStats)
    bytes_in: int = 0
    unprocessed_bytes: int = 0
    batch_unfinished: bool = False
    refusal: str | None = None
    duration_s: float = 0.0
    stop_error: HandlerError | None = None
