"""The parts of an agent on a socket pair, and a handler of batches, for tests of the parts."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Self

from kapudf_cli.agent.checkpoints import NoCheckpoints
from kapudf_cli.agent.dispatcher import Dispatcher
from kapudf_cli.agent.error_policy import DEFAULT_ON_ERROR
from kapudf_cli.agent.handler_caller import HandlerCaller
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.agent.read_loop import ReadLoop
from kapudf_cli.agent.recovery import Recovery
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES, FrameReader
from kapudf_cli.protocol.request_reader import RequestReader
from kapudf_cli.protocol.udf_pb2 import BATCH, BeginBatch, EndBatch, InitRequest, Point
from kapudf_cli.transport import SocketStream
from tests.counters import Counting, counted

if TYPE_CHECKING:
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from kapudf_cli.transport.stream import ConnectionStats

INIT = REQUESTS.encode(InitRequest(taskID="task"))


class CountsBatches(Counting):
    """Writes at the end of each batch how many points there were; raises for some points."""

    wants = BATCH

    def point(self, point: Point, /) -> None:
        if point.name == "raise":
            raise ValueError(point.time)
        self.count += 1

    def begin_batch(self, begin: BeginBatch, /) -> None:
        pass

    def end_batch(self, end: EndBatch, /) -> None:
        self.agent.write_point(counted(end.tmax, self.count))


class RecordedCheckpoints(NoCheckpoints):
    """Records compactions, and stores all input for a new handler.

    Attributes:
        compactions: the prefix and the remainder of each.
        declines: whether there is no room for a compaction.
        wants: whether a compaction is always due, or never.
        current_frame: the frames recorded before they were given to the handler.
    """

    def __init__(self) -> None:
        self.compactions: list[tuple[bytes, bytes]] = []
        self.declines = False
        self.wants = True
        self.input = b""
        self.current_frame: list[int | None] = []

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        del now_s, stateless, snapshot_requested
        return self.wants

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        self.compactions.append((prefix, remainder))
        return not self.declines

    def history(self, until: int) -> bytes:
        return self.input[:until]

    def record_current_frame(self, offset: int | None) -> None:
        self.current_frame.append(offset)


class AgentParts:
    """The parts of an agent without its thread, and the peer's end of the connection.

    Attributes:
        checkpoints: records what the agent stores.
    """

    def __init__(
        self, handler: type[Handler] = CountsBatches, on_error: OnError = DEFAULT_ON_ERROR
    ) -> None:
        self.peer, theirs = socket.socketpair()
        self.peer.settimeout(0)
        self.stream = SocketStream(theirs)
        self.outbox = Outbox(
            self.stream, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES, on_failure=self.stream.interrupt
        )
        self.checkpoints = RecordedCheckpoints()
        self.dispatcher = Dispatcher(
            HandlerCaller(handler, self.outbox), self.outbox, on_error=on_error
        )
        self.recovery = Recovery(
            self.dispatcher, RequestReader(DEFAULT_MAX_FRAME_BYTES), self.checkpoints
        )
        self.read_loop = ReadLoop(self.stream, self.dispatcher, self.recovery, linger_ms=0)

    def create_handler(self) -> Self:
        self.dispatcher.caller.create()
        return self

    @property
    def handler(self) -> Handler:
        return self.dispatcher.caller.handler

    @property
    def stats(self) -> ConnectionStats:
        return self.recovery.stats()

    def read(self, data: bytes) -> int:
        """Handle input that was read; return how many requests it completed."""
        self.checkpoints.input += data
        return self.read_loop.handle(data)

    def responses(self) -> list[ResponseMessage]:
        """Flush, and return what the peer has received since the last call."""
        self.outbox.flush()
        try:
            data = self.peer.recv(1 << 20)
        except BlockingIOError:
            return []
        return list(FrameReader(RESPONSES.decode_in).feed(data))

    def close(self) -> None:
        self.stream.close()
        self.peer.close()


def batch(number: int, *names: str) -> bytes:
    """Return a batch as frames, with a point of each name."""
    messages: list[RequestMessage] = [
        BeginBatch(size=len(names)),
        *(Point(time=time, name=name) for time, name in enumerate(names)),
        EndBatch(tmax=number),
    ]
    return b"".join(map(REQUESTS.encode, messages))
