"""The read loop, given input in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.udf_pb2 import InitResponse, KeepaliveRequest, KeepaliveResponse, Point
from tests.agent.parts import INIT, AgentParts, batch
from tests.counters import Counter, counted

if TYPE_CHECKING:
    from collections.abc import Iterator


class Mirror(Handler):
    """Sends points back, undecoded."""

    passes_through = True

    def point(self, point: Point, /) -> None:
        raise AssertionError(point)


@pytest.fixture
def all_parts() -> Iterator[list[AgentParts]]:
    all_parts: list[AgentParts] = []
    yield all_parts
    for parts in all_parts:
        parts.close()


def points(*times: int) -> bytes:
    return b"".join(REQUESTS.encode(Point(time=time)) for time in times)


@pytest.mark.parametrize("handler", [Counter, Mirror])
def test_completed_frames_are_handled_and_counted(
    all_parts: list[AgentParts], handler: type[Handler]
) -> None:
    parts = AgentParts(handler).create_handler()
    all_parts.append(parts)
    keepalive = REQUESTS.encode(KeepaliveRequest(time=7))
    assert parts.read(INIT + points(1, 2)[:-1]) == 2
    assert parts.read(points(2)[-1:] + points(3) + keepalive + points(4, 5)) == 5
    assert parts.stats.points_in == 5
    expected = [
        counted(time, time) if handler is Counter else Point(time=time) for time in range(1, 6)
    ]
    assert parts.responses() == [
        InitResponse(success=True), *expected[:3], KeepaliveResponse(time=7), *expected[3:],
    ]  # fmt: skip


@pytest.mark.parametrize("handler", [Counter, Mirror])
def test_careful_handling_records_each_frame(
    all_parts: list[AgentParts], handler: type[Handler]
) -> None:
    parts = AgentParts(handler).create_handler()
    all_parts.append(parts)
    data = INIT + points(1, 2, 3)
    offsets = [0, len(INIT), len(INIT + points(1)), len(INIT + points(1, 2))]
    assert parts.read_loop.handle_carefully(data, poison={offsets[2]}) == 4
    assert parts.checkpoints.current_frame == offsets
    assert (parts.stats.points_in, parts.stats.failures) == (3, 1)
    expected = {
        Counter: [counted(1, 1), counted(3, 2)], Mirror: [Point(time=1), Point(time=3)],
    }  # fmt: skip
    assert parts.responses() == [InitResponse(success=True), *expected[handler]]


def test_normal_handling_follows_careful_handling(all_parts: list[AgentParts]) -> None:
    parts = AgentParts().create_handler()
    all_parts.append(parts)
    parts.checkpoints.wants = False
    whole = batch(0, "a", "b", "c")
    parts.read_loop.handle_carefully(INIT + whole[:-20], ())
    noted = len(parts.checkpoints.current_frame)
    parts.read(whole[-20:] + batch(1, "a"))
    assert len(parts.checkpoints.current_frame) == noted
    assert parts.responses()[1:] == [counted(0, 3), counted(1, 4)]
