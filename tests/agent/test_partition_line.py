"""Splitting input into parts for partitions, and merging what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.agent.calls_in_flight import MAX_UNORDERED_BYTES
from kapudf_cli.agent.partition_line import PartitionLine, group_of, partition_of
from kapudf_cli.agent.partition_messages import Failure, Passed, Result
from kapudf_cli.protocol.codec import REQUESTS, encode_point
from kapudf_cli.protocol.errors import UnexpectedMessageError
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.order import Incoming, IncomingOrder
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, KeepaliveRequest, Point

if TYPE_CHECKING:
    from kapudf_cli.agent.partition_line import Part

GROUPS = [f"host=server-{number}" for number in range(6)]


def ready() -> IncomingOrder:
    """Return the order of a conversation after Init."""
    order = IncomingOrder()
    order.state = Incoming.READY
    return order


def encoded(*messages: Any) -> bytes:
    return b"".join(map(REQUESTS.encode, messages))


def decoded(frames: bytes) -> list[Any]:
    return list(FrameReader(REQUESTS.decode_in).feed(frames))


def echoed(share: bytes) -> Result:
    """Return what a handler returns that mirrors points."""
    return Result([encode_point(each) for each in decoded(share)], None)


def next_part(line: PartitionLine, order: IncomingOrder, most: int = 100) -> Part | None:
    if line.peek() is None:
        return None
    return line.split(order, most=most, until=1 << 40)


TEXT = st.text(max_size=200)
TODAY = 1_764_000_000_000_000_000


@given(
    st.builds(
        Point,
        time=st.integers(-(2**63), 2**63 - 1),
        name=TEXT,
        database=TEXT,
        retentionPolicy=TEXT,
        group=TEXT,
        dimensions=st.lists(TEXT, max_size=2),
        tags=st.dictionaries(TEXT, TEXT, max_size=2),
        fieldsString=st.dictionaries(TEXT, TEXT, max_size=2),
    )
)
def test_the_group_of_a_point_is_found_in_its_bytes(point: Point) -> None:
    assert group_of(encode_point(point)) == point.group.encode()  # type: ignore[arg-type]


@pytest.mark.parametrize("group", ["g", "g" * 127, "g" * 128, "g" * 20_000])
def test_the_group_may_be_long(group: str) -> None:
    point = Point(time=1_700_000_000_000_000_000, name="cpu", group=group)
    assert group_of(encode_point(point)) == group.encode()  # type: ignore[arg-type]


def test_bytes_that_are_no_point_have_no_group() -> None:
    assert group_of(b"\x04\x8a\x01\x01\xff") == b""  # type: ignore[arg-type]


def test_a_group_has_the_same_partition_in_every_release() -> None:
    assert [partition_of(group.encode(), 4) for group in GROUPS] == [2, 3, 0, 3, 1, 1]


#: Points of some forms: of today or of 1970, of several lengths, with and without a database.
POINTS = st.builds(
    Point,
    time=st.sampled_from([TODAY, TODAY + 10**9, 7]),
    name=st.sampled_from(["cpu", "memory"]),
    database=st.sampled_from(["", "telegraf"]),
    group=st.sampled_from(GROUPS),
    tags=st.just({"host": "server"}),
    fieldsString=st.sampled_from([{}, {"message": "m" * 60}, {"message": "m" * 200}]),
)


@given(
    st.lists(POINTS, max_size=60),
    st.lists(st.integers(1, 2000), max_size=20),
    st.integers(1, 20),
    st.randoms(),
)
def test_output_leaves_in_the_order_of_the_input(
    sent: list[Point], pieces: list[int], most: int, chance: Any
) -> None:
    """However reads are cut, parts are split, and whichever partition is first."""
    rest = encoded(*sent)
    line, order, back = PartitionLine(3), ready(), list[Any]()
    waiting: list[list[bytes]] = [[], [], []]
    while rest or line.parts or line.peek() is not None:
        if rest:
            size = pieces.pop() if pieces else len(rest)
            line.feed(rest[:size])
            rest = rest[size:]
        if (part := next_part(line, order, most)) is not None:
            assert len(part.route) <= most
            for number, share in part.shares.items():
                waiting[number].append(share)
        number = chance.randrange(3)
        if waiting[number]:
            share = waiting[number].pop(0)
            groups_of_it = {each.group for each in decoded(share)}
            assert {partition_of(each.encode(), 3) for each in groups_of_it} == {number}
            line.note(number, echoed(share))
        if (done := line.first_done()) is not None:
            back += decoded(b"".join(done.outputs(len(done.route))))
            line.leave()
            assert line.offset == done.end
    assert back == sent
    assert (line.rest, line.frames) == (b"", 0)


def test_the_name_of_a_point_is_not_taken_for_its_group() -> None:
    """The bytes of the last point are the same at the place where the group of the first two is."""
    first, second = GROUPS[:2]
    imitation = f"name-\x12\x03cpu*{chr(len(first))}{first}"
    sent = [
        Point(time=TODAY, name="cpu", group=first),
        Point(time=TODAY, name="cpu", group=first),
        Point(time=1000, name=imitation, group=second),
    ]
    assert encoded(sent[0])[14:] == encoded(sent[2])[14 : len(encoded(sent[0]))]
    line, order = PartitionLine(4), ready()
    line.feed(encoded(*sent))
    line.feed(encoded(*sent))
    part = next_part(line, order)
    assert part is not None
    wanted = [partition_of(each.group.encode(), 4) for each in sent]
    assert list(part.route) == [*wanted, *wanted]


def test_shares_overtake_in_the_order_of_their_partition() -> None:
    line, order = PartitionLine(3), ready()
    assert [partition_of(group.encode(), 3) for group in GROUPS[:3]] == [0, 1, 2]
    line.feed(encoded(*(Point(time=time, group=GROUPS[time % 3]) for time in range(9))))
    first, second, third = (next_part(line, order, most=3) for _ in range(3))

    def overtake() -> list[tuple[Part | None, int]]:
        found: list[tuple[Part | None, int]] = []
        for part, number in line.overtaking():
            part.note_written(number)
            found.append((part, number))
        return found

    written = Result([b"output"], None)
    for number in (1, 1, 2):
        line.note(number, written)
    assert overtake() == [(first, 1), (first, 2), (second, 1)]
    assert line.done == 0b010_110
    # What follows a failure, or long output, waits for it.
    for result in (Result([bytes(MAX_UNORDERED_BYTES), b"1"], None), written):
        line.note(2, result)
    line.note(1, Result(failure=Failure(0, "restart")))
    assert overtake() == []
    line.note(0, written)
    assert line.first_done() is first
    assert first is not None
    assert first.outputs(3) == [b"output"]
    line.leave()
    assert line.done == 0b010
    line.note(0, written)
    assert line.first_done() is second
    line.leave()
    assert overtake() == [(third, 2)]


def test_a_batch_goes_to_the_partition_of_its_group() -> None:
    line, order = PartitionLine(3), ready()
    batch = [BeginBatch(group=GROUPS[2]), Point(group="other"), EndBatch(group=GROUPS[2])]
    line.feed(encoded(*batch, *batch[:2]))
    part = next_part(line, order)
    assert part is not None
    assert decoded(part.shares[partition_of(GROUPS[2].encode(), 3)]) == [*batch, *batch[:2]]
    assert (part.begins, part.ends, line.batch) == ([0, 3], [2], part.route[0])
    assert [part.ends_in_batch(count) for count in range(6)] == [
        False,
        True,
        True,
        False,
        True,
        True,
    ]
    assert part.tally(4) == (1, 1, 0, 0)


def test_points_of_a_batch_stay_with_it_whatever_their_groups_are() -> None:
    line, order = PartitionLine(4), ready()
    points = [Point(time=TODAY, name="cpu", group=group) for group in GROUPS]
    line.feed(encoded(*points, BeginBatch(group=GROUPS[0]), *points, EndBatch(), *points))
    part = next_part(line, order)
    assert part is not None
    own = [partition_of(group.encode(), 4) for group in GROUPS]
    assert list(part.route) == [*own, *[own[0]] * (len(points) + 2), *own]


@pytest.mark.parametrize(("beyond", "frames"), [(-1, 3), (0, 3), (1, 4)])
def test_a_part_ends_before_a_frame_that_starts_at_the_limit(beyond: int, frames: int) -> None:
    """The limit is so many bytes beyond the start of the fourth frame."""
    point = Point(time=TODAY, name="cpu", group=GROUPS[0])
    size = len(encoded(point))
    line, order = PartitionLine(2), ready()
    line.feed(encoded(*[point] * 5))
    assert line.peek() is not None
    part = line.split(order, most=100, until=3 * size + beyond)
    assert part is not None
    assert (len(part.route), part.end) == (frames, frames * size)
    assert line.next_offset == part.end


def test_a_part_ends_before_a_request_and_a_batch_that_must_wait() -> None:
    line, order = PartitionLine(2), ready()
    line.feed(encoded(Point(time=1), KeepaliveRequest(time=2), Point(time=3), BeginBatch()))
    assert next_part(line, order) is not None
    assert line.peek() == KeepaliveRequest(time=2)
    assert next_part(line, order) is None
    frame = line.take()
    assert (frame.message, frame.end) == (KeepaliveRequest(time=2), line.next_offset)
    assert line.peek() is not None
    part = line.split(order, most=9, until=1 << 40, stops_before_batch=True)
    assert part is not None
    assert len(part.route) == 1
    assert line.peek() == BeginBatch()


def test_a_frame_that_may_not_come_now_ends_the_line() -> None:
    line, order = PartitionLine(2), ready()
    line.feed(encoded(Point(time=1), EndBatch(), Point(time=2)))
    part = next_part(line, order)
    assert part is not None
    assert len(part.route) == 1
    assert isinstance(line.error, UnexpectedMessageError)
    assert line.error.offset == part.end
    assert line.peek() is None


def test_the_first_failure_counts_and_what_came_before_it() -> None:
    """A partition stops at its failure; others have gone on."""
    line, order = PartitionLine(3), ready()
    sent = [Point(time=number, group=group) for number, group in enumerate(GROUPS)]
    line.feed(encoded(*sent))
    part = next_part(line, order)
    assert part is not None
    # A partition with several frames fails at its second one, for which it had written twice.
    shares = {number: decoded(share) for number, share in part.shares.items()}
    failing = max(shares, key=lambda number: len(shares[number]))
    second = shares[failing][1].time
    for number, share in part.shares.items():
        result = echoed(share)
        if number == failing:
            outputs = [result.outputs[0], b"a", b"b"]
            passed = [Passed(0, 1, 1)]
            result = Result(outputs, [1, 2], passed=passed, failure=Failure(1, "restart"))
        line.note(number, result)
    assert part.first_failure() == (second, Failure(1, "restart"))
    outputs = part.outputs(second + 1)
    assert outputs[-2:] == [b"a", b"b"]
    assert decoded(b"".join(outputs[:-2])) == sent[:second]
    assert part.tally(second + 1) == (second + 1, 0, 1, 1)
    start, end = line.place(part, second)
    assert encoded(*sent)[start:end] == encoded(sent[second])
    line.advance(end)
    line.rewind(batch=None)
    again = next_part(line, ready())
    assert again is not None
    assert [again.start, again.end] == [end, len(encoded(*sent))]
