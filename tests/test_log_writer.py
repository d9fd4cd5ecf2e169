"""A log that holds nobody up."""

from __future__ import annotations

import io
import logging
import os
import select
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli import log_writer
from kapudf_cli.log_writer import LogWriter
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Give a logger that nobody else has."""
    logger = logging.Logger("alone")  # noqa: LOG001 - no other test shall see it
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_events_are_written_in_order_and_formatted(logger: logging.Logger) -> None:
    """All of them are there once it is closed, tracebacks included."""
    text = io.StringIO()
    output = logging.StreamHandler(text)
    output.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    writer = LogWriter(output)
    logger.addHandler(writer)
    for number in range(100):
        logger.info("event %d", number)
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    writer.close()
    lines = text.getvalue().splitlines()
    assert lines[:100] == [f"INFO event {number}" for number in range(100)]
    assert lines[100] == "ERROR failed"
    assert lines[-1] == "ValueError: why"


def test_a_reader_that_stops_holds_nobody_up_and_what_is_lost_is_counted(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events wait, up to a limit; when it reads again, they come, and the number of the others."""
    monkeypatch.setattr(log_writer, "_MOST_EVENTS", 50)
    monkeypatch.setattr(log_writer, "_PATIENCE_S", 0.0)
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8", buffering=1) as pipe:
        writer = LogWriter(logging.StreamHandler(pipe))
        logger.addHandler(writer)
        line = "x" * 4096
        for _ in range(200):  # More than a pipe and the limit hold.
            logger.info(line)
        assert writer.lost > 0
        writer.close()  # It does not wait for ever, either.
        done = threading.Event()

        def read() -> None:
            while writer._events.unfinished_tasks:
                if select.select([reading], [], [], 0.05)[0]:
                    os.read(reading, 65536)
            done.set()

        threading.Thread(target=read, daemon=True).start()
        assert done.wait(PATIENCE_S)
    os.close(reading)
    assert writer.lost == 0
