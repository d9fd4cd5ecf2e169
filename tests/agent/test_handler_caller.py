"""The handler as an agent calls it: each call answered, or somebody's fault."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent.errors import ConnectionClosedError, HandlerError
from kapudf_cli.agent.handler_caller import HandlerCaller, is_caused_by
from kapudf_cli.agent.outbox import Outbox
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

    def stop(self) -> None:
        self.stopped += 1
        if self.stopped > 1:
            raise RuntimeError("stopped twice")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, SocketStream]]:
    """Give both ends of a connection: Kapacitor's, and the outbox's."""
    ours, theirs = socket.socketpair()
    stream = SocketStream(theirs)
    yield ours, stream
    stream.close()
    ours.close()


@pytest.fixture
def outbox(ends: tuple[socket.socket, SocketStream]) -> Outbox:
    """Give an outbox that nobody reads from."""
    _, stream = ends
    return Outbox(stream, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES, on_failure=stream.interrupt)


def break_off(ends: tuple[socket.socket, SocketStream], outbox: Outbox) -> None:
    """Let the outbox find out that nobody is at the other end."""
    ends[0].close()
    outbox.answer(InitResponse())
    with pytest.raises(ConnectionClosedError):
        outbox.flush()


def fail() -> None:
    raise ValueError("no good")


def test_a_handler_is_there_from_when_it_is_made_to_when_it_is_stopped(outbox: Outbox) -> None:
    """Between two of them there is none, which a write of a thread may find out."""
    callee = HandlerCaller(Mirror, outbox)
    callee.stop()
    made = []
    for _ in range(2):
        with pytest.raises(ConnectionClosedError, match="was stopped"):
            _ = callee.handler
        callee.create()
        made.append(callee.handler)
        assert callee.handler.agent is outbox
        callee.stop()
        callee.stop()
    assert made[0] is not made[1]
    assert [each.stopped for each in made if isinstance(each, Mirror)] == [1, 1]


def test_a_method_that_raises_is_blamed_by_class_and_name(outbox: Outbox) -> None:
    """Whatever it raises; the cause is at hand."""
    callee = HandlerCaller(Mirror, outbox)
    for error in (ValueError("no good"), SystemExit(3), KeyboardInterrupt()):

        def raises(error: BaseException = error) -> None:
            raise error

        with pytest.raises(HandlerError, match=r"Mirror\.point raised") as caught:
            callee.call("point", raises)
        assert caught.value.__cause__ is caught.value.cause is error


def test_a_factory_that_fails_leaves_no_handler(outbox: Outbox) -> None:
    """It is the constructor that is blamed."""

    def broken(_: object) -> Handler:
        raise OSError("no device")

    callee = HandlerCaller(broken, outbox)
    with pytest.raises(HandlerError, match=r"broken\.__init__ raised OSError: no device"):
        callee.create()
    callee.stop()


def test_an_answer_must_be_of_its_kind(outbox: Outbox) -> None:
    """What is none is the method's fault."""
    callee = HandlerCaller(Mirror, outbox)
    answer = InitResponse(success=True)
    assert callee.ask(InitResponse, "init", lambda: answer) is answer
    with pytest.raises(HandlerError, match="returned SnapshotResponse instead of InitResponse"):
        callee.ask(InitResponse, "init", SnapshotResponse)  # type: ignore[type-var]


def test_what_a_handler_raises_that_is_replaced_is_logged_and_no_more(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless it is only that it cannot write any more."""
    callee = HandlerCaller(Mirror, outbox)
    callee.stop_quietly()
    for error, logged in [(ConnectionClosedError("gone"), 0), (ValueError("stuck"), 1)]:

        def raises(error: Exception = error) -> None:
            raise error

        callee.create()
        callee.handler.stop = raises  # type: ignore[method-assign]
        callee.stop_quietly()
        assert len(caplog.records) == logged
    assert "stop failed: Mirror.stop raised ValueError: stuck" in caplog.text


@pytest.mark.parametrize("broken", [True, False])
@pytest.mark.parametrize("style", ["itself", "cause", "context", "other"])
def test_a_lost_connection_is_nobodys_fault_but_only_where_it_is_the_cause(
    ends: tuple[socket.socket, SocketStream], outbox: Outbox, style: str, *, broken: bool
) -> None:
    """An error of the handler's own stays its own, on a lost connection too."""
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


def test_a_cause_is_found_however_deep_it_is() -> None:
    """And none where there is none."""
    outer: Exception = ValueError("innermost")
    inner = outer
    for _ in range(10):
        following = RuntimeError()
        following.__cause__ = outer
        outer = following
    assert is_caused_by(outer, ValueError)
    assert is_caused_by(inner, ValueError)
    assert not is_caused_by(outer, OSError)
