"""What cannot leave yet is kept in order, and bounded."""

from __future__ import annotations

from kapudf_cli.agent.backlog import BACKLOG_BYTES, Backlog


def test_what_is_added_is_taken_in_order_once() -> None:
    """Each with whose it is."""
    backlog = Backlog()
    assert not backlog
    backlog.add(b"first", own=True)
    backlog.add(b"second", own=False)
    assert backlog
    assert backlog.size == 11
    assert backlog.take() == [(b"first", True), (b"second", False)]
    assert backlog.take() == []
    assert not backlog
    assert backlog.size == 0


def test_it_is_full_once_its_limit_is_reached() -> None:
    """Whoever adds looks before; it has room again once all was taken."""
    backlog = Backlog()
    steps = [
        lambda: backlog.add(bytes(BACKLOG_BYTES - 1), own=True),
        lambda: backlog.add(bytes(1), own=True),
        backlog.take,
    ]
    seen = []
    for step in steps:
        step()
        seen.append(backlog.is_full)
    assert seen == [False, True, False]
