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
def test_with_fail_an_exception_is_raised_to_the_agent(
    rooms: Callable[..., Room], call: str
) -> None:
    """And nothing is counted as passed over."""
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
def test_an_exception_costs_its_point_or_its_batch(
    rooms: Callable[..., Room], on_error: OnError, call: str, calls: list[str], sent: list[type]
) -> None:
    """The batch after it is whole, and the handler is given no half of one."""
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
def test_an_exception_in_a_repetition_is_known_already(
    rooms: Callable[..., Room], on_error: OnError
) -> None:
    """It is passed over again, or repeated without; nothing is counted or logged twice."""
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


def test_each_point_of_a_batch_that_is_left_out_is_counted_and_given_to_nobody(
    rooms: Callable[..., Room],
) -> None:
    """The agent must not take the next one by itself."""
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


def test_what_is_dropped_is_counted_and_given_to_nobody(rooms: Callable[..., Room]) -> None:
    """In an order that may be, as if it had been dealt with."""
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


def test_a_batch_of_which_the_end_is_dropped_is_abandoned(rooms: Callable[..., Room]) -> None:
    """What was sent of it, Kapacitor drops at the next begin."""
    room = rooms()
    room.give(*WHOLE[:2])
    room.dispatcher.drop(WHOLE[2])
    assert not room.outbox.in_batch
    room.give(*WHOLE)
    assert room.responses() == [*WHOLE[:2], *WHOLE]


def test_a_dropped_request_for_a_snapshot_is_answered_with_the_last_one(
    rooms: Callable[..., Room],
) -> None:
    """Be it taken or restored; before there is one, it is empty."""
    room = rooms()
    answers = []
    for before in ([], [RestoreRequest(snapshot=b"restored")], [SnapshotRequest()]):
        room.give(*before)
        room.dispatcher.drop(SnapshotRequest())
        answers.append(room.responses()[-1])
    assert answers == [SnapshotResponse(snapshot=each) for each in (b"", b"restored", b"taken")]


def test_what_nothing_can_go_on_without_cannot_be_dropped(rooms: Callable[..., Room]) -> None:
    """That is an error that Kapacitor is told of."""
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
    """`.strict("TRUE")` arrives as such a bool, which reads as False."""

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
    """Kapacitor fails the task, and the connection is to be closed."""
    room = rooms()
    with pytest.raises(RefusedError, match="restore was refused: foreign"):
        room.give(RestoreRequest(snapshot=b"foreign"))
    assert room.responses() == [RestoreResponse(error="foreign")]


def test_whether_a_handler_has_a_state_is_known_from_init_on(rooms: Callable[..., Room]) -> None:
    """And forgotten with the conversation."""

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


def test_an_excerpt_is_one_line_of_bounded_length() -> None:
    """Of a message, of an undecoded point, and of bytes that are none."""
    point = Point(name="cpu", time=7)
    assert excerpt(point) == 'Point time: 7 name: "cpu"'
    assert excerpt(RawPoint(RESPONSES.encode(point))) == excerpt(point)
    long = excerpt(Point(name="x" * 10_000))
    assert len(long) < 300
    assert "characters cut" in long
    assert "\n" not in excerpt(RawPoint(b"\x05\xff\xff\xff\xff\xff"))
