"""The line of calls in flight: what retires when, and that a crash loses and repeats nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.agent.calls_in_flight import Call, CallsInFlight

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAME_BYTES = 10


def call_at(number: int, *, awaits: bool = True) -> Call:
    return Call(number * FRAME_BYTES, (number + 1) * FRAME_BYTES, "point", points=1, awaits=awaits)


def line_of(*calls: Call, concurrency: int = 4) -> CallsInFlight:
    line = CallsInFlight(concurrency)
    for call in calls:
        line.add(call)
    return line


def retired(line: CallsInFlight) -> Iterator[Call]:
    while line.first_done() is not None:
        yield line.retire()


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
    assert not line.has_room
    line.finish(next(iter(line)))
    line.retire()
    assert not line.has_room
    assert line.retire() is failed
    assert line.has_room


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


class _Model:
    """An agent without I/O: commits output together with the offset of the first call in line."""

    def __init__(self, frames: int, concurrency: int) -> None:
        self.frames = frames
        self.concurrency = concurrency
        self.offset = 0
        self.sent: list[tuple[int, int]] = []
        self.restart()

    def restart(self) -> None:
        self.line = CallsInFlight(self.concurrency)
        self.running: list[Call] = []
        self.next = self.offset // FRAME_BYTES

    def start(self) -> None:
        if self.line.has_room and self.next < self.frames:
            call = call_at(self.next)
            for part in range(self.next % 3):
                call.write((self.next, part), b"")
            self.line.add(call)
            self.running.append(call)
            self.next += 1

    def finish(self, which: int) -> None:
        if self.running:
            self.line.finish(self.running.pop(which % len(self.running)))
            for call in retired(self.line):
                self.sent += [written.message for written in call.written]
                self.offset = call.end


@given(
    frames=st.integers(0, 12),
    concurrency=st.integers(1, 4),
    steps=st.lists(st.integers(-2, 8), max_size=60),
)
@pytest.mark.filterwarnings("error")
def test_every_output_is_sent_once_and_in_order_whenever_a_worker_dies(
    frames: int, concurrency: int, steps: list[int]
) -> None:
    model = _Model(frames, concurrency)
    for step in steps:
        if step == -2:
            model.restart()
        elif step == -1:
            model.start()
        else:
            model.finish(step)
        assert model.line.running <= concurrency
        handled = model.offset // FRAME_BYTES
        assert model.sent == [(n, part) for n in range(handled) for part in range(n % 3)]
    while model.offset < frames * FRAME_BYTES:
        model.start()
        model.finish(0)
    assert model.sent == [(n, part) for n in range(frames) for part in range(n % 3)]
