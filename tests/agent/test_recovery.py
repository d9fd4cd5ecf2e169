"""When what is kept for another handler is cut, and how a handler is made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.wire.codec import REQUESTS, RESPONSES
from kapudf_cli.wire.framing import FrameReader
from kapudf_cli.wire.udf_pb2 import KeepaliveRequest
from tests.agent.intakes import INIT, Room, batch
from tests.counters import counted

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    room.recovery.cut_if_due(0.0)
    assert not room.kept.cuts


def test_nothing_is_cut_in_the_midst_of_a_batch(room: Room) -> None:
    """What the handler has been given of it is in no snapshot."""
    room.kept.wants = False
    room.take(INIT + batch(0, "a")[:-3])
    room.kept.wants = True
    room.recovery.cut_if_due(0.0)
    assert not room.kept.cuts
    room.take(batch(0, "a")[-3:] + REQUESTS.encode(KeepaliveRequest(time=1)))
    room.recovery.cut_if_due(0.0)
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
        room.recovery.cut_if_due(0.0)
    assert len(room.kept.cuts) == 4
    assert (room.account.failures, room.account.restarts) == (4, 4)
    # A new beginning would have had no input before it: then what failed is met again.
    assert len(room.recovery._repetition._failed) == (4 if declines else 0)
    assert room.answers()[1:] == [counted(number, 2 * number + 2) for number in range(4)]
