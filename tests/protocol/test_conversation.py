"""The order of messages in both directions, as a table."""

from __future__ import annotations

import pytest

from kapudf_cli.protocol.errors import InvalidWriteError, UnexpectedMessageError
from kapudf_cli.protocol.order import (
    MAX_BATCH_SIZE,
    Incoming,
    IncomingOrder,
    OutgoingOrder,
)
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    BeginBatch,
    EdgeType,
    EndBatch,
    InfoRequest,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
    Point,
    Request,
    RestoreRequest,
    SnapshotRequest,
)

BEFORE_INIT, READY, IN_BATCH = Incoming.BEFORE_INIT, Incoming.READY, Incoming.IN_BATCH

#: The state after each message, for each state; None if it is not allowed.
TABLE: dict[type, dict[Incoming, Incoming | None]] = {
    InfoRequest: {BEFORE_INIT: BEFORE_INIT, READY: READY, IN_BATCH: IN_BATCH},
    InitRequest: {BEFORE_INIT: READY, READY: None, IN_BATCH: None},
    KeepaliveRequest: {BEFORE_INIT: BEFORE_INIT, READY: READY, IN_BATCH: IN_BATCH},
    SnapshotRequest: {BEFORE_INIT: None, READY: READY, IN_BATCH: IN_BATCH},
    RestoreRequest: {BEFORE_INIT: None, READY: READY, IN_BATCH: IN_BATCH},
    BeginBatch: {BEFORE_INIT: None, READY: IN_BATCH, IN_BATCH: None},
    Point: {BEFORE_INIT: None, READY: READY, IN_BATCH: IN_BATCH},
    EndBatch: {BEFORE_INIT: None, READY: None, IN_BATCH: READY},
    # Messages that only a UDF sends.
    InitResponse: {BEFORE_INIT: None, READY: None, IN_BATCH: None},
    KeepaliveResponse: {BEFORE_INIT: None, READY: None, IN_BATCH: None},
}


@pytest.mark.parametrize("state", Incoming)
@pytest.mark.parametrize("message", TABLE)
def test_each_message_leads_to_a_state_or_raises(message: type, state: Incoming) -> None:
    order = IncomingOrder()
    order.state = state
    following = TABLE[message][state]
    if following is not None:
        order.receive(message)
        assert order.state is following
        return
    with pytest.raises(UnexpectedMessageError, match=f"{message.__name__} .* {state.value}$"):
        order.receive(message)
    assert order.state is state


def test_the_table_of_these_tests_is_complete() -> None:
    requests = Request.DESCRIPTOR.oneofs_by_name["message"].fields
    names = {field.message_type.name for field in requests if field.message_type}
    assert names <= {message.__name__ for message in TABLE}


def test_a_conversation_starts_before_init() -> None:
    assert IncomingOrder().state is BEFORE_INIT


def outgoing(provides: EdgeType, *, in_batch: bool = False) -> OutgoingOrder:
    order = OutgoingOrder()
    order.declare(provides)
    order.in_batch = in_batch
    return order


def test_points_make_a_stream() -> None:
    order = OutgoingOrder()
    assert order.provides == STREAM
    order.point()
    order.point()
    assert not order.in_batch


@pytest.mark.parametrize("size", [0, 1, MAX_BATCH_SIZE])
def test_a_batch_is_a_begin_points_and_an_end(size: int) -> None:
    order = outgoing(BATCH)
    for _ in range(2):
        order.begin_batch(BeginBatch(size=size))
        assert order.in_batch
        order.point()
        order.point()
        order.end_batch()
        assert not order.in_batch
    order.begin_batch(BeginBatch(size=size))
    order.end_batch()


@pytest.mark.parametrize("size", [-1, -(1 << 63), MAX_BATCH_SIZE + 1, 1 << 60, (1 << 63) - 1])
def test_a_batch_of_a_size_that_kills_kapacitor_is_refused(size: int) -> None:
    order = outgoing(BATCH)
    with pytest.raises(InvalidWriteError, match=f"of size {size};"):
        order.begin_batch(BeginBatch(size=size))
    assert not order.in_batch


def test_an_end_without_a_begin_is_refused() -> None:
    order = outgoing(BATCH)
    for provides in (BATCH, STREAM):
        with pytest.raises(InvalidWriteError, match="without a BeginBatch"):
            outgoing(provides).end_batch()
    order.begin_batch(BeginBatch())
    order.end_batch()
    with pytest.raises(InvalidWriteError, match="without a BeginBatch"):
        order.end_batch()


def test_a_begin_inside_a_batch_is_refused() -> None:
    order = outgoing(BATCH, in_batch=True)
    with pytest.raises(InvalidWriteError, match="inside a batch"):
        order.begin_batch(BeginBatch())
    assert order.in_batch
    order.end_batch()


def test_a_batch_on_a_stream_edge_is_refused() -> None:
    order = outgoing(STREAM)
    with pytest.raises(InvalidWriteError, match="declare that it provides BATCH"):
        order.begin_batch(BeginBatch())
    assert not order.in_batch


def test_a_bare_point_on_a_batch_edge_is_refused() -> None:
    order = outgoing(BATCH)
    with pytest.raises(InvalidWriteError, match="outside a batch"):
        order.point()
    order.begin_batch(BeginBatch())
    order.end_batch()
    with pytest.raises(InvalidWriteError, match="outside a batch"):
        order.point()


def test_write_checks_messages_of_each_class() -> None:
    order = outgoing(BATCH)
    order.write(BeginBatch())
    order.write(Point())
    with pytest.raises(InvalidWriteError, match="inside a batch"):
        order.write(BeginBatch())
    order.write(EndBatch())
    assert not order.in_batch
    with pytest.raises(InvalidWriteError, match="outside a batch"):
        order.write(Point())
    with pytest.raises(InvalidWriteError, match="without a BeginBatch"):
        order.write(EndBatch())
