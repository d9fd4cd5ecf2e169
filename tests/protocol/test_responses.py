"""The check of a UDF's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kapudf_cli.protocol.codec import RESPONSES
from kapudf_cli.protocol.errors import ProtocolError, ResponseFaultError
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.order import ResponseOrder, fault_of
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EdgeType,
    EndBatch,
    ErrorResponse,
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

if TYPE_CHECKING:
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

ANSWERED: list[tuple[RequestMessage, ResponseMessage]] = [
    (InfoRequest(), InfoResponse()),
    (InitRequest(), InitResponse()),
    (SnapshotRequest(), SnapshotResponse()),
    (RestoreRequest(), RestoreResponse()),
]


@pytest.mark.parametrize(("request_", "answer"), ANSWERED)
def test_a_request_has_one_answer(request_: RequestMessage, answer: ResponseMessage) -> None:
    order = ResponseOrder()
    order.send(request_)
    order.receive(answer)
    with pytest.raises(ResponseFaultError, match=f"{type(answer).__name__} that was not requested"):
        order.receive(answer)


def test_answers_may_come_late_and_between_data() -> None:
    order = ResponseOrder(STREAM)
    for request in (SnapshotRequest(), SnapshotRequest(), KeepaliveRequest()):
        order.send(request)
    for response in (
        Point(), SnapshotResponse(), KeepaliveResponse(), KeepaliveResponse(),
        SnapshotResponse(), ErrorResponse(),
    ):  # fmt: skip
        order.receive(response)
    order.finish()


def test_batches_follow_each_other() -> None:
    order = ResponseOrder(BATCH)
    for _ in range(2):
        order.receive(BeginBatch(size=0))
        order.receive(Point())
        order.receive(EndBatch())
    order.finish()


@pytest.mark.parametrize(
    ("provides", "responses", "told"),
    [
        (BATCH, [EndBatch()], "an EndBatch without a BeginBatch before it; kapacitord would crash"),
        (BATCH, [BeginBatch(size=-1)], "a BeginBatch of size -1, .*; kapacitord would crash"),
        (BATCH, [BeginBatch(size=1 << 60)], "size 1152921504606846976, .* would crash"),
        (BATCH, [BeginBatch(), BeginBatch()], "a BeginBatch inside a batch; .* drop the points"),
        (STREAM, [BeginBatch()], "a BeginBatch, and provides a stream"),
        (BATCH, [Point()], "a Point outside a batch, and provides batches"),
        (None, [EndBatch()], "an EndBatch without a BeginBatch"),
    ],
)
def test_faults_for_kapacitor_are_reported(
    provides: EdgeType | None, responses: list[ResponseMessage], told: str
) -> None:
    order = ResponseOrder(provides)
    for response in responses[:-1]:
        order.receive(response)
    with pytest.raises(ResponseFaultError, match=told):
        order.receive(responses[-1])


def test_a_batch_that_is_never_ended_is_reported() -> None:
    order = ResponseOrder(BATCH)
    order.receive(BeginBatch())
    with pytest.raises(ResponseFaultError, match="ended inside a batch"):
        order.finish()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x00", "a Response in which no message is set; kapacitord would crash"),
        (b"\x02\xff\xff", "bytes that are not frames: .*; the task would fail with a read error"),
        (b"\xff" * 5, "not frames: .*; kapacitord allocates"),
    ],
)
def test_invalid_bytes_are_reported(data: bytes, told: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        list(FrameReader(RESPONSES.decode_in).feed(data))
    fault = fault_of(caught.value)
    assert fault.__cause__ is caught.value
    with pytest.raises(ResponseFaultError, match=told):
        raise fault
