"""The parts of an agent whose handler has async methods. Importing this imports asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.agent.async_caller import AsyncCaller
from kapudf_cli.agent.concurrent_dispatcher import ConcurrentDispatcher
from kapudf_cli.agent.concurrent_loop import ConcurrentLoop
from kapudf_cli.agent.concurrent_outbox import ConcurrentOutbox
from kapudf_cli.agent.parts import Parts
from kapudf_cli.agent.recovery import Recovery
from kapudf_cli.protocol.input_window import InputWindow

if TYPE_CHECKING:
    from kapudf_cli.agent.checkpoints import Checkpoints
    from kapudf_cli.agent.parts import PartSettings
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.transport import Stream


def assemble(
    stream: Stream, handler: type[Handler], checkpoints: Checkpoints, settings: PartSettings
) -> Parts:
    """Return the parts of the agent that serves `stream` with a handler."""
    outbox = ConcurrentOutbox(
        stream,
        max_frame_bytes=settings.max_frame_bytes,
        on_failure=settings.on_failure,
        provides=handler.provides,
    )
    caller = AsyncCaller(
        handler,
        outbox,
        concurrency=settings.concurrency or handler.concurrency,
        timeout_s=handler.timeout_s if settings.timeout_s is None else settings.timeout_s,
        ordered=handler.ordered,
    )
    dispatcher = ConcurrentDispatcher(
        caller, outbox, on_error=settings.on_error, on_init=settings.on_init
    )
    window = InputWindow(settings.max_frame_bytes)
    recovery = Recovery(dispatcher, window, checkpoints)
    read_loop = ConcurrentLoop(stream, dispatcher, recovery)
    return Parts(outbox, caller, dispatcher, window, recovery, read_loop)
