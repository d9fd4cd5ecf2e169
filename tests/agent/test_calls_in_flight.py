"""The line of calls in flight: what retires when, and that a crash loses and repeats nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.agent.calls_in_flight import MAX_UNORDERED_BYTES, Call, CallsInFlight
from kapudf_cli.transport.stream import DONE_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAME_BYTES = 10


def call_at(number: int, *, awaits: bool = True) -> Call:
    return Call(number * FRAME_BYTES, (number + 1) * FRAME_BYTES, "point", points=1, awaits=awaits)


def line_of(*calls: Call, concurrency: int = 4, ordered: bool = True) -> CallsInFlight:
    line = CallsInFlight(concurrency, ordered=ordered)
    for call in calls:
        line.add(call)
    return line


def retired(line: CallsInFlight) -> Iterator[Call]:
    while (call := line.next_done()) is not None:
        yield from line.retire(call)


def test_calls_retire_in_the_order_of_the_input() -> None:
    first, second, third = calls = [call_at(number) for number in range(3)]
    line = line_of(*calls)
    line.finish(third)
    line.finish(second)
    assert list(retired(line)) == []
    line.finish(first)
    assert list(retired(line)) == calls
    assert not line


def test_as_many_calls_run_as_allowed() -> None:
    calls = [call_at(number) for number in range(2)]
    line = line_of(calls[0], concurrency=2)
    rooms = [line.has_room]
    line.add(calls[1])
    rooms.append(line.has_room)
    line.finish(calls[1])
    rooms.append(line.has_room)
    assert rooms == [True, False, True]


def test_one_slow_call_lets_a_limited_number_of_calls_pass() -> None:
    line = line_of(call_at(0), concurrency=2)
    for number in range(1, 8):
        assert line.has_room
        call = call_at(number)
        line.add(call)
        line.finish(call)
    assert not line.has_room


def test_long_output_waits_for_the_first_call() -> None:
    first, second = call_at(0), call_at(1)
    line = line_of(first, second)
    second.write(None, bytes(16 * 1024 * 1024))
    line.finish(second)
    assert not line.has_room
    line.finish(first)
    assert len(list(retired(line))) == 2
    assert line.has_room


def test_a_failed_plain_method_stops_the_line_until_it_retires() -> None:
    line = line_of(call_at(0))
    failed = call_at(1, awaits=False)
    line.add(failed)
    line.finish(failed, ValueError())
    rooms = [line.has_room]
    first = next(iter(line))
    line.finish(first)
    line.retire(first)
    rooms.append(line.has_room)
    line.retire(failed)
    assert [*rooms, line.has_room] == [False, False, True]


def test_a_failed_async_method_lets_others_go_on() -> None:
    calls = [call_at(0), call_at(1)]
    line = line_of(*calls)
    line.finish(calls[1], ValueError())
    assert line.has_room


def test_canceled_calls_are_those_that_run() -> None:
    calls = [call_at(number) for number in range(3)]
    line = line_of(*calls)
    line.finish(calls[1])
    assert line.cancel() == [calls[0], calls[2]]
    assert [call.is_canceled for call in calls] == [True, False, True]
    assert not line
    line.finish(calls[0], KeyError())
    assert (line.running, line.has_room) == (0, True)


# --- out of order ---


def grouped(*groups: str | None, concurrency: int = 4) -> tuple[CallsInFlight, list[Call]]:
    """Return a line whose order does not matter, with a call for a point of each group."""
    calls = [call_at(number) for number in range(len(groups))]
    for call, group in zip(calls, groups, strict=True):
        call.group = group
    return line_of(*calls, concurrency=concurrency, ordered=False), calls


def test_a_call_may_overtake_those_of_other_groups() -> None:
    line, calls = grouped("a", "b", "c")
    line.finish(calls[1])
    assert line.next_done() is calls[1]
    assert line.retire(calls[1]) == []
    assert (line.done, line.next_done()) == (0b010, None)
    line.finish(calls[0])
    assert line.next_done() is calls[0]
    assert line.retire(calls[0]) == calls[:2]
    assert (line.done, len(line)) == (0, 1)


@pytest.mark.parametrize("groups", [("a", "a"), ("a", None), (None, "b")])
def test_no_call_overtakes_one_of_its_group_or_what_is_no_point(groups: tuple[str, str]) -> None:
    line, calls = grouped(*groups)
    line.finish(calls[1])
    assert line.next_done() is None


def test_a_failed_or_long_call_overtakes_no_other() -> None:
    line, calls = grouped("a", "b", "c")
    line.finish(calls[1], ValueError())
    calls[2].write(None, bytes(MAX_UNORDERED_BYTES + 1))
    line.finish(calls[2])
    assert line.next_done() is None
    line.finish(calls[0])
    assert line.next_done() is calls[0]


def test_only_calls_that_have_a_bit_overtake_others() -> None:
    line, calls = grouped(*map(str, range(DONE_BITS + 1)), concurrency=DONE_BITS + 1)
    line.finish(calls[DONE_BITS])
    assert line.next_done() is None
    line.finish(calls[DONE_BITS - 1])
    assert line.next_done() is calls[DONE_BITS - 1]
    line.retire(calls[DONE_BITS - 1])
    assert line.done == 1 << (DONE_BITS - 1)


def test_frames_that_an_earlier_agent_has_answered_stay_done() -> None:
    line = line_of()
    line.resume(0b1010)
    taken = []
    for number in range(2):
        call = call_at(number)
        taken.append(line.take_next())
        call.is_repeated = taken[-1]
        line.add(call)
    assert (taken, line.done) == ([False, True], 0b1010)
    for call in list(line):
        line.finish(call)
    assert len(list(retired(line))) == 2
    assert line.done == 0b10


# --- any order and any crash ---


class _Model:
    """An agent without I/O: what it commits, and what its successors make of that."""

    def __init__(self, groups: list[str], concurrency: int, *, ordered: bool) -> None:
        self.groups = groups
        self.concurrency = concurrency
        self.ordered = ordered
        #: What was committed: the output so far, and where a successor begins.
        self.sent: list[tuple[int, int]] = []
        self.offset = self.done = 0
        self.restart()

    def restart(self) -> None:
        self.line = CallsInFlight(self.concurrency, ordered=self.ordered)
        self.line.resume(self.done)
        self.running: list[Call] = []
        self.next = self.offset // FRAME_BYTES

    def start(self) -> None:
        if self.line.has_room and self.next < len(self.groups):
            call = call_at(self.next)
            call.is_repeated = self.line.take_next()
            call.group = None if self.ordered else self.groups[self.next]
            for part in range(self.next % 3):
                call.write((self.next, part), b"")
            self.line.add(call)
            self.running.append(call)
            self.next += 1

    def finish(self, which: int) -> None:
        if self.running:
            self.line.finish(self.running.pop(which % len(self.running)))
        while (call := self.line.next_done()) is not None:
            if not call.is_repeated:
                self.sent += [written.message for written in call.written]
            for leaving in self.line.retire(call):
                self.offset = leaving.end
            self.done = self.line.done


@given(
    groups=st.lists(st.sampled_from("abc"), max_size=12),
    concurrency=st.integers(1, 4),
    ordered=st.booleans(),
    steps=st.lists(st.integers(-2, 8), max_size=60),
)
def test_every_output_is_sent_once_and_in_order_whenever_a_worker_dies(
    *, groups: list[str], concurrency: int, ordered: bool, steps: list[int]
) -> None:
    model = _Model(groups, concurrency, ordered=ordered)
    for step in steps:
        if step == -2:
            model.restart()
        elif step == -1:
            model.start()
        else:
            model.finish(step)
        assert model.line.running <= concurrency
        assert len(set(model.sent)) == len(model.sent)
    while model.offset < len(groups) * FRAME_BYTES:
        model.start()
        model.finish(0)
    expected = [(n, part) for n in range(len(groups)) for part in range(n % 3)]
    assert sorted(model.sent) == expected
    if ordered:
        assert model.sent == expected
    for group in "abc":
        of_group = [each for each in model.sent if groups[each[0]] == group]
        assert of_group == sorted(of_group)
