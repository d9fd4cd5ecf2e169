"""The dispatcher: one request at a time to the handler's method and its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from kapudf_cli.agent.dispatcher import Next, RefusedError, ReplayAgainError, excerpt
from kapudf_cli.agent.errors import HandlerError, WorkerLostError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.errors import UnexpectedMessageError
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
from tests.agent.parts import AgentParts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.protocol.codec import RequestMessage


class Batches(Handler):
    """Sends batches back; raises for certain names."""

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


class Dispatching(AgentParts):
    """The parts of an agent after Init; requests go straight to the dispatcher."""

    def __init__(self, handler: type[Handler], on_error: OnError = "fail") -> None:
        super().__init__(handler, on_error)
        self.create_handler()
        self.give(INIT)
        assert self.responses() == [InitResponse(success=True)]
        Batches.calls.clear()

    def give(self, *messages: RequestMessage | RawPoint) -> list[Next]:
        return [self.dispatcher.dispatch(message, 7) for message in messages]


@pytest.fixture
def dispatching() -> Iterator[Callable[..., Dispatching]]:
    """Create dispatchers of connections, and close them in the end."""
    made: list[Dispatching] = []

    def make(handler: type[Handler] = Batches, on_error: OnError = "fail") -> Dispatching:
        made.append(Dispatching(handler, on_error))
        return made[-1]

    yield make
    for parts in made:
        parts.close()


WHOLE: list[RequestMessage] = [BeginBatch(name="b"), Point(time=1), EndBatch(name="b")]


# --- exceptions ---


@pytest.mark.parametrize("call", ["begin", "point", "end"])
def test_fail_raises_the_exception(dispatching: Callable[..., Dispatching], call: str) -> None:
    parts = dispatching()
    name = f"raise in {call}"
    with pytest.raises(HandlerError, match=name):
        parts.give(BeginBatch(name=name), Point(name=name), EndBatch(name=name))
    assert parts.dispatcher.failures == 0


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
    dispatching: Callable[..., Dispatching],
    on_error: OnError,
    call: str,
    calls: list[str],
    sent: list[type],
) -> None:
    parts = dispatching(on_error=on_error)
    name = f"raise in {call}"
    following = parts.give(BeginBatch(name=name), Point(name=name), EndBatch(name=name))
    assert Batches.calls == calls
    assert (Next.RESTART_HANDLER in following) == (on_error == "restart")
    assert parts.dispatcher.failures == 1
    assert (parts.dispatcher.points_in, parts.dispatcher.batches_in) == (1, 1)
    assert [type(each) for each in parts.responses()] == sent
    parts.give(*WHOLE)
    assert parts.responses() == WHOLE
    assert not parts.outbox.in_batch


@pytest.mark.parametrize("on_error", ["skip", "restart"])
def test_an_exception_in_a_replay_is_not_counted_again(
    dispatching: Callable[..., Dispatching], on_error: OnError
) -> None:
    parts = dispatching(on_error=on_error)
    bad = Point(name="raise in point")
    with parts.dispatcher.replaying():
        parts.give(INIT, WHOLE[0])
        if on_error == "restart":
            with pytest.raises(ReplayAgainError) as caught:
                parts.give(bad)
            assert caught.value.offset == 7
        else:
            assert parts.give(bad) == [Next.GO_ON]
    assert parts.dispatcher.failures == 0


def test_points_of_a_skipped_batch_are_counted_and_not_handled(
    dispatching: Callable[..., Dispatching],
) -> None:
    parts = dispatching()
    parts.give(*WHOLE, WHOLE[0])
    parts.dispatcher.skip_batch()
    Batches.calls.clear()
    for _ in range(3):
        parts.give(Point())
        assert not parts.dispatcher.order.takes_points
    parts.give(RawPoint(REQUESTS.encode(Point())), KeepaliveRequest(time=1), WHOLE[2])
    assert Batches.calls == []
    assert (parts.dispatcher.points_in, parts.dispatcher.batches_in) == (5, 2)
    assert parts.responses() == [*WHOLE, WHOLE[0], KeepaliveResponse(time=1)]
    parts.give(*WHOLE)
    assert parts.responses() == WHOLE


# --- dropped requests ---


def test_dropped_messages_are_counted_and_not_handled(
    dispatching: Callable[..., Dispatching],
) -> None:
    parts = dispatching()
    for message in WHOLE:
        parts.dispatcher.drop(message)
    assert Batches.calls == []
    assert (parts.dispatcher.points_in, parts.dispatcher.batches_in) == (1, 1)
    with pytest.raises(UnexpectedMessageError):
        parts.dispatcher.drop(EndBatch())
    assert parts.responses() == []
    parts.give(*WHOLE)
    assert parts.responses() == WHOLE


def test_a_batch_whose_end_is_dropped_is_abandoned(dispatching: Callable[..., Dispatching]) -> None:
    parts = dispatching()
    parts.give(*WHOLE[:2])
    parts.dispatcher.drop(WHOLE[2])
    assert not parts.outbox.in_batch
    parts.give(*WHOLE)
    assert parts.responses() == [*WHOLE[:2], *WHOLE]


def test_a_dropped_request_for_a_snapshot_is_answered_with_the_last_one(
    dispatching: Callable[..., Dispatching],
) -> None:
    parts = dispatching()
    answers = []
    for before in ([], [RestoreRequest(snapshot=b"restored")], [SnapshotRequest()]):
        parts.give(*before)
        parts.dispatcher.drop(SnapshotRequest())
        answers.append(parts.responses()[-1])
    assert answers == [SnapshotResponse(snapshot=each) for each in (b"", b"restored", b"taken")]


def test_init_and_restore_cannot_be_dropped(dispatching: Callable[..., Dispatching]) -> None:
    parts = dispatching()
    with pytest.raises(WorkerLostError, match="RestoreRequest killed the worker"):
        parts.dispatcher.drop(RestoreRequest())


# --- answers ---


def test_after_a_snapshot_request_a_compaction_is_due(
    dispatching: Callable[..., Dispatching],
) -> None:
    parts = dispatching()
    assert parts.give(SnapshotRequest()) == [Next.COMPACT]
    assert parts.responses() == [SnapshotResponse(snapshot=b"taken")]


def test_a_handler_that_reads_options_by_hand_never_sees_a_value_without_content(
    dispatching: Callable[..., Dispatching],
) -> None:

    class ByHand(Batches):
        def init(self, request: InitRequest, /) -> InitResponse:
            assert not any(value for option in request.options for value in option.values)
            return InitResponse(success=True)

    parts = dispatching(ByHand)
    strict = Option(name="strict", values=[OptionValue(type=BOOL)])
    with (
        parts.dispatcher.replaying(),
        pytest.raises(RefusedError, match="TRUE or FALSE itself"),
    ):
        parts.give(InitRequest(taskID="task", options=[strict]))
    (response,) = parts.responses()
    assert isinstance(response, InitResponse)
    assert not response.success
    assert response.error.startswith(".strict() got nothing as value 1; write TRUE or FALSE")


def test_a_refused_restore_is_answered_and_raised(dispatching: Callable[..., Dispatching]) -> None:
    parts = dispatching()
    with pytest.raises(RefusedError, match="restore was refused: foreign"):
        parts.give(RestoreRequest(snapshot=b"foreign"))
    assert parts.responses() == [RestoreResponse(error="foreign")]


def test_init_shows_whether_the_handler_has_a_state(
    dispatching: Callable[..., Dispatching],
) -> None:

    class Stateless(Handler):
        def point(self, point: Point, /) -> None:
            del point

    stateful, stateless = dispatching(), dispatching(Stateless)
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
