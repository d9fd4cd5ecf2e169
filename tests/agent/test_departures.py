"""Frames leave in one write, and what they answer is told with them."""

from __future__ import annotations

import collections
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
    """And what is not the owner's counts as nothing."""
    departures.frames.append(b"a point")
    departures.size += 7
    departures.add(b"an answer", by_owner=True)
    departures.add(b"a heartbeat", by_owner=False)
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
    departures.add(b"a point", by_owner=True)
    flush(departures, Progress(offset=7), muted=3)
    departures.add(b"another", by_owner=True)
    flush(departures)
    assert [messages for _, messages, *_ in stream.writes] == [3, 1]


def test_a_run_counts_as_its_points(stream: NotedWrites, departures: Departures) -> None:
    """It is one piece, and each of its points a message."""
    departures.add_run(b"three points", 3)
    departures.add(b"another's", by_owner=False)
    assert departures.owner_points == 3
    flush(departures)
    departures.add(b"an answer", by_owner=True)
    flush(departures)
    assert [messages for _, messages, *_ in stream.writes] == [3, 1]


class Interrupted(collections.deque[bytes]):
    """Frames of which one more is added as soon as the last one was taken."""

    def __init__(self, departures: Departures) -> None:
        super().__init__()
        self._departures = departures
        self.ready = True

    def popleft(self) -> bytes:
        frame = super().popleft()
        if not self and self.ready:
            self.ready = False
            self.append(b"late")
            self._departures.owner_points += 1
        return frame


def test_what_is_added_while_others_are_taken_is_counted_once_it_leaves(
    stream: NotedWrites, departures: Departures
) -> None:
    """Noted as sent before, it would be lost if the worker died, for it would not be sent again."""
    departures.frames = Interrupted(departures)
    departures.add(b"a heartbeat", by_owner=False)
    flush(departures)
    flush(departures)
    assert [(data, messages) for data, messages, *_ in stream.writes] == [
        (b"a heartbeat", 0),
        (b"late", 1),
    ]


def test_a_stream_that_broke_stays_broken(stream: NotedWrites, departures: Departures) -> None:
    """Each flush says why, and nothing is counted as sent."""
    stream.problem = BrokenPipeError(32, "Broken pipe")
    departures.add(b"a point", by_owner=True)
    with pytest.raises(ConnectionClosedError, match="Broken pipe"):
        flush(departures)
    stream.problem = None
    departures.add(b"another", by_owner=True)
    with pytest.raises(ConnectionClosedError, match="Broken pipe") as caught:
        flush(departures)
    assert isinstance(caught.value.__cause__, BrokenPipeError)
    assert (stream.writes, departures.bytes) == ([], 0)
