"""A read loop with all that it works on, for the tests of its parts."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from kapudf_cli.agent.checkpoints import NoCheckpoints
from kapudf_cli.agent.dispatcher import Dispatcher
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
    from kapudf_cli.transport.commit import ConnectionStats

INIT = REQUESTS.encode(InitRequest(taskID="task"))


class CountsBatches(Counting):
    """Says at the end of each batch how many points there have been; some it cannot bear."""

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
    """Wants a cut whenever it is asked, and notes them; keeps all input for a new handler.

    Attributes:
        cuts: the prefix and the remainder of each.
        declines: whether there is no room for any.
        current_frame: the frames that were noted before they were given to the handler.
    """

    def __init__(self) -> None:
        self.cuts: list[tuple[bytes, bytes]] = []
        self.declines = False
        self.wants = True
        self.input = b""
        self.current_frame: list[int | None] = []

    def is_due(self, now_s: float, *, stateless: bool, snapshot_requested: bool) -> bool:
        del now_s, stateless, snapshot_requested
        return self.wants

    def compact(self, prefix: bytes, remainder: bytes) -> bool:
        self.cuts.append((prefix, remainder))
        return not self.declines

    def history(self, until: int) -> bytes:
        return self.input[:until]

    def record_current_frame(self, offset: int | None) -> None:
        self.current_frame.append(offset)


class Loop:
    """A read loop with all that it works on, and the peer's end of the socket."""

    def __init__(self, on_error: OnError = "fail", handler: type[Handler] = CountsBatches) -> None:
        self.peer, theirs = socket.socketpair()
        self.peer.settimeout(0)
        stream = self.stream = SocketStream(theirs)
        self.outbox = Outbox(
            stream, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES, on_failure=stream.interrupt
        )
        self.kept = RecordedCheckpoints()
        self.dispatcher = Dispatcher(
            HandlerCaller(handler, self.outbox), self.outbox, on_error=on_error
        )
        self.recovery = Recovery(self.dispatcher, RequestReader(DEFAULT_MAX_FRAME_BYTES), self.kept)
        self.read_loop = ReadLoop(stream, self.dispatcher, self.recovery, linger_ms=0)
        self.dispatcher.caller.create()

    @property
    def stats(self) -> ConnectionStats:
        return self.recovery.stats()

    def take(self, data: bytes) -> int:
        self.kept.input += data
        return self.read_loop.handle(data)

    def answers(self) -> list[ResponseMessage]:
        """Flush, and return what has left."""
        self.outbox.flush()
        frames = FrameReader(RESPONSES.decode_in)
        return list(frames.feed(self.peer.recv(1 << 20)))

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
