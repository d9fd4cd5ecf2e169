"""Frames that cannot be decoded, such as text that is not UTF-8, and `on_error`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.agent.agent import Reason
from kapudf_cli.agent.checkpoints import LastSnapshot
from kapudf_cli.handler.batch_handler import BatchHandler
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import decode_point
from kapudf_cli.protocol.errors import UndecodableMessageError
from kapudf_cli.protocol.framing import encode_varint
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STRING,
    BeginBatch,
    EndBatch,
    ErrorResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Option,
    OptionValue,
    Point,
    SnapshotRequest,
    SnapshotResponse,
)
from tests.counters import Counting
from tests.peers import INIT, INITIALIZED, agent_with, encoded

if TYPE_CHECKING:
    from kapudf_cli.agent.agent import ConnectionSummary
    from kapudf_cli.agent.error_policy import OnError
    from kapudf_cli.handler.batches import Batch
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage
    from kapudf_cli.protocol.raw_points import RawPoint

each_way_on = pytest.mark.parametrize("on_error", ["skip", "restart"])


def latin(message: RequestMessage) -> bytes:
    """Return a frame with a Latin-1 e acute and a letter in place of each `#e`."""
    return encoded([message]).replace(b"#e", b"\xe9e")


class Mirror(Handler):
    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


class RawMirror(Mirror):
    passes_through = True


class RawPatched(Mirror):
    """Returns each raw point."""

    def raw_point(self, raw: RawPoint, /) -> RawPoint:
        return raw


class Whole(BatchHandler):
    def batch(self, batch: Batch, /) -> Batch:
        return batch


class Through(Mirror):
    wants = BATCH
    provides = BATCH


def play(
    handler: type[Handler], on_error: OnError, data: bytes
) -> tuple[list[ResponseMessage], ConnectionSummary]:
    """Play a whole connection; return the responses and the summary."""
    checkpoints = LastSnapshot(3600.0) if on_error == "restart" else None
    with agent_with(handler, on_error=on_error, checkpoints=checkpoints) as served:
        served.side.send_bytes(data)
        served.side.half_close()
        return list(served.side.responses()), served.summary()


BAD_POINTS = {
    "a tag": (Point(tags={"host": "caf#e"}), "point.tags['host'] is not valid UTF-8: b'caf\\xe9e'"),
    "a tag's name": (Point(tags={"h#e": "x"}), "a name in Request.point.tags is not valid UTF-8"),
    "a field's name": (Point(fieldsInt={"#e": 1}), "a name in Request.point.fieldsInt is not"),
    "a string": (Point(fieldsString={"s": "#e"}), "point.fieldsString['s'] is not valid UTF-8"),
    "a measurement": (Point(name="caf#e"), "Request.point.name is not valid UTF-8: b'caf\\xe9e'"),
    "a group": (Point(group="host=#e"), "Request.point.group is not valid UTF-8"),
    "a database": (Point(database="#e"), "Request.point.database is not valid UTF-8"),
    "a policy": (Point(retentionPolicy="#e"), "Request.point.retentionPolicy is not valid UTF-8"),
    "a dimension": (Point(dimensions=["a", "#e"]), "Request.point.dimensions is not valid UTF-8"),
    "a long text": (Point(name=300 * "x" + "#e" + 300 * "y"), "not valid UTF-8: ...b'xxx"),
}


@each_way_on
@pytest.mark.parametrize(("bad", "problem"), BAD_POINTS.values(), ids=BAD_POINTS)
def test_a_point_that_is_not_utf8_is_dropped_and_logged_with_its_offset(
    bad: Point, problem: str, on_error: OnError, caplog: pytest.LogCaptureFixture
) -> None:
    before = encoded([INIT, Point(time=1)])
    responses, summary = play(
        Mirror, on_error, before + latin(bad) + encoded([Point(time=2), SnapshotRequest()])
    )
    assert responses == [INITIALIZED, Point(time=1), Point(time=2), SnapshotResponse()]
    assert (summary.reason, summary.error) == (Reason.CLOSED, None)
    assert (summary.stats.points_in, summary.stats.failures, summary.stats.restarts) == (3, 1, 0)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("point dropped: ")
    assert problem in record.getMessage()
    assert (record.offset, record.on_error) == (len(before), on_error)  # type: ignore[attr-defined]


def test_fail_reports_the_field_the_bytes_and_the_offset() -> None:
    before = encoded([INIT, Point(time=1)])
    responses, summary = play(Mirror, "fail", before + latin(Point(tags={"host": "caf#e"})))
    assert responses[:2] == [INITIALIZED, Point(time=1)]
    assert isinstance(summary.error, UndecodableMessageError)
    assert summary.reason is Reason.PROTOCOL_ERROR
    (error,) = responses[2:]
    assert isinstance(error, ErrorResponse)
    assert error.error.endswith(
        "Request.point.tags['host'] is not valid UTF-8: b'caf\\xe9e'; with on_error skip or "
        f"restart, such data is dropped (in the frame at byte {len(before)})"
    )


BATCHES: list[RequestMessage] = [
    BeginBatch(name="cpu", group="host=#e", tags={"host": "#e"}, size=1),
    Point(time=1),
    EndBatch(name="cpu", group="host=#e"),
]
GOOD_BATCH: list[RequestMessage] = [
    BeginBatch(name="mem", size=1),
    Point(time=9),
    EndBatch(name="mem", tmax=9),
]


@each_way_on
@pytest.mark.parametrize("handler", [Whole, Through])
def test_a_batch_whose_begin_is_dropped_is_dropped_whole(
    handler: type[Handler], on_error: OnError
) -> None:
    bad = b"".join(map(latin, [*BATCHES, *BATCHES]))
    keepalive = encoded([KeepaliveRequest(time=7)])
    responses, summary = play(
        handler, on_error, encoded([INIT]) + bad + keepalive + encoded(GOOD_BATCH)
    )
    assert responses == [INITIALIZED, KeepaliveResponse(time=7), *GOOD_BATCH]
    assert (summary.stats.batches_in, summary.stats.points_in) == (3, 3)
    assert summary.stats.batches_out == 1


@each_way_on
def test_a_bad_point_in_a_skipped_batch_changes_nothing(on_error: OnError) -> None:
    begin, _, end = BATCHES
    bad = b"".join(map(latin, [begin, Point(name="#e"), Point(time=1), end]))
    responses, _ = play(Through, on_error, encoded([INIT]) + bad + encoded(GOOD_BATCH))
    assert responses == [INITIALIZED, *GOOD_BATCH]


@each_way_on
def test_a_bad_point_in_a_batch_drops_only_the_point(on_error: OnError) -> None:
    begin, point, end = GOOD_BATCH
    data = encoded([INIT, begin]) + latin(Point(tags={"h": "#e"})) + encoded([point, end])
    assert play(Whole, on_error, data)[0] == [INITIALIZED, *GOOD_BATCH]


@each_way_on
def test_a_batch_whose_end_is_bad_is_dropped(on_error: OnError) -> None:
    begin, point, _ = GOOD_BATCH
    data = encoded([INIT, begin, point]) + latin(EndBatch(name="#e")) + encoded(GOOD_BATCH)
    assert play(Whole, on_error, data)[0] == [INITIALIZED, *GOOD_BATCH]


GARBAGE = {
    "a length that is too long": b"\x8a\x01\x40\x08",
    "a wire type that no field has": b"\x8a\x01\x01\x0f",
    "no message": b"",
    "a message that is not known": b"\xfa\x01\x02\x08\x05",
    "text of another protocol": b"GET / HTTP/1.1\r\n",
}


@each_way_on
@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_a_whole_frame_of_garbage_is_dropped(body: bytes, on_error: OnError) -> None:
    garbage = encode_varint(len(body)) + body
    points = [Point(time=time, name=time * "n") for time in range(1, 4)]
    data = encoded([INIT, *points]) + garbage + encoded(points)
    responses, summary = play(Mirror, on_error, data)
    assert responses == [INITIALIZED, *points, *points]
    assert summary.stats.failures == 1


@each_way_on
def test_garbage_before_a_task_ends_the_connection(on_error: OnError) -> None:
    data = b"\x10GET / HTTP/1.1\r\n"
    _, summary = play(Mirror, on_error, data)
    assert summary.reason is Reason.PROTOCOL_ERROR


@pytest.mark.parametrize("on_error", ["fail", "skip", "restart"])
@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (InitRequest(taskID="t#e"), "Request.init.taskID"),
        (InitRequest(nodeID="n#e"), "Request.init.nodeID"),
        (InitRequest(options=[Option(name="#e")]), "Request.init.options.name"),
        (
            InitRequest(options=[Option(values=[OptionValue(type=STRING, stringValue="#e")])]),
            "Request.init.options.values.stringValue",
        ),
    ],
)
def test_an_init_that_is_not_utf8_is_refused(
    request_: InitRequest, field: str, on_error: OnError
) -> None:
    responses, summary = play(Mirror, on_error, latin(request_))
    (response,) = responses
    assert isinstance(response, InitResponse)
    assert not response.success
    assert f"{field} is not valid UTF-8" in response.error
    assert summary.refusal is not None


def test_a_restart_ignores_dropped_frames() -> None:

    class Counts(Counting):
        def point(self, point: Point, /) -> None:
            if point.name == "raise":
                raise ValueError(point.name)
            self.count += 1
            self.agent.write_point(Point(time=self.count))

    bad = latin(Point(name="#e"))
    data = encoded([INIT, Point()]) + bad + encoded([Point(), Point(name="raise"), Point()])
    responses, summary = play(Counts, "restart", data)
    assert responses[:3] == [INITIALIZED, Point(time=1), Point(time=2)]
    assert (summary.stats.failures, summary.stats.restarts) == (2, 1)


@pytest.mark.parametrize("handler", [RawMirror, RawPatched])
@pytest.mark.parametrize("on_error", ["fail", "skip", "restart"])
def test_a_handler_that_forwards_bytes_passes_them_on(
    handler: type[Handler], on_error: OnError
) -> None:
    bad = latin(Point(tags={"host": "caf#e"}))
    checkpoints = LastSnapshot(3600.0) if on_error == "restart" else None
    with agent_with(handler, on_error=on_error, checkpoints=checkpoints) as served:
        served.side.send_bytes(encoded([INIT]) + bad + bad)
        served.side.half_close()
        expected = encode_varint(4) + b"\x12\x02\x08\x01" + bad + bad
        received = b""
        while data := served.connection.recv(4096):
            received += data
        assert received == expected
        summary = served.summary()
    assert (summary.stats.points_out, summary.stats.failures) == (2, 0)


@each_way_on
def test_a_raw_point_that_its_handler_decodes_is_dropped(on_error: OnError) -> None:
    class Decodes(Mirror):
        def raw_point(self, raw: RawPoint, /) -> None:
            self.point(decode_point(raw))

    data = encoded([INIT]) + latin(Point(name="#e")) + encoded([Point(time=1)])
    responses, summary = play(Decodes, on_error, data)
    assert responses == [INITIALIZED, Point(time=1)]
    assert summary.stats.failures == 1
