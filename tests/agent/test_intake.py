"""Input taken piece by piece, and when what is kept of it is cut."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent.account import Account
from kapudf_cli.agent.callee import Callee
from kapudf_cli.agent.checkpoints import NothingKept
from kapudf_cli.agent.dispatch import Dispatcher
from kapudf_cli.agent.intake import Intake
from kapudf_cli.agent.outbox import Outbox
from kapudf_cli.agent.repetition import Repetition
from kapudf_cli.streams import SocketStream
from kapudf_cli.wire.codec import REQUESTS, RESPONSES
from kapudf_cli.wire.framing import DEFAULT_MAX_FRAME_BYTES, FrameReader
from kapudf_cli.wire.udf_pb2 import (
    BATCH,
    BeginBatch,
    EndBatch,
    InitRequest,
    KeepaliveRequest,
    Point,
)
from tests.counters import Counting, counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.agent.on_error import OnError
    from kapudf_cli.kit.handler import Handler
    from kapudf_cli.wire.codec import RequestMessage, ResponseMessage

INIT = REQUESTS.encode(InitRequest(taskID="task"))


class CountsBatches(Counting):
    """Says at the end of each batch how many points there have been; some it cannot bear."""

    wants = BATCH

    def point(self, point: Point, /) -> None:
        if point.name == "raise":
            raise ValueError(point.time)
        self.count += 1

    def begin_batch(self, begin: BeginBatch, /) -> None:
        pass

    def end_batch(self, end: EndBatch, /) -> None:
        self.agent.write_point(counted(end.tmax, self.count))


class NotedCuts(NothingKept):
    """Wants a cut whenever it is asked, and notes them; keeps all input for a new handler.

    Attributes:
        cuts: the prefix and the remainder of each.
        declines: whether there is no room for any.
    """

    def __init__(self) -> None:
        self.cuts: list[tuple[bytes, bytes]] = []
        self.declines = False
        self.wants = True
        self.input = b""

    def is_due(self, now_s: float, *, stateless: bool, asked: bool) -> bool:
        del now_s, stateless, asked
        return self.wants

    def cut(self, prefix: bytes, remainder: bytes) -> bool:
        self.cuts.append((prefix, remainder))
        return not self.declines

    def history(self, until: int) -> bytes:
        return self.input[:until]


class Room:
    """An intake with all that it works on, and where what leaves arrives."""

    def __init__(self, on_error: OnError = "fail", handler: type[Handler] = CountsBatches) -> None:
        self.peer, theirs = socket.socketpair()
        self.peer.settimeout(0)
        stream = self.stream = SocketStream(theirs)
        self.outbox = Outbox(
            stream, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES, on_failure=stream.interrupt
        )
        self.account = Account()
        self.kept = NotedCuts()
        callee = Callee(handler, self.outbox)
        dispatcher = Dispatcher(callee, self.outbox, self.account, on_error=on_error, on_init=None)
        self.intake = Intake(
            callee,
            dispatcher,
            self.outbox,
            self.account,
            checkpoints=self.kept,
            repetition=Repetition(
                callee, dispatcher, self.outbox, max_frame_bytes=DEFAULT_MAX_FRAME_BYTES
            ),
            max_frame_bytes=DEFAULT_MAX_FRAME_BYTES,
        )
        callee.make()

    def take(self, data: bytes) -> int:
        self.kept.input += data
        return self.intake.take(data)

    def answers(self) -> list[ResponseMessage]:
        """Flush, and return what has left."""
        self.outbox.flush()
        frames = FrameReader(RESPONSES.decode_in)
        return list(frames.feed(self.peer.recv(1 << 20)))

    def close(self) -> None:
        self.stream.close()
        self.peer.close()


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.close()


@pytest.fixture
def restarting_room() -> Iterator[Room]:
    room = Room("restart")
    yield room
    room.close()


def batch(number: int, *names: str) -> bytes:
    """Return a batch as frames, with a point of each name."""
    messages: list[RequestMessage] = [
        BeginBatch(size=len(names)),
        *(Point(time=time, name=name) for time, name in enumerate(names)),
        EndBatch(tmax=number),
    ]
    return b"".join(map(REQUESTS.encode, messages))


def test_between_two_batches_of_a_piece_what_is_kept_is_cut(room: Room) -> None:
    """Each time with the state so far, and all that the piece has from there on."""
    room.take(INIT)
    batches = [batch(number, "a", "b") for number in range(3)]
    unfinished = batches[2][:-3]
    assert room.take(batches[0] + batches[1] + unfinished) == 11
    rests = [b"".join((*batches[place:2], unfinished)) for place in range(3)]
    assert [remainder for _, remainder in room.kept.cuts] == rests
    assert all(prefix.startswith(INIT) for prefix, _ in room.kept.cuts)
    assert [prefix[-1:] for prefix, _ in room.kept.cuts] == [b"0", b"2", b"4"]
    assert (room.account.points_in, room.account.batches_in) == (6, 2)
    room.take(batches[2][-3:])
    assert room.answers()[1:] == [counted(number, 2 * number + 2) for number in range(3)]


def test_what_was_written_before_a_cut_leaves_before_it(room: Room) -> None:
    """The new beginning brings none of it again."""
    room.take(INIT)
    room.take(batch(0, "a") + batch(1, "b"))
    came = FrameReader(RESPONSES.decode_in).feed(room.peer.recv(1 << 20))
    assert list(came)[1:] == [counted(0, 1)]
    assert room.answers() == [counted(1, 2)]


def test_nothing_is_cut_where_nothing_is_due(room: Room) -> None:
    """A snapshot for each batch would cost more than it saves."""
    room.kept.wants = False
    room.take(INIT + batch(0, "a") + batch(1, "b"))
    room.intake.cut_if_due(0.0)
    assert not room.kept.cuts


def test_nothing_is_cut_in_the_midst_of_a_batch(room: Room) -> None:
    """What the handler has been given of it is in no snapshot."""
    room.kept.wants = False
    room.take(INIT + batch(0, "a")[:-3])
    room.kept.wants = True
    room.intake.cut_if_due(0.0)
    assert not room.kept.cuts
    room.take(batch(0, "a")[-3:] + REQUESTS.encode(KeepaliveRequest(time=1)))
    room.intake.cut_if_due(0.0)
    assert [remainder for _, remainder in room.kept.cuts] == [b""]


@pytest.mark.parametrize("declines", [False, True], ids=["cut", "declined"])
def test_what_has_failed_is_left_out_until_it_is_forgotten(
    restarting_room: Room, *, declines: bool
) -> None:
    """It is found out once, though there should be no room for a new beginning."""
    room = restarting_room
    room.kept.wants = False
    room.kept.declines = declines
    room.take(INIT)
    for number in range(4):
        room.take(batch(number, "a", "raise", "b"))
        room.intake.cut_if_due(0.0)
    assert len(room.kept.cuts) == 4
    assert (room.account.failures, room.account.restarts) == (4, 4)
    # A new beginning would have had no input before it: then what failed is met again.
    assert len(room.intake._repetition._failed) == (4 if declines else 0)
    assert room.answers()[1:] == [counted(number, 2 * number + 2) for number in range(4)]
