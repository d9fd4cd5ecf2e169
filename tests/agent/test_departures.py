"""Frames leave in one write, and what they answer is told with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent.departures import Departures
from kapudf_cli.errors import ConnectionClosedError
from kapudf_cli.streams.progress import Progress

if TYPE_CHECKING:
    from kapudf_cli.streams import Stream


class NotedWrites:
    """A stream that notes what is written, until it breaks."""

    def __init__(self) -> None:
        self.writes: list[tuple[bytes, int, bool, Progress | None, bool]] = []
        self.problem: OSError | None = None

    def write(
        self,
        data: bytes,
        messages: int = 0,
        *,
        in_batch: bool = False,
        progress: Progress | None = None,
        forgets: bool = False,
    ) -> None:
        if self.problem is not None:
            raise self.problem
        self.writes.append((data, messages, in_batch, progress, forgets))


@pytest.fixture
def stream() -> NotedWrites:
    return NotedWrites()


@pytest.fixture
def departures(stream: NotedWrites) -> Departures:
    """Departures that need of a stream only that it can be written to."""
    part: Stream = stream  # type: ignore[assignment]  # nothing else is called
    return Departures(part)


def flush(
    departures: Departures,
    progress: Progress | None = None,
    *,
    in_batch: bool = False,
    muted: int = 0,
    forgets: bool = False,
) -> None:
    departures.flush(progress, in_batch=in_batch, muted=muted, forgets=forgets)


def test_everything_leaves_in_order_in_one_write(
    stream: NotedWrites, departures: Departures
) -> None:
    """And what was not counted counts as nothing."""
    for frame in (b"a point", b"an answer", b"a heartbeat"):
        departures.add(frame)
    departures.owner_points += 1
    departures.owner_others += 1
    assert departures.size == 27
    flush(departures, in_batch=True)
    assert stream.writes == [(b"a pointan answera heartbeat", 2, True, None, False)]
    assert (departures.size, departures.bytes) == (0, 27)


def test_with_nothing_to_say_nothing_is_written(
    stream: NotedWrites, departures: Departures
) -> None:
    """But how far the input is dealt with is always told."""
    flush(departures)
    assert stream.writes == []
    flush(departures, Progress(offset=7), forgets=True)
    assert stream.writes == [(b"", 0, False, Progress(offset=7), True)]


def test_with_progress_what_was_sent_before_is_told_in_place_of_what_leaves(
    stream: NotedWrites, departures: Departures
) -> None:
    """Messages count from the last progress on: what leaves with one is part of it."""
    departures.add(b"a point")
    departures.owner_points += 1
    flush(departures, Progress(offset=7), muted=3)
    departures.add(b"another")
    departures.owner_points += 1
    flush(departures)
    assert [messages for _, messages, *_ in stream.writes] == [3, 1]


def test_a_stream_that_broke_stays_broken(stream: NotedWrites, departures: Departures) -> None:
    """Each flush says why, and nothing is counted as sent."""
    stream.problem = BrokenPipeError(32, "Broken pipe")
    departures.add(b"a point")
    with pytest.raises(ConnectionClosedError, match="Broken pipe"):
        flush(departures)
    stream.problem = None
    departures.add(b"another")
    with pytest.raises(ConnectionClosedError, match="Broken pipe") as caught:
        flush(departures)
    assert isinstance(caught.value.__cause__, BrokenPipeError)
    assert (stream.writes, departures.bytes) == ([], 0)
