"""Replay of the history for a new handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from kapudf_cli.agent.checkpoints import ResumePoint
from kapudf_cli.agent.dispatcher import RefusedError
from kapudf_cli.agent.errors import HandlerError
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import REQUESTS, decode_point
from kapudf_cli.protocol.errors import UnexpectedMessageError
from kapudf_cli.protocol.udf_pb2 import (
    EndBatch,
    InitRequest,
    InitResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
)
from kapudf_cli.transport.stream import ConnectionStats
from tests.agent.parts import AgentParts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from kapudf_cli.handler.output import Writer
    from kapudf_cli.protocol.codec import RequestMessage
    from kapudf_cli.protocol.raw_points import RawPoint


class Notes(Handler):
    """Records what it is given; raises for certain names."""

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

    def teardown(self) -> None:
        self.stopped = True
        raise OSError("stuck")


class RawNotes(Notes):
    """Handles raw points."""

    def raw_point(self, raw: RawPoint, /) -> None:
        self.point(decode_point(raw))


class Refuses(Notes):
    def init(self, request: InitRequest, /) -> InitResponse:
        return InitResponse(error=f"not {request.taskID}")


class Replaying(AgentParts):
    """The parts of an agent that takes over; no output may be sent."""

    def replay(self, history: bytes, until: int, poison: Collection[int] = ()) -> None:
        """Take over from an agent that had handled input up to `until`."""
        self.checkpoints.input = history
        self.recovery.resume(ResumePoint(stats=ConnectionStats(offset=until)), poison)

    def close(self) -> None:
        assert self.responses() == []
        super().close()


@pytest.fixture
def all_parts() -> Iterator[list[Replaying]]:
    """Give a list of agents' parts, which are closed in the end."""
    all_parts: list[Replaying] = []
    Notes.made.clear()
    yield all_parts
    for parts in all_parts:
        parts.close()


def encoded(*messages: RequestMessage) -> bytes:
    return b"".join(map(REQUESTS.encode, messages))


PREFIX = encoded(InitRequest(taskID="task"), RestoreRequest(snapshot=b"state"))


def points(*names: str) -> list[Point]:
    return [Point(time=time, name=name) for time, name in enumerate(names)]


def seen(handler: Handler) -> list[int]:
    assert isinstance(handler, Notes)
    return handler.seen


@pytest.mark.parametrize("handler", [Notes, RawNotes])
def test_a_new_handler_gets_the_whole_history(
    all_parts: list[Replaying], handler: type[Handler]
) -> None:
    parts = Replaying(handler)
    all_parts.append(parts)
    data = encoded(*points("a", "b", "c"))
    for _ in range(2):
        parts.replay(PREFIX + data, 1000)
    assert len(Notes.made) == 2
    assert [each.stopped for each in Notes.made] == [True, False]
    assert seen(parts.handler) == [0, 1, 2]
    assert Notes.made[1].restored == b"state"


@pytest.mark.parametrize("handler", [Notes, RawNotes])
def test_frames_are_skipped_by_their_offset(
    all_parts: list[Replaying], handler: type[Handler]
) -> None:
    parts = Replaying(handler)
    all_parts.append(parts)
    some = points("a", "b", "c", "d")
    until = 5000
    offsets = [until - len(encoded(*some[number:])) for number in range(4)]
    parts.recovery.skip_in_replays(offsets[3])
    parts.replay(PREFIX + encoded(*some), until, poison={offsets[1]})
    assert seen(parts.handler) == [0, 2]
    parts.replay(PREFIX + encoded(*some), until)
    assert seen(parts.handler) == [0, 2], "what killed once is left out for good"
    parts.recovery.compact()
    parts.replay(PREFIX + encoded(*some), until)
    assert seen(parts.handler) == [0, 1, 2, 3]


def test_restart_replays_again_without_the_failing_frame(
    all_parts: list[Replaying],
) -> None:
    parts = Replaying(Notes, "restart")
    all_parts.append(parts)
    history = PREFIX + encoded(*points("a", "raise", "b", "raise", "c"))
    parts.replay(history, 1000)
    assert seen(parts.handler) == [0, 2, 4]
    assert len(Notes.made) == 3
    parts.replay(history, 1000)
    assert len(Notes.made) == 4
    assert (parts.recovery.stats().failures, parts.recovery.stats().restarts) == (0, 0)


def test_skip_drops_failing_frames_of_the_replay(all_parts: list[Replaying]) -> None:
    parts = Replaying(Notes, "skip")
    all_parts.append(parts)
    parts.replay(PREFIX + encoded(*points("a", "raise", "b")), 1000)
    assert seen(parts.handler) == [0, 2]
    assert len(Notes.made) == 1
    assert parts.recovery.stats().failures == 0


def test_a_failing_replay_raises(all_parts: list[Replaying]) -> None:
    parts, refusing = Replaying(Notes), Replaying(Refuses)
    all_parts += [parts, refusing]
    with pytest.raises(HandlerError, match="ValueError: 1"):
        parts.replay(PREFIX + encoded(*points("a", "raise")), 1000)
    with pytest.raises(UnexpectedMessageError):
        parts.replay(PREFIX + encoded(EndBatch()), 1000)
    with pytest.raises(RefusedError, match="not task"):
        refusing.replay(PREFIX, 1000)


def test_an_empty_history_creates_a_handler(all_parts: list[Replaying]) -> None:
    parts = Replaying(Notes)
    all_parts.append(parts)
    parts.replay(b"", 0)
    assert seen(parts.handler) == []
