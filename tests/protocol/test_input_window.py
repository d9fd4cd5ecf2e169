"""The input window: frames with their places, what is kept, and reading it again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.errors import (
    FrameTooLongError,
    TruncatedFrameError,
    UndecodableMessageError,
)
from kapudf_cli.protocol.input_window import Frame, InputWindow
from kapudf_cli.protocol.udf_pb2 import Point

POINTS = [Point(time=number, name="n" * number) for number in range(12)]
FRAMES = [REQUESTS.encode(point) for point in POINTS]


@given(
    start=st.sampled_from([0, 1000]),
    steps=st.lists(
        st.tuples(st.sampled_from(["feed", "begin", "handle", "rewind"]), st.integers(1, 40))
    ),
)
def test_any_input_is_split_kept_and_split_again(start: int, steps: list[tuple[str, int]]) -> None:
    window = InputWindow()
    window.resume_at(start)
    data = rest = b"".join(FRAMES)
    begun: list[Frame] = []
    handled: list[Frame] = []
    for step, size in [*steps, ("feed", len(data))]:
        if step == "feed":
            window.feed(rest[:size])
            rest = rest[size:]
        elif step == "begin" and window.frames:
            begun.append(window.frames.popleft())
        elif step == "handle" and begun:
            handled.append(begun.pop(0))
            window.advance(handled[-1].end)
        elif step == "rewind":
            window.rewind()
            begun.clear()
        assert window.offset == (handled[-1].end if handled else start)
        assert window.rest == data[window.offset - start : len(data) - len(rest)]
    frames = [*handled, *begun, *window.frames]
    assert [frame.message for frame in frames] == POINTS
    assert b"".join(data[frame.offset - start : frame.end - start] for frame in frames) == data
    window.finish()


def test_an_incomplete_frame_is_kept_and_reported_at_the_end() -> None:
    window = InputWindow()
    window.feed(FRAMES[5] + FRAMES[6][:-1])
    assert len(window.frames) == 1
    window.advance(window.frames.popleft().end)
    assert window.rest == FRAMES[6][:-1]
    with pytest.raises(TruncatedFrameError):
        window.finish()


def test_frames_before_a_faulty_one_are_split_off() -> None:
    window = InputWindow(max_frame_bytes=30)
    window.feed(FRAMES[3] + b"\xff\x01")
    assert [frame.message for frame in window.frames] == [POINTS[3]]
    assert isinstance(window.error, FrameTooLongError)
    assert window.error.offset == len(FRAMES[3])
    window.rewind()
    assert isinstance(window.error, FrameTooLongError)


def test_a_frame_that_cannot_be_decoded_is_a_frame() -> None:
    window = InputWindow()
    window.feed(b"\x01\xff" + FRAMES[1])
    first, second = window.frames
    assert isinstance(first.message, UndecodableMessageError)
    assert (first.end, second.message) == (2, POINTS[1])
