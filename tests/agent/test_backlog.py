"""What cannot leave yet is kept in order, and bounded."""

from __future__ import annotations

from kapudf_cli.agent.backlog import BACKLOG_BYTES, Backlog, Written
from kapudf_cli.wire.udf_pb2 import Point


def test_what_is_added_is_taken_in_order_once() -> None:
    """Each as it was added."""
    backlog = Backlog()
    assert not backlog
    first, second = (
        Written(b"first", Point, by_owner=True),
        Written(b"second", Point, by_owner=False),
    )
    backlog.add(first)
    backlog.add(second)
    assert backlog
    assert backlog.size == 11
    assert backlog.take() == [first, second]
    assert backlog.take() == []
    assert not backlog
    assert backlog.size == 0


def test_it_is_full_once_its_limit_is_reached() -> None:
    """Whoever adds looks before; it has room again once all was taken."""
    backlog = Backlog()
    steps = [
        lambda: backlog.add(Written(bytes(BACKLOG_BYTES - 1), Point, by_owner=True)),
        lambda: backlog.add(Written(bytes(1), Point, by_owner=True)),
        backlog.take,
    ]
    seen = []
    for step in steps:
        step()
        seen.append(backlog.is_full)
    assert seen == [False, True, False]
