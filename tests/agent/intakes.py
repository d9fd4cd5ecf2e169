"""An intake with all that it works on, for the tests of its parts."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from kapudf_cli.agent.account import Account
from kapudf_cli.agent.callee import Callee
from kapudf_cli.agent.checkpoints import NothingKept
from kapudf_cli.agent.dispatch import Dispatcher
from kapudf_cli.agent.intake import Intake
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.agent.recovery import Recovery
from kapudf_cli.streams import SocketStream
from kapudf_cli.wire.codec import REQUESTS, RESPONSES
from kapudf_cli.wire.framing import DEFAULT_MAX_FRAME_BYTES, FrameReader
from kapudf_cli.wire.requests import RequestReader
from kapudf_cli.wire.udf_pb2 import BATCH, BeginBatch, EndBatch, InitRequest, Point
from tests.counters import Counting, counted

if TYPE_CHECKING:
    from kapudf_cli.agent.on_error import OnError
    from kapudf_cli.kit.handler import Handler
    from kapudf_cli.wire.codec import RequestMessage, ResponseMessage

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


class NotedCuts(NothingKept):
    """Wants a cut whenever it is asked, and notes them; keeps all input for a new handler.

    Attributes:
        cuts: the prefix and the remainder of each.
        declines: whether there is no room for any.
        in_hand: the frames that were noted before they were given to the handler.
    """

    def __init__(self) -> None:
        self.cuts: list[tuple[bytes, bytes]] = []
        self.declines = False
        self.wants = True
        self.input = b""
        self.in_hand: list[int | None] = []

    def is_due(self, now_s: float, *, stateless: bool, asked: bool) -> bool:
        del now_s, stateless, asked
        return self.wants

    def cut(self, prefix: bytes, remainder: bytes) -> bool:
        self.cuts.append((prefix, remainder))
        return not self.declines

    def history(self, until: int) -> bytes:
        return self.input[:until]

    def note_in_hand(self, offset: int | None) -> None:
        self.in_hand.append(offset)


class Room:
    """An intake with all that it works on, and where what leaves arrives."""

    def __init__(self, on_error: OnError = "fail", handler: type[Handler] = CountsBatches) -> None:
        self.peer, theirs = socket.socketpair()
        self.peer.settimeout(0)
        stream = self.stream = SocketStream(theirs)
        self.outbox = Outbox(
            stream, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES, on_failure=stream.interrupt
        )
        self.account = Account()
        self.kept = NotedCuts()
        callee = Callee(handler, self.outbox)
        dispatcher = Dispatcher(callee, self.outbox, self.account, on_error=on_error, on_init=None)
        self.requests = RequestReader(DEFAULT_MAX_FRAME_BYTES)
        self.recovery = Recovery(
            callee,
            dispatcher,
            self.outbox,
            self.account,
            self.requests,
            checkpoints=self.kept,
        )
        self.intake = Intake(
            callee,
            dispatcher,
            self.outbox,
            self.account,
            self.requests,
            checkpoints=self.kept,
            recovery=self.recovery,
        )
        callee.make()

    def take(self, data: bytes) -> int:
        self.kept.input += data
        return self.intake.take(data)

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
