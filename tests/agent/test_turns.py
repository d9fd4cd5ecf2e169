"""Handlers that are called one at a time: the order of turns, and what waits for no turn."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import TYPE_CHECKING, ClassVar

import pytest

from kapudf_cli import Handler
from kapudf_cli.agent import turns as source
from kapudf_cli.agent.turns import NoTurn, Turn, Turns, turn_of
from kapudf_cli.client.target import served
from kapudf_cli.protocol.udf_pb2 import InitResponse, Point
from tests.peers import INIT, in_thread
from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.client.driver import KapacitorSide


def is_taken(turns: Turns) -> bool:
    return turns.is_taken


def test_those_that_wait_get_the_lock_in_their_order() -> None:
    turns = Turns()
    assert turns.take() is None
    first, second = turns.take(), turns.take()
    assert first is not None
    assert second is not None
    assert turns.has_waiting
    turns.give()
    assert first.acquire(blocking=False)
    assert not second.acquire(blocking=False)
    turns.give()
    assert second.acquire(blocking=False)
    turns.give()
    assert not is_taken(turns)


def test_a_turn_may_be_entered_again_inside() -> None:
    turns = Turns()
    turn = Turn(turns)
    with turn:
        with turn:
            assert is_taken(turns)
        assert is_taken(turns)
    assert not is_taken(turns)


def test_a_turn_is_given_up_while_the_peer_is_waited_for() -> None:
    turns = Turns()
    turn = Turn(turns)
    with turn:
        for _ in range(2):
            turn.suspend()
            assert not is_taken(turns)
        turn.regain()
        assert is_taken(turns)
        in_thread(turn.suspend).result(PATIENCE_S)
        assert is_taken(turns), "another thread of the handler gave it up"
        turn.suspend()
    assert not is_taken(turns)
    turn.regain()
    assert not is_taken(turns), "it was taken outside of any call"


def test_a_long_turn_is_given_up_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    called: list[object] = []
    monkeypatch.setattr(source, "_SLICE_S", 0.0)
    waits: list[bool] = []
    ours, theirs = Turn(turns, waits.append), Turn(turns)
    call = ours.guard(called.append)

    def take_turn() -> None:
        with theirs:
            called.append("theirs")

    with ours:
        call(1)
        other = in_thread(take_turn)
        wait_until(lambda: turns.has_waiting)
        assert theirs.waits
        call(2)
    other.result(PATIENCE_S)
    assert called == [1, "theirs", 2]
    # Whether the other one still had it is up to the threads.
    assert waits in ([], [True, False])
    assert not is_taken(turns)


class Model(Handler):
    """Has turns, as those that inherit from it."""

    serialize = True

    def point(self, point: Point, /) -> None:
        """Do nothing."""


class Derived(Model):
    """Shares the attributes of its base, and so its turns."""


class Apart(Model):
    """Has turns of its own."""

    serialize = True


@pytest.mark.parametrize(
    ("one", "other", "waits"),
    [(Model, Model, True), (Model, Derived, True), (Model, Apart, False)],
)
def test_classes_that_share_attributes_take_turns(
    one: type[Handler], other: type[Handler], *, waits: bool
) -> None:
    held, wanted = turn_of(one), turn_of(other)

    def take_turn() -> None:
        with wanted:
            pass

    with held:
        taking = in_thread(take_turn)
        if waits:
            wait_until(lambda: wanted.waits)
        else:
            taking.result(PATIENCE_S)
    taking.result(PATIENCE_S)
    assert not wanted.waits


def test_other_handlers_have_no_turns() -> None:
    class Plain(Handler):
        def point(self, point: Point, /) -> None:
            pass

    assert isinstance(turn_of(Plain), NoTurn)
    assert isinstance(turn_of(functools.partial(Model)), NoTurn)


# --- served ---


@contextlib.contextmanager
def tasks(handler: type[Handler], count: int) -> Iterator[list[KapacitorSide]]:
    """Give Kapacitor's sides of some tasks."""
    with contextlib.ExitStack() as stack:
        sides = []
        for _ in range(count):
            sides.append(stack.enter_context(served(handler, timeout_s=PATIENCE_S)).side)
            sides[-1].send(INIT)
            assert sides[-1].receive() == InitResponse(success=True)
        yield sides


def test_only_one_handler_is_called_at_a_time() -> None:
    class Fragile(Handler):
        serialize = True
        calls: ClassVar[list[int]] = []
        pause = threading.Event()

        def point(self, point: Point, /) -> None:
            self.calls.append(1)
            assert len(self.calls) == 1
            self.pause.wait(0.0005)
            self.calls.pop()
            self.agent.write_point(point)

    def play(side: KapacitorSide) -> int:
        for number in range(200):
            side.send(Point(time=number))
        return len([side.receive() for _ in range(200)])

    with tasks(Fragile, 4) as sides:
        playing = [in_thread(lambda side=side: play(side)) for side in sides]  # type: ignore[misc]
        assert [each.result(PATIENCE_S) for each in playing] == [200] * 4


def test_a_peer_that_does_not_read_keeps_no_turn() -> None:
    class Copies(Handler):
        serialize = True

        def point(self, point: Point, /) -> None:
            for _ in range(point.fieldsInt["copies"]):
                self.agent.write_point(point)

    copies = 20_000
    with tasks(Copies, 2) as (slow, quick):
        slow.send(Point(name="x" * 1000, fieldsInt={"copies": copies}))
        for number in range(10):
            quick.send(Point(time=number, fieldsInt={"copies": 1}))
            point = quick.receive()
            assert isinstance(point, Point)
            assert point.time == number
        for _ in range(copies):
            assert isinstance(slow.receive(), Point)


def test_a_handler_that_hangs_makes_others_wait_and_not_fail() -> None:
    class Waits(Handler):
        serialize = True
        gate = threading.Event()
        here = threading.Event()

        def point(self, point: Point, /) -> None:
            if point.name == "wait":
                self.here.set()
                assert self.gate.wait(PATIENCE_S)
            self.agent.write_point(point)

    with tasks(Waits, 2) as (first, second):
        first.send(Point(name="wait"))
        assert Waits.here.wait(PATIENCE_S)
        second.send(Point(time=2))
        Waits.gate.set()
        assert first.receive() == Point(name="wait")
        assert second.receive() == Point(time=2)
