"""Checkpoints: nothing, or the last snapshot."""

from __future__ import annotations

import time

import pytest

from kapudf_cli.agent.checkpoints import Checkpoints, LastSnapshot, NoCheckpoints


@pytest.fixture
def kept() -> LastSnapshot:
    """Return checkpoints with a snapshot interval of a hundred seconds."""
    return LastSnapshot(100.0)


def test_no_checkpoints_never_requests_a_compaction() -> None:
    kept: Checkpoints = NoCheckpoints()
    for stateless in (False, True):
        assert not kept.is_due(time.monotonic() + 1e9, stateless=stateless, snapshot_requested=True)
    kept.compact(b"Init", b"rest")
    kept.postpone()
    kept.send_rest()
    kept.record_current_frame(7)
    kept.record_seen_frame(8)
    assert kept.history(100) == b""


def test_a_snapshot_is_due_at_intervals_and_on_request(
    kept: LastSnapshot,
) -> None:
    now_s = time.monotonic()
    assert not kept.is_due(now_s, stateless=False, snapshot_requested=False)
    assert kept.is_due(now_s, stateless=False, snapshot_requested=True)
    assert kept.is_due(now_s + 101, stateless=False, snapshot_requested=False)
    assert not kept.is_due(now_s + 101, stateless=True, snapshot_requested=True)


@pytest.mark.parametrize("how", ["cut", "postpone"])
def test_the_next_snapshot_is_due_an_interval_later(
    kept: LastSnapshot, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    later_s = time.monotonic() + 500
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    assert kept.is_due(later_s, stateless=False, snapshot_requested=False)
    if how == "cut":
        kept.compact(b"Init, Restore", b"")
    else:
        kept.postpone()
    assert not kept.is_due(later_s + 99, stateless=False, snapshot_requested=False)
    assert kept.is_due(later_s + 100, stateless=False, snapshot_requested=False)


def test_the_history_is_the_last_snapshot(kept: LastSnapshot) -> None:
    assert kept.history(0) == b""
    kept.compact(b"Init, Restore", b"rest")
    kept.postpone()
    assert kept.history(0) == kept.history(10_000) == b"Init, Restore"
    kept.compact(b"Init, later Restore", b"")
    assert kept.history(20_000) == b"Init, later Restore"
