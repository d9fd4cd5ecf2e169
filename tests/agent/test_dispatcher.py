"""From a request to the handler's method and its answer, one request at a time."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, ClassVar

import pytest

from kapudf_cli.agent.dispatcher import Dispatcher, Next, RefusedError, ReplayAgainError, excerpt
from kapudf_cli.agent.errors import HandlerError, WorkerLostError
from kapudf_cli.agent.handler_caller import HandlerCaller
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.errors import UnexpectedMessageError
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES, FrameReader, frame_body
from kapudf_cli.protocol.raw_points import RawPoint
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    BOOL,
    BeginBatch,
    EndBatch,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Option,
    OptionValue,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from kapudf_cli.transport import SocketStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage


class Batches(Handler):
    """Passes batches on, and raises over what is named so."""

    wants = BATCH
    provides = BATCH
    calls: ClassVar[list[str]] = []

    def begin_batch(self, begin: BeginBatch, /) -> None:
        self.note("begin", begin.name)
        super().begin_batch(begin)

    def point(self, point: Point, /) -> None:
        self.note("point", point.name)
        self.agent.write_point(point)

    def end_batch(self, end: EndBatch, /) -> None:
        self.note("end", end.name)
        super().end_batch(end)

    def snapshot(self) -> SnapshotResponse:
        return SnapshotResponse(snapshot=b"taken")

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        return RestoreResponse(success=request.snapshot != b"foreign", error="foreign")

    def note(self, call: str, name: str) -> None:
        self.calls.append(call)
        if name == f"raise in {call}":
            raise ValueError(name)


INIT = InitRequest(taskID="task")


class Room:
    """A dispatcher with all that it works on, and Kapacitor's end."""

    def __init__(self, handler: type[Handler], on_error: OnError = "fail") -> None:
        self.peer, theirs = socket.socketpair()
        self.peer.settimeout(0)
        self.stream = SocketStream(theirs)
        self.outbox = Outbox(
            self.stream, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES, on_failure=self.stream.interrupt
        )
        self.dispatcher = Dispatcher(
            HandlerCaller(handler, self.outbox), self.outbox, on_error=on_error
        )
        self.dispatcher.caller.create()
        self.give(INIT)
        assert self.responses() == [InitResponse(success=True)]
        Batches.calls.clear()

    def give(self, *messages: RequestMessage | RawPoint) -> list[Next]:
        return [self.dispatcher.dispatch(message, 7) for message in messages]

    def responses(self) -> list[ResponseMessage]:
        self.outbox.flush()
        try:
            data = self.peer.recv(1 << 20)
        except BlockingIOError:
            return []
        return [RESPONSES.decode(frame) for frame in FrameReader(frame_body).feed(data)]

    def close(self) -> None:
        self.stream.close()
        self.peer.close()


@pytest.fixture
def rooms() -> Iterator[Callable[..., Room]]:
    """Give a way to have rooms, all of which are closed in the end."""
    made: list[Room] = []

    def make(handler: type[Handler] = Batches, on_error: OnError = "fail") -> Room:
        made.append(Room(handler, on_error))
        return made[-1]

    yield make
    for room in made:
        room.close()


WHOLE: list[RequestMessage] = [BeginBatch(name="b"), Point(time=1), EndBatch(name="b")]


# --- exceptions ---


@pytest.mark.parametrize("call", ["begin", "point", "end"])
def test_fail_raises_the_exception(rooms: Callable[..., Room], call: str) -> None:
    room = rooms()
    name = f"raise in {call}"
    with pytest.raises(HandlerError, match=name):
        room.give(BeginBatch(name=name), Point(name=name), EndBatch(name=name))
    assert room.dispatcher.failures == 0


@pytest.mark.parametrize(
    ("call", "calls", "sent"),
    [
        ("begin", ["begin"], []),
        ("point", ["begin", "point", "end"], [BeginBatch, EndBatch]),
        ("end", ["begin", "point", "end"], [BeginBatch, Point]),
    ],
)
@pytest.mark.parametrize("on_error", ["skip", "restart"])
def test_an_exception_drops_its_point_or_its_batch(
    rooms: Callable[..., Room], on_error: OnError, call: str, calls: list[str], sent: list[type]
) -> None:
    room = rooms(on_error=on_error)
    name = f"raise in {call}"
    following = room.give(BeginBatch(name=name), Point(name=name), EndBatch(name=name))
    assert Batches.calls == calls
    assert (Next.RESTART_HANDLER in following) == (on_error == "restart")
    assert room.dispatcher.failures == 1
    assert (room.dispatcher.points_in, room.dispatcher.batches_in) == (1, 1)
    assert [type(each) for each in room.responses()] == sent
    room.give(*WHOLE)
    assert room.responses() == WHOLE
    assert not room.outbox.in_batch


@pytest.mark.parametrize("on_error", ["skip", "restart"])
def test_an_exception_in_a_replay_is_not_counted_again(
    rooms: Callable[..., Room], on_error: OnError
) -> None:
    room = rooms(on_error=on_error)
    bad = Point(name="raise in point")
    with room.dispatcher.replaying():
        room.give(INIT, WHOLE[0])
        if on_error == "restart":
            with pytest.raises(ReplayAgainError) as caught:
                room.give(bad)
            assert caught.value.offset == 7
        else:
            assert room.give(bad) == [Next.GO_ON]
    assert room.dispatcher.failures == 0


