"""What becomes of each message: it leaves, is held back, deferred, muted or left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent.delivery import Delivery
from kapudf_cli.agent.departures import Departures
from kapudf_cli.errors import InvalidWriteError
from kapudf_cli.streams.progress import Progress
from kapudf_cli.wire.codec import RESPONSES
from kapudf_cli.wire.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EndBatch,
    InitResponse,
    KeepaliveResponse,
    Point,
)

if TYPE_CHECKING:
    from kapudf_cli.streams import Stream
    from kapudf_cli.wire.codec import DataMessage, ResponseMessage
    from kapudf_cli.wire.udf_pb2 import EdgeType

NOTHING_SENT = Progress()


class Out:
    """A delivery, and the departures that it lets out to, which nobody flushes."""

    def __init__(self, provides: EdgeType = STREAM) -> None:
        nowhere: Stream = None  # type: ignore[assignment]  # without a flush, it is not written to
        self.departures = Departures(nowhere)
        self.delivery = Delivery(self.departures, provides)

    @property
    def bytes(self) -> int:
        return self.departures.bytes + self.departures.size

    def write(self, message: DataMessage, *, by_owner: bool = True) -> None:
        self.delivery.write(message, RESPONSES.encode(message), by_owner=by_owner)

    def write_batch(
        self, name: str, size: int = 1, *, by_owner: bool = True
    ) -> list[ResponseMessage]:
        """Write a batch whole, and return what it is."""
        batch: list[DataMessage] = [
            BeginBatch(name=name), *(Point(time=time) for time in range(size)), EndBatch(name=name),
        ]  # fmt: skip
        for message in batch:
            self.write(message, by_owner=by_owner)
        return [*batch]

    def answer(self, message: ResponseMessage) -> None:
        self.delivery.answer(type(message), RESPONSES.encode(message))

    def sent(self) -> list[ResponseMessage]:
        """Return what has been let out since the last time."""
        frames = [*self.departures.frames]
        self.departures.frames.clear()
        return [RESPONSES.decode(frame[1:]) for frame in frames]


def opened(provides: EdgeType = STREAM) -> Out:
    """Return what lets data out."""
    out = Out(provides)
    out.delivery.send_data()
    return out


def muted(provides: EdgeType = STREAM) -> Out:
    """Return what is muted in the midst of a connection."""
    out = opened(provides)
    out.delivery.mute()
    out.delivery.send_data()
    return out


def test_data_is_held_back_until_it_may_leave() -> None:
    """An answer written later leaves before it."""
    out = Out()
    out.write(Point(time=1))
    out.answer(InitResponse(success=True))
    assert out.sent() == [InitResponse(success=True)]
    out.delivery.send_data()
    out.delivery.send_data()
    assert out.sent() == [Point(time=1)]
    assert out.delivery.points == 1


def test_what_nobody_has_asked_for_is_dropped_and_not_counted() -> None:
    """Held back or written later; answers leave as always."""
    out = Out()
    out.write(Point(time=1))
    out.delivery.drop_data()
    out.write(Point(time=2))
    out.delivery.send_data()
    out.answer(InitResponse())
    assert out.sent() == [InitResponse()]
    assert out.delivery.points == 0


def test_what_is_sent_is_not_dropped_any_more() -> None:
    """Kapacitor has shown that it takes data."""
    out = opened()
    out.delivery.drop_data()
    out.write(Point(time=1))
    assert out.sent() == [Point(time=1)]


@pytest.mark.parametrize("way", ["as it is", "held back", "refused", "muted", "left out", "bare"])
def test_only_where_nothing_is_done_to_them_are_points_let_out_unseen(way: str) -> None:
    """The outbox does not ask about each of them."""
    out = muted(BATCH) if way in {"muted", "left out"} else Out(BATCH)
    if way != "bare":
        out.write(BeginBatch())
    if way == "left out":
        out.delivery.unmute_after(0, in_batch=False, progress=NOTHING_SENT)
    if way in {"as it is", "bare"}:
        out.delivery.send_data()
    if way == "refused":
        out.delivery.refuse_data()
    assert out.delivery.lets_points_out == (way == "as it is")


def test_an_edge_that_does_not_fit_what_is_held_back_is_refused() -> None:
    """With nothing held back, it may be another one than was thought."""
    out = Out()
    out.delivery.declare(BATCH)
    out.write(BeginBatch())
    out.delivery.declare(BATCH)
    with pytest.raises(InvalidWriteError, match="for another edge"):
        out.delivery.declare(STREAM)


# --- input that is repeated ---


def test_what_is_repeated_is_neither_sent_nor_counted() -> None:
    """What comes after is, and what was pending before still leaves."""
    out = opened()
    out.write(Point(time=1))
    out.delivery.mute()
    out.delivery.send_data()
    for time in range(10):
        out.write(Point(time=time))
    out.answer(KeepaliveResponse(time=5))
    out.delivery.unmute()
    out.write(Point(time=2))
    assert out.sent() == [Point(time=1), Point(time=2)]
    assert out.delivery.points == 2


def test_what_is_held_back_while_it_is_muted_is_sent_with_the_first_data() -> None:
    """A handler made anew writes in init what nobody could have been sent yet."""
    out = Out()
    out.delivery.mute()
    out.write(Point(time=1))
    out.delivery.unmute_after(0, in_batch=False, progress=NOTHING_SENT)
    out.answer(InitResponse())
    assert out.sent() == [InitResponse()]
    out.delivery.send_data()
    assert out.sent() == [Point(time=1)]
    assert out.delivery.points == 1


def test_what_other_threads_write_during_a_takeover_is_counted_once_it_leaves() -> None:
    """On top of what the connection had sent before."""
    out = muted()
    out.delivery.defer()
    out.write(Point(), by_owner=False)
    out.delivery.unmute_after(0, in_batch=False, progress=Progress(points_out=100))
    assert out.delivery.points == 100
    out.delivery.undefer()
    assert out.delivery.points == 101


@pytest.mark.parametrize("sent", range(6))
def test_so_many_messages_are_muted_as_were_sent(sent: int) -> None:
    """Points and answers alike, and all is counted on from what the other one did."""
    out = muted()
    out.delivery.unmute_after(
        sent, in_batch=False, progress=Progress(points_out=100, batches_out=7, bytes_out=1000)
    )
    messages: list[ResponseMessage] = []
    for time in range(3):
        out.write(Point(time=time))
        out.answer(KeepaliveResponse(time=time))
        messages += [Point(time=time), KeepaliveResponse(time=time)]
    assert out.sent() == messages[sent:]
    assert (out.delivery.points, out.delivery.batches) == (103, 7)
    assert out.bytes == 1000 + sum(len(RESPONSES.encode(message)) for message in messages)


def test_a_batch_in_the_midst_of_which_the_other_got_lost_goes_on() -> None:
    """Kapacitor has its begin and some of its points; the rest follows."""
    out = muted(BATCH)
    out.delivery.unmute_after(2, in_batch=True, progress=NOTHING_SENT)
    batch = out.write_batch("b", 3)
    assert out.sent() == batch[2:]
    assert not out.delivery.in_batch


@pytest.mark.parametrize("sent", [1, 2])
def test_a_batch_that_kapacitor_has_no_begin_of_is_left_out_to_its_end(
    sent: int,
) -> None:
    """An EndBatch alone would crash it; the batch after that is whole."""
    out = muted(BATCH)
    # The handler does not what the one before it did, which had ended its batch by then.
    out.delivery.unmute_after(sent, in_batch=False, progress=NOTHING_SENT)
    out.write_batch("left out", 3)
    batch = out.write_batch("whole", 2)
    assert out.sent() == batch


def test_a_batch_begun_in_the_repetition_alone_is_left_out() -> None:
    """Where nothing is to be muted any more, that is clear at once. Answers are no part of it."""
    out = muted(BATCH)
    out.write(BeginBatch(name="left out"))
    out.delivery.unmute_after(0, in_batch=False, progress=NOTHING_SENT)
    out.write(Point())
    out.answer(KeepaliveResponse(time=1))
    out.write(EndBatch(name="left out"))
    batch = out.write_batch("whole")
    assert out.sent() == [KeepaliveResponse(time=1), *batch]


def test_a_batch_begun_before_there_may_be_data_leaves_whole_after_a_takeover() -> None:
    """It is held back with its begin, so that Kapacitor will know that."""
    out = Out(BATCH)
    out.delivery.mute()
    out.write(BeginBatch(name="b"))
    out.delivery.unmute_after(0, in_batch=False, progress=NOTHING_SENT)
    out.delivery.send_data()
    out.write(EndBatch(name="b"))
    assert out.sent() == [BeginBatch(name="b"), EndBatch(name="b")]


def test_what_was_deferred_is_no_part_of_a_batch_that_is_left_out() -> None:
    """It was written before, and leaves."""
    out = muted(BATCH)
    out.delivery.defer()
    other = out.write_batch("other", by_owner=False)
    out.write(BeginBatch(name="left out"))
    out.delivery.unmute_after(0, in_batch=False, progress=NOTHING_SENT)
    out.delivery.undefer()
    assert out.sent() == other
    out.write(EndBatch(name="left out"))
    batch = out.write_batch("whole")
    assert out.sent() == batch


def test_what_another_thread_adds_to_a_batch_that_is_left_out_is_left_out_with_it() -> None:
    """Its EndBatch least of all may leave alone."""
    out = muted(BATCH)
    out.write(BeginBatch(name="left out"))
    out.delivery.unmute_after(0, in_batch=False, progress=NOTHING_SENT)
    out.write(Point(), by_owner=False)
    out.write(EndBatch(name="left out"), by_owner=False)
    assert not out.sent()
    batch = out.write_batch("whole")
    assert out.sent() == batch


def test_a_batch_that_was_begun_before_it_was_muted_goes_on_after() -> None:
    """For Kapacitor there was no repetition."""
    out = opened(BATCH)
    out.write(BeginBatch(name="b"))
    out.write(Point(time=0))
    out.delivery.mute()
    out.delivery.send_data()
    out.write(BeginBatch(name="b"))
    out.write(Point(time=0))
    out.delivery.unmute()
    out.write(Point(time=1))
    out.write(EndBatch(name="b"))
    assert out.sent() == [
        BeginBatch(name="b"), Point(time=0), Point(time=1), EndBatch(name="b"),
    ]  # fmt: skip
    assert (out.delivery.points, out.delivery.batches) == (2, 1)


def test_a_repetition_in_the_midst_of_what_was_sent_changes_nothing() -> None:
    """Neither what leaves after it, nor what is counted."""
    out = muted()
    out.delivery.unmute_after(3, in_batch=False, progress=Progress(points_out=100, bytes_out=1000))
    out.write(Point(time=1))
    before = (out.delivery.points, out.bytes)
    out.delivery.mute()
    out.write(Point(time=1))
    out.delivery.send_data()
    out.delivery.unmute()
    assert (out.delivery.points, out.bytes) == before
    for time in range(2, 6):
        out.write(Point(time=time))
    assert out.sent() == [Point(time=4), Point(time=5)]
    assert out.delivery.points == 105


def test_an_abandoned_batch_lets_the_next_one_begin() -> None:
    """Kapacitor drops what it has of one at the next BeginBatch."""
    out = opened(BATCH)
    out.write(BeginBatch(name="abandoned"))
    out.write(Point())
    out.delivery.abandon_batch()
    assert not out.delivery.in_batch
    with pytest.raises(InvalidWriteError, match="outside a batch"):
        out.write(Point())
    with pytest.raises(InvalidWriteError, match="without a BeginBatch"):
        out.write(EndBatch())
    batch = out.write_batch("whole")
    assert out.sent() == [BeginBatch(name="abandoned"), Point(), *batch]


def test_where_no_batch_is_open_none_is_abandoned() -> None:
    """A stream goes on as it was."""
    out = opened()
    out.delivery.abandon_batch()
    out.write(Point())
    assert out.sent() == [Point()]


def test_an_abandoned_batch_that_was_left_out_takes_no_other_with_it() -> None:
    """It ends there, though no EndBatch was written."""
    out = muted(BATCH)
    out.write(BeginBatch(name="left out"))
    out.delivery.unmute_after(0, in_batch=False, progress=NOTHING_SENT)
    out.delivery.abandon_batch()
    batch = out.write_batch("whole")
    assert out.sent() == batch
