"""The bounds of a session with a UDF."""

from __future__ import annotations

import pytest
from kapudf_handlers.mirror import Mirror

from kapudf_cli.client.errors import UdfFaultError
from kapudf_cli.client.session import Session
from kapudf_cli.client.target import HandlerTarget
from kapudf_cli.protocol.udf_pb2 import InitRequest, Point
from tests.serve_process import PATIENCE_S


@pytest.mark.parametrize("limit", [2, 3])
def test_a_udf_that_sends_too_many_messages_fails(limit: int) -> None:
    with HandlerTarget("mirror", Mirror).open(timeout_s=PATIENCE_S) as connection:
        session = Session(connection, timeout_s=PATIENCE_S, limit_messages=limit)
        list(session.start(InitRequest(taskID="task")))
        points = [Point(time=number) for number in range(3)]
        if limit < len(points):
            with pytest.raises(UdfFaultError, match="sent more than 2 messages"):
                list(session.exchange(points, "points"))
        else:
            list(session.exchange(points, "points"))
            assert session.counts.points_received == limit