def test_points_of_a_skipped_batch_are_counted_and_not_handled(
    rooms: Callable[..., Room],
) -> None:
    room = rooms()
    room.give(*WHOLE, WHOLE[0])
    room.dispatcher.skip_batch()
    Batches.calls.clear()
    for _ in range(3):
        room.give(Point())
        assert not room.dispatcher.order.takes_points
    room.give(RawPoint(REQUESTS.encode(Point())), KeepaliveRequest(time=1), WHOLE[2])
    assert Batches.calls == []
    assert (room.dispatcher.points_in, room.dispatcher.batches_in) == (5, 2)
    assert room.responses() == [*WHOLE, WHOLE[0], KeepaliveResponse(time=1)]
    room.give(*WHOLE)
    assert room.responses() == WHOLE


# --- what is dropped ---


def test_dropped_messages_are_counted_and_not_handled(rooms: Callable[..., Room]) -> None:
    room = rooms()
    for message in WHOLE:
        room.dispatcher.drop(message)
    assert Batches.calls == []
    assert (room.dispatcher.points_in, room.dispatcher.batches_in) == (1, 1)
    with pytest.raises(UnexpectedMessageError):
        room.dispatcher.drop(EndBatch())
    assert room.responses() == []
    room.give(*WHOLE)
    assert room.responses() == WHOLE


def test_a_batch_whose_end_is_dropped_is_abandoned(rooms: Callable[..., Room]) -> None:
    room = rooms()
    room.give(*WHOLE[:2])
    room.dispatcher.drop(WHOLE[2])
    assert not room.outbox.in_batch
    room.give(*WHOLE)
    assert room.responses() == [*WHOLE[:2], *WHOLE]


def test_a_dropped_request_for_a_snapshot_is_answered_with_the_last_one(
    rooms: Callable[..., Room],
) -> None:
    room = rooms()
    answers = []
    for before in ([], [RestoreRequest(snapshot=b"restored")], [SnapshotRequest()]):
        room.give(*before)
        room.dispatcher.drop(SnapshotRequest())
        answers.append(room.responses()[-1])
    assert answers == [SnapshotResponse(snapshot=each) for each in (b"", b"restored", b"taken")]


def test_init_and_restore_cannot_be_dropped(rooms: Callable[..., Room]) -> None:
    room = rooms()
    with pytest.raises(WorkerLostError, match="RestoreRequest killed the worker"):
        room.dispatcher.drop(RestoreRequest())


# --- answers ---


def test_after_a_snapshot_request_a_compaction_is_due(rooms: Callable[..., Room]) -> None:
    room = rooms()
    assert room.give(SnapshotRequest()) == [Next.COMPACT]
    assert room.responses() == [SnapshotResponse(snapshot=b"taken")]


def test_a_handler_that_reads_options_by_hand_never_sees_a_value_without_content(
    rooms: Callable[..., Room],
) -> None:

    class ByHand(Batches):
        def init(self, request: InitRequest, /) -> InitResponse:
            assert not any(value for option in request.options for value in option.values)
            return InitResponse(success=True)

    room = rooms(ByHand)
    strict = Option(name="strict", values=[OptionValue(type=BOOL)])
    with (
        room.dispatcher.replaying(),
        pytest.raises(RefusedError, match="TRUE or FALSE itself"),
    ):
        room.give(InitRequest(taskID="task", options=[strict]))
    (response,) = room.responses()
    assert isinstance(response, InitResponse)
    assert not response.success
    assert response.error.startswith(".strict() got nothing as value 1; write TRUE or FALSE")


def test_a_refused_restore_is_answered_and_raised(rooms: Callable[..., Room]) -> None:
    room = rooms()
    with pytest.raises(RefusedError, match="restore was refused: foreign"):
        room.give(RestoreRequest(snapshot=b"foreign"))
    assert room.responses() == [RestoreResponse(error="foreign")]


def test_init_shows_whether_the_handler_has_a_state(rooms: Callable[..., Room]) -> None:

    class Stateless(Handler):
        def point(self, point: Point, /) -> None:
            del point

    stateful, stateless = rooms(), rooms(Stateless)
    assert (stateful.dispatcher.stateless, stateless.dispatcher.stateless) == (False, True)
    assert stateless.dispatcher.init_frame == REQUESTS.encode(InitRequest(taskID="task"))
    with stateless.dispatcher.replaying():
        assert (stateless.dispatcher.stateless, stateless.dispatcher.init_frame) == (False, b"")
        with pytest.raises(UnexpectedMessageError):
            stateless.give(Point())


# --- excerpts ---


def test_an_excerpt_is_one_line_of_limited_length() -> None:
    point = Point(name="cpu", time=7)
    assert excerpt(point) == 'Point time: 7 name: "cpu"'
    assert excerpt(RawPoint(RESPONSES.encode(point))) == excerpt(point)
    long = excerpt(Point(name="x" * 10_000))
    assert len(long) < 300
    assert "characters cut" in long
    assert "\n" not in excerpt(RawPoint(b"\x05\xff\xff\xff\xff\xff"))
