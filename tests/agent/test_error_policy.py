"""The log of dropped data."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from kapudf_cli.agent.error_policy import DropLog
from kapudf_cli.agent.errors import HandlerError

if TYPE_CHECKING:
    import pytest


def test_drops_are_logged_once_a_second_with_their_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    dropped = DropLog()
    error = HandlerError("Mirror", "point", ValueError("no good"))
    with caplog.at_level(logging.DEBUG):
        for tick in range(35):
            now_s = 1000.0 + tick / 10
            dropped.record(error, what="point", offset=tick, on_error="skip")
    events = [record.__dict__ for record in caplog.records]
    assert [event["offset"] for event in events] == [0, 10, 20, 30]
    assert [event["dropped_since_last_event"] for event in events] == [1, 10, 10, 10]
    assert {event["on_error"] for event in events} == {"skip"}
    assert caplog.messages[0] == "point dropped: Mirror.point raised ValueError: no good"
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is error.cause
