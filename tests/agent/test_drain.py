"""`drain`: a handler finishes the work of its threads before a handover and before the end."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.agent.agent import Reason
from kapudf_cli.handler.errors import ConnectionClosedError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import InfoRequest, Point
from tests.peers import INIT, INITIALIZED, agent_with, encoded
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse
    from tests.journal.tasks import JournaledTask


class Threaded(Handler):
    """Sends points back from a thread, which `work` lets go on."""

    work: Any

    def init(self, request: InitRequest, /) -> InitResponse:
        self.queue: queue.SimpleQueue[Point | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._write)
        self.thread.start()
        return super().init(request)

    def _write(self) -> None:
        while (point := self.queue.get()) is not None:
            self.work.wait(PATIENCE_S)
            try:
                self.agent.write_point(point)
            except ConnectionClosedError:
                continue

    def point(self, point: Point, /) -> None:
        self.queue.put(point)

    def teardown(self) -> None:
        self.work.set()
        self.queue.put(None)
        self.thread.join()


class Drained(Threaded):
    """Waits for its thread."""

    def drain(self) -> None:
        self.work.set()
        self.queue.put(None)
        self.thread.join()


def with_work(handler: type[Handler]) -> type[Handler]:
    return type(handler.__name__, (handler,), {"work": threading.Event()})


def test_the_work_of_threads_is_finished_before_a_handover(
    tasks: Callable[..., JournaledTask], caplog: pytest.LogCaptureFixture
) -> None:
    task = tasks(with_work(Drained))
    served = task.serve()
    assert task.ask(INIT) == INITIALIZED
    sent = [Point(time=number) for number in range(3)]
    task.send(*sent)
    assert task.await_handled(served)
    stands = threading.Event()
    served.agent.pause(stands.set)
    assert [task.side.receive() for _ in sent] == sent
    assert stands.wait(PATIENCE_S)
    served.agent.release()
    assert served.summary().reason is Reason.HANDED_OVER
    assert caplog.records == []


def test_without_drain_the_points_that_are_lost_are_logged(
    tasks: Callable[..., JournaledTask], caplog: pytest.LogCaptureFixture
) -> None:
    task = tasks(with_work(Threaded))
    served = task.serve()
    assert task.ask(INIT) == INITIALIZED
    task.send(*(Point(time=number) for number in range(3)))
    assert task.await_handled(served)
    stands = threading.Event()
    served.agent.pause(stands.set)
    assert stands.wait(PATIENCE_S)
    served.agent.release()
    served.summary()
    (record,) = [each for each in caplog.records if each.message == "writes refused"]
    assert record.lost_points == 3  # type: ignore[attr-defined]


def test_the_work_of_threads_is_finished_before_the_end() -> None:
    with agent_with(with_work(Drained)) as served:
        served.side.send_bytes(encoded([INIT, Point(time=1)]))
        assert served.side.receive() == INITIALIZED
        served.side.half_close()
        assert served.side.receive() == Point(time=1)
        assert served.summary().reason is Reason.CLOSED


class Endless(Handler):
    ends: Any

    def point(self, point: Point, /) -> None:
        pass

    def drain(self) -> None:
        self.ends.wait(PATIENCE_S)


class EndlessAsync(Handler):
    ends: Any

    async def point(self, point: Point, /) -> None:
        pass

    async def drain(self) -> None:
        await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("handler", [Endless, EndlessAsync])
def test_a_drain_that_takes_too_long_is_left_alone_and_logged(
    handler: type[Handler], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapudf_cli.agent.agent.DRAIN_LIMIT_S", 0.01)
    ends = threading.Event()
    with agent_with(type(handler.__name__, (handler,), {"ends": ends})) as served:
        served.side.send_bytes(encoded([INIT]))
        assert served.side.receive() == INITIALIZED
        served.side.half_close()
        assert served.summary().reason is Reason.CLOSED
    ends.set()
    assert [each.message for each in caplog.records] == [
        "drain takes too long, going on without it"
    ]


@pytest.mark.parametrize("handler", [Endless, EndlessAsync])
def test_an_abort_ends_the_wait_for_drain(handler: type[Handler]) -> None:
    ends = threading.Event()
    with agent_with(type(handler.__name__, (handler,), {"ends": ends})) as served:
        served.side.send_bytes(encoded([INIT]))
        assert served.side.receive() == INITIALIZED
        served.agent.stop()
        served.agent.abort()
        served.summary()
    ends.set()


class Raises(Handler):
    def point(self, point: Point, /) -> None:
        pass

    def drain(self) -> None:
        raise LookupError("no")


class RaisesAsync(Handler):
    async def point(self, point: Point, /) -> None:
        pass

    async def drain(self) -> None:
        raise LookupError("no")


@pytest.mark.parametrize("handler", [Raises, RaisesAsync])
def test_a_drain_that_raises_is_logged_and_ends_nothing(
    handler: type[Handler], caplog: pytest.LogCaptureFixture
) -> None:
    with agent_with(handler) as served:
        served.side.send_bytes(encoded([INIT]))
        assert served.side.receive() == INITIALIZED
        served.side.half_close()
        assert served.summary().reason is Reason.CLOSED
    assert [each.message for each in caplog.records] == ["drain failed: LookupError: no"]


def test_a_handler_that_was_only_asked_for_info_is_not_drained(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with agent_with(Raises) as served:
        served.side.send_bytes(encoded([InfoRequest()]))
        served.side.receive()
        served.side.half_close()
        assert served.summary().reason is Reason.CLOSED
    assert caplog.records == []
