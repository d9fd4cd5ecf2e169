"""What the supervisor knows of a connection whose handover comes to nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import pytest

from kapudf_cli import logs
from kapudf_cli.serving import channel as orders
from kapudf_cli.serving.placement import Placement
from kapudf_cli.serving.served import Move, ServedConnection
from tests.journals import KeptConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.serving.channel import Order

#: Threads of the worker that has the connection, and of the one that was to have it.
OLD_THREAD, NEW_THREAD = 11, 22


class ToldWorker:
    """A worker that notes what it is told."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.connections: set[int] = set()
        self.hung: set[int] = set()
        self.told: list[Order] = []

    def send(self, order: Order, descriptors: object = ()) -> None:
        del descriptors
        self.told.append(order)


class PausedMove:
    """A connection on its way from one worker to another, which was told to take it."""

    def __init__(self, kept: KeptConnection) -> None:
        self.served = ServedConnection(
            7, kept.connection.dup(), os.dup(kept.memory), None, busy_limit_s=10.0
        )
        self.old = cast("Any", ToldWorker(1))
        self.new = cast("Any", ToldWorker(2))
        self.placement = Placement([], on_left=lambda _: None, log=logs.get_logger())
        self.placement.connections[7] = self.served
        self.served.take()
        self.served.worker, self.served.move = self.old, Move(self.new)
        self.served.ledger.thread = OLD_THREAD
        self.placement.on_report(self.old, orders.Paused(7))
        self.served.ledger.thread = NEW_THREAD


@pytest.fixture
def paused() -> Iterator[PausedMove]:
    """Give one."""
    kept = KeptConnection()
    paused = PausedMove(kept)
    yield paused
    paused.served.close()
    kept.close()


@pytest.mark.parametrize("why", ["it is refused", "the new worker dies", "kapudf stops"])
def test_the_old_workers_thread_serves_the_connection_again(paused: PausedMove, why: str) -> None:
    """A fault of that thread is the connection's, and of no other."""
    match why:
        case "it is refused":
            paused.placement.on_report(paused.new, orders.NotTaken(7, "no such state"))
        case "the new worker dies":
            paused.placement.on_death(paused.new, "SIGKILL", "", drops_poison=False)
        case _:
            paused.placement.abandon_moves()
    assert paused.old.told == [orders.Go(7)]
    assert paused.served.worker is paused.old
    assert paused.served.move is None
    assert paused.served.ledger.thread == OLD_THREAD


def test_after_a_handover_it_is_the_new_workers(paused: PausedMove) -> None:
    """Which noted it when it began."""
    paused.placement.on_report(paused.new, orders.Taken(7))
    assert paused.old.told == [orders.Release(7)]
    assert paused.served.ledger.thread == NEW_THREAD
