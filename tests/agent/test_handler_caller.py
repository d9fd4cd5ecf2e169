"""Calls to the handler, and what its exceptions become."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent.errors import HandlerError
from kapudf_cli.agent.handler_caller import HandlerCaller, is_caused_by
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.framing import DEFAULT_MAX_FRAME_BYTES
from kapudf_cli.protocol.udf_pb2 import InitResponse, Point, SnapshotResponse
from kapudf_cli.transport import SocketStream

if TYPE_CHECKING:
    from collections.abc import Iterator


class Mirror(Handler):
    """Counts how often it was stopped."""

    stopped = 0

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)

    def teardown(self) -> None:
        self.stopped += 1
        if self.stopped > 1:
            raise RuntimeError("stopped twice")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, SocketStream]]:
    """Return both ends of a connection: Kapacitor's, and the outbox's."""
    ours, theirs = socket.socketpair()
    stream = SocketStream(theirs)
    yield ours, stream
    stream.close()
    ours.close()


@pytest.fixture
def outbox(ends: tuple[socket.socket, SocketStream]) -> Outbox:
    """Return an outbox whose peer does not read."""
    _, stream = ends
    return Outbox(stream, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES, on_failure=stream.interrupt)


def break_off(ends: tuple[socket.socket, SocketStream], outbox: Outbox) -> None:
    """Close the peer's end, so that the outbox is broken."""
    ends[0].close()
    outbox.answer(InitResponse())
    with pytest.raises(ConnectionClosedError):
        outbox.flush()


def fail() -> None:
    raise ValueError("no good")


def test_a_handler_exists_until_it_is_stopped(outbox: Outbox) -> None:
    caller = HandlerCaller(Mirror, outbox)
    caller.stop()
    made = []
    for _ in range(2):
        with pytest.raises(ConnectionClosedError, match="was stopped"):
            _ = caller.handler
        caller.create()
        made.append(caller.handler)
        assert caller.handler.agent is outbox
        caller.stop()
        caller.stop()
    assert made[0] is not made[1]
    assert [each.stopped for each in made if isinstance(each, Mirror)] == [1, 1]


def test_an_error_names_class_and_method(outbox: Outbox) -> None:
    caller = HandlerCaller(Mirror, outbox)
    for error in (ValueError("no good"), SystemExit(3), KeyboardInterrupt()):

        def raises(error: BaseException = error) -> None:
            raise error

        with pytest.raises(HandlerError, match=r"Mirror\.point raised") as caught:
            caller.call("point", raises)
        assert caught.value.__cause__ is caught.value.cause is error


def test_a_factory_that_fails_leaves_no_handler(outbox: Outbox) -> None:

    def broken(_: object) -> Handler:
        raise OSError("no device")

    caller = HandlerCaller(broken, outbox)
    with pytest.raises(HandlerError, match=r"broken\.__init__ raised OSError: no device"):
        caller.create()
    caller.stop()


def test_an_answer_must_have_the_expected_type(outbox: Outbox) -> None:
    caller = HandlerCaller(Mirror, outbox)
    answer = InitResponse(success=True)
    assert caller.ask(InitResponse, "init", lambda: answer) is answer
    with pytest.raises(HandlerError, match="returned SnapshotResponse instead of InitResponse"):
        caller.ask(InitResponse, "init", SnapshotResponse)  # type: ignore[type-var]


def test_an_exception_in_stop_of_a_replaced_handler_is_only_logged(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caller = HandlerCaller(Mirror, outbox)
    caller.stop_quietly()
    for error, logged in [(ConnectionClosedError("gone"), 0), (ValueError("stuck"), 1)]:

        def raises(error: Exception = error) -> None:
            raise error

        caller.create()
        caller.handler.teardown = raises  # type: ignore[method-assign]
        caller.stop_quietly()
        assert len(caplog.records) == logged
    assert "teardown failed: Mirror.teardown raised ValueError: stuck" in caplog.text


@pytest.mark.parametrize("broken", [True, False])
@pytest.mark.parametrize("style", ["itself", "cause", "context", "other"])
def test_an_error_caused_by_a_lost_connection_is_no_handler_error(
    ends: tuple[socket.socket, SocketStream], outbox: Outbox, style: str, *, broken: bool
) -> None:
    lost = ConnectionClosedError("gone")
    error: BaseException = ValueError("wrapped")
    if style == "itself":
        error = lost
    elif style == "cause":
        error.__cause__ = lost
    elif style == "context":
        error.__context__ = lost
    if broken:
        break_off(ends, outbox)
    blamed = HandlerCaller(Mirror, outbox).blame("point", error)
    excused = broken and style != "other"
    assert isinstance(blamed, ConnectionClosedError if excused else HandlerError)


def test_a_cause_is_found_at_any_depth() -> None:
    outer: Exception = ValueError("innermost")
    inner = outer
    for _ in range(10):
        following = RuntimeError()
        following.__cause__ = outer
        outer = following
    assert is_caused_by(outer, ValueError)
    assert is_caused_by(inner, ValueError)
    assert not is_caused_by(outer, OSError)
