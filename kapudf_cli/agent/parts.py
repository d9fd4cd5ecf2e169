"""The parts of an agent, assembled for a handler whose methods are plain or async."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kapudf_cli.agent.dispatcher import Dispatcher
from kapudf_cli.agent.handler_caller import HandlerCaller
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.agent.read_loop import ReadLoop
from kapudf_cli.agent.recovery import Recovery
from kapudf_cli.handler.definition import is_async
from kapudf_cli.protocol.request_reader import RequestReader
from kapudf_cli.protocol.udf_pb2 import STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.agent.checkpoints import Checkpoints
    from kapudf_cli.agent.concurrent_loop import ConcurrentLoop
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.agent.handler_caller import HandlerFactory
    from kapudf_cli.agent.partition_line import PartitionLine
    from kapudf_cli.agent.partitioned_loop import PartitionedLoop
    from kapudf_cli.agent.partitions import Partitions
    from kapudf_cli.agent.turns import NoTurn, Turn
    from kapudf_cli.protocol.input_window import InputWindow
    from kapudf_cli.transport import Stream


@dataclass(frozen=True)
class PartSettings:
    """Settings of the parts; see `Agent`.

    Attributes:
        on_failure: called when a write of another thread is refused.
        partitions: where the partitions of the handler run; None without partitions.
    """

    turn: Turn | NoTurn
    max_frame_bytes: int
    linger_ms: float
    on_error: OnError
    concurrency: int | None
    timeout_s: float | None
    on_init: Callable[[str, str], None] | None
    on_failure: Callable[[], None]
    partitions: Partitions | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of one agent."""

    outbox: Outbox
    caller: HandlerCaller
    dispatcher: Dispatcher
    requests: RequestReader | InputWindow | PartitionLine
    recovery: Recovery[Any]
    read_loop: ReadLoop | ConcurrentLoop | PartitionedLoop


def import_concurrent_parts() -> Any:
    """Import asyncio, which takes 5 MB and 0.1 s, and return the module that needs it."""
    return importlib.import_module("kapudf_cli.agent.concurrent_parts")


def assemble(
    stream: Stream, handler: HandlerFactory, checkpoints: Checkpoints, settings: PartSettings
) -> Parts:
    """Return the parts of the agent that serves `stream` with a handler."""
    if settings.partitions is not None:
        partitioned = importlib.import_module("kapudf_cli.agent.partitioned_parts")
        with_partitions: Parts = partitioned.assemble(
            stream, handler, checkpoints, settings, settings.partitions
        )
        return with_partitions
    if is_async(handler):
        concurrent = import_concurrent_parts()
        parts: Parts = concurrent.assemble(stream, handler, checkpoints, settings)
        return parts
    outbox = Outbox(
        stream,
        max_frame_bytes=settings.max_frame_bytes,
        on_failure=settings.on_failure,
        turn=settings.turn,
        provides=getattr(handler, "provides", STREAM),
    )
    caller = HandlerCaller(handler, outbox, settings.turn)
    dispatcher = Dispatcher(caller, outbox, on_error=settings.on_error, on_init=settings.on_init)
    requests = RequestReader(settings.max_frame_bytes)
    recovery = Recovery(dispatcher, requests, checkpoints)
    read_loop = ReadLoop(stream, dispatcher, recovery, linger_ms=settings.linger_ms)
    return Parts(outbox, caller, dispatcher, requests, recovery, read_loop)
