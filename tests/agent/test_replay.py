"""Input repeated, so that a new handler has the state of the one before it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, ClassVar

import pytest

from kapudf_cli.agent.checkpoints import NoCheckpoints, ResumePoint
from kapudf_cli.agent.dispatcher import Dispatcher, RefusedError
from kapudf_cli.agent.errors import HandlerError
from kapudf_cli.agent.handler_caller import HandlerCaller
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.agent.recovery import Recovery
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import REQUESTS, decode_point
from kapudf_cli.protocol.errors import UnexpectedMessageError
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES
from kapudf_cli.protocol.request_reader import RequestReader
from kapudf_cli.protocol.udf_pb2 import (
    EndBatch,
    InitRequest,
    InitResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
)
from kapudf_cli.transport import SocketStream
from kapudf_cli.transport.commit import ConnectionStats

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.handler.handler import Writer
    from kapudf_cli.protocol.codec import RequestMessage
    from kapudf_cli.protocol.raw_points import RawPoint


class Notes(Handler):
    """Notes what it is given, and raises over what is named so."""

    made: ClassVar[list[Notes]] = []

    def __init__(self, agent: Writer) -> None:
        super().__init__(agent)
        self.seen: list[int] = []
        self.restored = b""
        self.stopped = False
        self.made.append(self)

    def point(self, point: Point, /) -> None:
        if point.name == "raise":
            raise ValueError(point.time)
        self.seen.append(point.time)
        self.agent.write_point(point)

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        self.restored = request.snapshot
        return RestoreResponse(success=True)

    def stop(self) -> None:
        self.stopped = True
        raise OSError("stuck")


class RawNotes(Notes):
    """The same, with points as they come."""

    def setup(self) -> None:
        self.raw_point = self._raw_point

    def _raw_point(self, raw: RawPoint, /) -> None:
        self.point(decode_point(raw))


class Refuses(Notes):
    def init(self, request: InitRequest, /) -> InitResponse:
        return InitResponse(error=f"not {request.taskID}")


class Stored(NoCheckpoints):
    """What another agent has stored of a connection."""

    stored = b""

    def history(self, until: int) -> bytes:
        del until
        return self.stored


class Room:
    """A recovery with all that it works on, and where what leaves would arrive."""

    def __init__(self, handler: type[Handler], on_error: OnError = "fail") -> None:
        self.peer, theirs = socket.socketpair()
        self.peer.settimeout(0)
        self.stream = SocketStream(theirs)
        self.outbox = Outbox(
            self.stream,
            max_frame_bytes=DEFAULT_MAX_FRAME_BYTES,
            on_failure=self.stream.interrupt,
        )
        self.dispatcher = Dispatcher(
            HandlerCaller(handler, self.outbox), self.outbox, on_error=on_error
        )
        self.requests = RequestReader(DEFAULT_MAX_FRAME_BYTES)
        self.checkpoints = Stored()
        self.recovery = Recovery(self.dispatcher, self.requests, self.checkpoints)

    def replay(self, history: bytes, until: int, poison: Collection[int] = ()) -> None:
        """Take over from an agent that had come to `until`."""
        self.checkpoints.stored = history
        self.recovery.resume(ResumePoint(stats=ConnectionStats(offset=until)), poison)

    @property
    def handler(self) -> Handler:
        return self.dispatcher.caller.handler

    def close(self) -> None:
        self.outbox.flush()
        with pytest.raises(BlockingIOError):
            self.peer.recv(1)
        self.stream.close()
        self.peer.close()


@pytest.fixture
def rooms() -> Iterator[list[Room]]:
    """Give a list of rooms, out of none of which anything may leave."""
    rooms: list[Room] = []
    Notes.made.clear()
    yield rooms
    for room in rooms:
        room.close()


def encoded(*messages: RequestMessage) -> bytes:
    return b"".join(map(REQUESTS.encode, messages))


PREFIX = encoded(InitRequest(taskID="task"), RestoreRequest(snapshot=b"state"))


def points(*names: str) -> list[Point]:
    return [Point(time=time, name=name) for time, name in enumerate(names)]


def seen(handler: Handler) -> list[int]:
    assert isinstance(handler, Notes)
    return handler.seen


@pytest.mark.parametrize("handler", [Notes, RawNotes])
def test_a_new_handler_gets_the_whole_history(rooms: list[Room], handler: type[Handler]) -> None:
    room = Room(handler)
    rooms.append(room)
    data = encoded(*points("a", "b", "c"))
    for _ in range(2):
        room.replay(PREFIX + data, 1000)
    assert len(Notes.made) == 2
    assert [each.stopped for each in Notes.made] == [True, False]
    assert seen(room.handler) == [0, 1, 2]
    assert Notes.made[1].restored == b"state"


@pytest.mark.parametrize("handler", [Notes, RawNotes])
def test_frames_are_skipped_by_their_offset(rooms: list[Room], handler: type[Handler]) -> None:
    room = Room(handler)
    rooms.append(room)
    some = points("a", "b", "c", "d")
    until = 5000
    offsets = [until - len(encoded(*some[number:])) for number in range(4)]
    room.recovery.skip_in_replays(offsets[3])
    room.replay(PREFIX + encoded(*some), until, poison={offsets[1]})
    assert seen(room.handler) == [0, 2]
    room.replay(PREFIX + encoded(*some), until)
    assert seen(room.handler) == [0, 2], "what killed once is left out for good"
    room.recovery.compact()
    room.replay(PREFIX + encoded(*some), until)
    assert seen(room.handler) == [0, 1, 2, 3]


def test_restart_replays_again_without_the_failing_frame(
    rooms: list[Room],
) -> None:
    room = Room(Notes, "restart")
    rooms.append(room)
    history = PREFIX + encoded(*points("a", "raise", "b", "raise", "c"))
    room.replay(history, 1000)
    assert seen(room.handler) == [0, 2, 4]
    assert len(Notes.made) == 3
    room.replay(history, 1000)
    assert len(Notes.made) == 4
    assert (room.recovery.stats().failures, room.recovery.stats().restarts) == (0, 0)


def test_skip_drops_failing_frames_of_the_replay(rooms: list[Room]) -> None:
    room = Room(Notes, "skip")
    rooms.append(room)
    room.replay(PREFIX + encoded(*points("a", "raise", "b")), 1000)
    assert seen(room.handler) == [0, 2]
    assert len(Notes.made) == 1
    assert room.recovery.stats().failures == 0


def test_a_failing_replay_raises(rooms: list[Room]) -> None:
    room, refusing = Room(Notes), Room(Refuses)
    rooms += [room, refusing]
    with pytest.raises(HandlerError, match="ValueError: 1"):
        room.replay(PREFIX + encoded(*points("a", "raise")), 1000)
    with pytest.raises(UnexpectedMessageError):
        room.replay(PREFIX + encoded(EndBatch()), 1000)
    with pytest.raises(RefusedError, match="not task"):
        refusing.replay(PREFIX, 1000)


def test_an_empty_history_creates_a_handler(rooms: list[Room]) -> None:
    room = Room(Notes)
    rooms.append(room)
    room.replay(b"", 0)
    assert seen(room.handler) == []
