"""A log that holds nobody up."""

from __future__ import annotations

import logging
import os
import select
import threading
from typing import TYPE_CHECKING

import pytest

from kapudf_cli import log_writer
from kapudf_cli.log_writer import LogWriter, PromptLogWriter
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """Give a logger that nobody else has."""
    logger = logging.Logger("alone")  # noqa: LOG001 - no other test shall see it
    yield logger
    for handler in logger.handlers:
        handler.close()


@pytest.mark.parametrize("kind", [LogWriter, PromptLogWriter])
def test_events_are_written_in_order_and_formatted(
    logger: logging.Logger, tmp_path: Path, kind: type[LogWriter]
) -> None:
    """All of them are there once it is closed, tracebacks included."""
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as file:
        output = logging.StreamHandler(file)
        output.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        writer = kind(output)
        logger.addHandler(writer)
        for number in range(100):
            logger.info("event %d", number)
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("failed")
        writer.close()
    lines = log.read_text(encoding="utf-8").splitlines()
    assert lines[:100] == [f"INFO event {number}" for number in range(100)]
    assert lines[100] == "ERROR failed"
    assert lines[-1] == "ValueError: why"


@pytest.mark.parametrize("kind", [LogWriter, PromptLogWriter])
def test_a_reader_that_stops_holds_nobody_up_and_what_is_lost_is_counted(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, kind: type[LogWriter]
) -> None:
    """Events wait, up to a limit; when it reads again, they come, and the number of the others."""
    monkeypatch.setattr(log_writer, "_MOST_EVENTS", 50)
    monkeypatch.setattr(log_writer, "_PATIENCE_S", 0.0)
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8", buffering=1) as pipe:
        writer = kind(logging.StreamHandler(pipe))
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


def test_a_prompt_writer_has_written_what_there_is_room_for_when_the_call_returns(
    logger: logging.Logger,
) -> None:
    """A fault that ends the process the moment after takes nothing with it."""
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8", buffering=1) as pipe:
        logger.addHandler(PromptLogWriter(logging.StreamHandler(pipe)))
        for number in range(100):
            logger.info("event %d", number)
            assert os.read(reading, 4096) == f"event {number}\n".encode()
    os.close(reading)


def test_what_a_prompt_writer_leaves_to_its_thread_keeps_its_place(logger: logging.Logger) -> None:
    """An event longer than a pipe surely takes, and those that come before it is written."""
    reading, writing = os.pipe()
    long = "x" * 100_000
    with open(writing, "w", encoding="utf-8", buffering=1) as pipe:
        writer = PromptLogWriter(logging.StreamHandler(pipe))
        logger.addHandler(writer)
        for event in ("before", long, "after"):
            logger.info(event)
        came = b""
        while not came.endswith(b"after\n"):
            came += os.read(reading, 65536)
        writer.close()
    os.close(reading)
    assert came.decode().split() == ["before", long, "after"]
