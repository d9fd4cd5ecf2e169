"""The parts of an agent whose handler has partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.agent.partition_line import PartitionLine
from kapudf_cli.agent.partitioned_handler import PartitionedCaller, PartitionedDispatcher
from kapudf_cli.agent.partitioned_loop import PartitionedLoop, PartitionedRecovery
from kapudf_cli.agent.parts import Parts

if TYPE_CHECKING:
    from kapudf_cli.agent.checkpoints import Checkpoints
    from kapudf_cli.agent.partitions import Partitions
    from kapudf_cli.agent.parts import PartSettings
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.transport import Stream


def assemble(
    stream: Stream,
    handler: type[Handler],
    checkpoints: Checkpoints,
    settings: PartSettings,
    partitions: Partitions,
) -> Parts:
    """Return the parts of the agent that serves `stream` with a handler in each partition."""
    outbox = Outbox(
        stream,
        max_frame_bytes=settings.max_frame_bytes,
        on_failure=settings.on_failure,
        provides=handler.provides,
    )
    line = PartitionLine(partitions.count, settings.max_frame_bytes)
    caller = PartitionedCaller(handler, outbox, partitions, line)
    dispatcher = PartitionedDispatcher(
        line, caller, outbox, on_error=settings.on_error, on_init=settings.on_init
    )
    recovery = PartitionedRecovery(dispatcher, line, checkpoints, partitions)
    read_loop = PartitionedLoop(
        stream,
        dispatcher,
        recovery,
        partitions,
        ordered=handler.ordered,
        linger_ms=settings.linger_ms,
    )
    return Parts(outbox, caller, dispatcher, line, recovery, read_loop)
