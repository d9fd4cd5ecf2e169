"""Forwarding of raw points, and what cannot be forwarded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kapudf_cli import BATCH, Batch, Handler, Point, RawPoint, decode_point, set_field
from kapudf_cli.handler import InvalidWriteError
from kapudf_cli.protocol.codec import REQUESTS, raw_or_decode_in
from kapudf_cli.protocol.errors import ProtocolError, UndecodableMessageError
from kapudf_cli.protocol.udf_pb2 import KeepaliveRequest
from kapudf_cli.testing import StartTask, Task, TaskFailedError, lines

POINTS = lines("m,h=a x=1.5 10", "m,h=b y=2i 20", 'm s="t" 30', "m z=true 40")


class EveryOther(Handler):
    """Forwards every other point unchanged, and changes the rest."""

    def setup(self) -> None:
        self.count = 0

    def raw_point(self, raw: RawPoint) -> RawPoint | Point:
        self.count += 1
        if self.count % 2:
            return raw
        point = decode_point(raw)
        set_field(point, "marked", value=True)
        return point


class Hoarder(Handler):
    """Forwards a raw point when the next one has come."""

    def setup(self) -> None:
        self.kept: RawPoint | None = None

    def raw_point(self, raw: RawPoint) -> None:
        if self.kept is not None:
            self.agent.forward(self.kept)
        self.kept = raw


class Forger(Hoarder):
    """Forwards bytes that it has created."""

    def raw_point(self, raw: RawPoint) -> None:
        self.agent.forward(RawPoint(bytes(bytearray(raw))))


class BatchForwarder(Handler):
    """Forwards the points of batches."""

    wants = BATCH
    provides = BATCH
    passes_through = True


def test_the_current_point_can_be_forwarded_or_changed(udf: StartTask) -> None:
    out = udf(EveryOther).send(*POINTS)
    marked = ["marked" in point.fieldsBool for point in out.points]
    assert marked == [False, True, False, True]
    assert out.points[0] == POINTS[0]
    assert out.points[2] == POINTS[2]


def test_the_points_of_a_batch_are_forwarded_inside_it(udf: StartTask) -> None:
    batch = Batch(name="m", points=POINTS, tags={"h": "a"}, group="h=a", tmax_ns=99)
    out = udf(BatchForwarder).send(batch, batch)
    assert out.batches == [batch, batch]


@pytest.mark.parametrize("handler", [Hoarder, Forger])
def test_only_the_current_point_can_be_forwarded(udf: StartTask, handler: type[Handler]) -> None:
    with pytest.raises(TaskFailedError, match="bytes that are not the current point"):
        udf(handler).send(*POINTS)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_raw_point_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        found = raw_or_decode_in(data, 0, len(data))
    except ProtocolError:
        return
    if not isinstance(found, bytes):
        assert found == REQUESTS.decode(data)
        return
    try:
        expected = REQUESTS.decode(data)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            decode_point(found)
    else:
        assert decode_point(found) == expected


@pytest.mark.parametrize("size", [0, 1, 100, 119, 120, 121, 16_370, 16_384, 70_000])
def test_a_point_of_any_size_survives(size: int) -> None:
    point = Point(fieldsString={"text": "x" * size})
    frame = REQUESTS.encode(point)
    head = next(place for place, byte in enumerate(frame) if byte <= 0x7F) + 1
    found = raw_or_decode_in(frame, head, len(frame))
    if isinstance(found, bytes):
        assert found == frame
        found = decode_point(found)
    assert found == point


def test_only_points_can_be_decoded_as_points() -> None:
    with pytest.raises(UndecodableMessageError, match="KeepaliveRequest instead of a Point"):
        decode_point(RawPoint(REQUESTS.encode(KeepaliveRequest())))


def test_forwarding_outside_of_raw_point_is_refused() -> None:

    class Wrong(Handler):
        def point(self, point: Point, /) -> None:
            self.agent.forward(RawPoint(REQUESTS.encode(point)))

    with Task.of(Wrong) as task:
        task.init()
        with pytest.raises(TaskFailedError, match=InvalidWriteError.__name__):
            task.send(*POINTS)
