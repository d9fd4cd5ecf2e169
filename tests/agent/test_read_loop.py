"""Input taken piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import InitResponse, KeepaliveRequest, KeepaliveResponse, Point
from tests.agent.read_loops import INIT, Loop, batch
from tests.counters import Counter, counted

if TYPE_CHECKING:
    from collections.abc import Iterator


class Mirror(Handler):
    """Sends points back, undecoded."""

    def setup(self) -> None:
        self.raw_point = self.agent.forward

    def point(self, point: Point, /) -> None:
        raise AssertionError(point)


@pytest.fixture
def loops() -> Iterator[list[Loop]]:
    loops: list[Loop] = []
    yield loops
    for loop in loops:
        loop.close()


def points(*times: int) -> bytes:
    return b"".join(REQUESTS.encode(Point(time=time)) for time in times)


@pytest.mark.parametrize("handler", [Counter, Mirror])
def test_completed_frames_are_handled_and_counted(
    loops: list[Loop], handler: type[Handler]
) -> None:
    loop = Loop(handler=handler)
    loops.append(loop)
    keepalive = REQUESTS.encode(KeepaliveRequest(time=7))
    assert loop.take(INIT + points(1, 2)[:-1]) == 2
    assert loop.take(points(2)[-1:] + points(3) + keepalive + points(4, 5)) == 5
    assert loop.stats.points_in == 5
    expected = [
        counted(time, time) if handler is Counter else Point(time=time) for time in range(1, 6)
    ]
    assert loop.answers() == [
        InitResponse(success=True), *expected[:3], KeepaliveResponse(time=7), *expected[3:],
    ]  # fmt: skip


class Forgetful(Handler):
    """Returns what it should have written."""

    def point(self, point: Point, /) -> Point:  # type: ignore[override]  # that is the mistake
        return point


def test_a_returned_point_is_logged_once(
    loops: list[Loop], caplog: pytest.LogCaptureFixture
) -> None:
    loop = Loop(handler=Forgetful)
    loops.append(loop)
    loop.take(INIT + points(1, 2, 3))
    assert loop.answers() == [InitResponse(success=True)]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "write it with self.agent" in record.message
    assert record.__dict__["returned"] == "Point"


@pytest.mark.parametrize("handler", [Counter, Mirror])
def test_careful_handling_records_each_frame(loops: list[Loop], handler: type[Handler]) -> None:
    loop = Loop(handler=handler)
    loops.append(loop)
    data = INIT + points(1, 2, 3)
    offsets = [0, len(INIT), len(INIT + points(1)), len(INIT + points(1, 2))]
    assert loop.read_loop.handle_carefully(data, poison={offsets[2]}) == 4
    assert loop.kept.current_frame == offsets
    assert (loop.stats.points_in, loop.stats.failures) == (3, 1)
    expected = {
        Counter: [counted(1, 1), counted(3, 2)], Mirror: [Point(time=1), Point(time=3)],
    }  # fmt: skip
    assert loop.answers() == [InitResponse(success=True), *expected[handler]]


def test_normal_handling_follows_careful_handling(loops: list[Loop]) -> None:
    loop = Loop()
    loops.append(loop)
    loop.kept.wants = False
    whole = batch(0, "a", "b", "c")
    loop.read_loop.handle_carefully(INIT + whole[:-20], ())
    noted = len(loop.kept.current_frame)
    loop.take(whole[-20:] + batch(1, "a"))
    assert len(loop.kept.current_frame) == noted
    assert loop.answers()[1:] == [counted(0, 3), counted(1, 4)]
