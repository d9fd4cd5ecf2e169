"""Real traffic of a real kapacitord, played against a real `kapudf serve` process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.protocol.codec import REQUESTS
from kapudf_cli.protocol.framing import FrameReader, frame_body
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.conftest import plugin
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from tests.serve_process import ServeProcess

CAPTURES = sorted((Path(__file__).parent / "captures").glob("*.bin"))


def requests_of(capture: bytes) -> list[RequestMessage]:
    """Return every request of a capture; it must be whole."""
    frames = FrameReader(frame_body)
    requests = [REQUESTS.decode(frame) for frame in frames.feed(capture)]
    frames.finish()
    return requests


def expected_answer(request: RequestMessage) -> ResponseMessage | type[InfoResponse]:
    """Return what the captured mirror answers: data as it was, and each request its answer."""
    match request:
        case BeginBatch() | Point() | EndBatch():
            return request
        case KeepaliveRequest():
            return KeepaliveResponse(time=request.time)
        case InitRequest():
            return InitResponse(success=True)
        case SnapshotRequest():
            return SnapshotResponse(snapshot=b"state")
        case RestoreRequest():
            return RestoreResponse(success=True)
        case InfoRequest():
            return InfoResponse


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for place in range(len(data)):
        yield data[place : place + 1]


def odd_pieces(data: bytes) -> Iterator[bytes]:
    """Yield pieces of 1, 3, 7, 15 … 8191 bytes and round again, so that cuts fall anywhere."""
    place, size = 0, 1
    while place < len(data):
        yield data[place : place + size]
        place += size
        size = size * 2 + 1 if size < 8191 else 1


@pytest.mark.parametrize("pieces", [whole, byte_by_byte, odd_pieces])
@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_every_message_of_a_capture_is_answered_as_it_was_sent(
    capture: Path,
    pieces: Callable[[bytes], Iterator[bytes]],
    serve: Callable[..., ServeProcess],
    socket_path: str,
) -> None:
    """Points and batches come back equal, and every request is answered in its place."""
    edge = "BatchMirror" if capture.stem.startswith("batch") else "StreamMirror"
    process = serve(plugin(f"captured.py:{edge}"))
    data = capture.read_bytes()
    expected = [expected_answer(request) for request in requests_of(data)]

    with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:

        def play() -> None:
            for piece in pieces(data):
                side.send_bytes(piece)
            side.half_close()

        player = threading.Thread(target=play)
        player.start()
        answers = list(side.responses())
        player.join(PATIENCE_S)

    assert len(answers) == len(expected)
    for answer, wanted in zip(answers, expected, strict=True):
        if wanted is InfoResponse:
            assert isinstance(answer, InfoResponse)
            assert sorted(answer.options) == [
                "as", "empty", "enabled", "every", "field", "scale", "size", "tag",
            ]  # fmt: skip
        else:
            assert answer == wanted

    finished = process.event("connection finished")
    assert finished["reason"] == "closed"
    assert finished["bytes_in"] == len(data)
    assert finished["points_in"] == finished["points_out"] == count(expected, Point)
    assert finished["batches_in"] == finished["batches_out"] == count(expected, EndBatch)


def count(messages: list[ResponseMessage | type[InfoResponse]], kind: type) -> int:
    return sum(isinstance(message, kind) for message in messages)


def test_the_captures_hold_what_the_tests_need() -> None:
    """The traffic has every kind of request, and batches as well as points outside of them."""
    kinds = {type(request) for path in CAPTURES for request in requests_of(path.read_bytes())}
    assert kinds == {
        InfoRequest,
        InitRequest,
        KeepaliveRequest,
        SnapshotRequest,
        RestoreRequest,
        BeginBatch,
        Point,
        EndBatch,
    }
