"""A handler served inside this process."""

from __future__ import annotations

import threading

import pytest

from kapudf_cli.client.errors import ProbeError
from kapudf_cli.client.target import describe, served
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    DOUBLE,
    STREAM,
    STRING,
    InfoResponse,
    InitRequest,
    InitResponse,
    OptionInfo,
    Point,
)
from tests.serve_process import PATIENCE_S


class Described(Handler):
    """Declares edges and an option."""

    wants = BATCH
    provides = STREAM

    def info(self) -> InfoResponse:
        info = super().info()
        info.options["field"].CopyFrom(OptionInfo(valueTypes=[STRING, DOUBLE]))
        return info

    def point(self, point: Point, /) -> None:
        self.agent.write_point(point)


def test_a_handler_in_this_process_is_spoken_to_as_kapacitor_speaks() -> None:
    with served(Described, timeout_s=PATIENCE_S) as one:
        side = one.side
        side.send(InitRequest(taskID="t"))
        side.send(Point(time=1))
        side.half_close()
        assert list(side.responses()) == [InitResponse(success=True), Point(time=1)]


class Leaves(Handler):
    """Records when it was stopped."""

    stopped: threading.Event

    def point(self, point: Point, /) -> None:
        raise NotImplementedError

    def teardown(self) -> None:
        self.stopped.set()


def test_a_handler_in_this_process_is_stopped_at_the_end() -> None:
    Leaves.stopped = threading.Event()
    with served(Leaves, timeout_s=PATIENCE_S) as one:
        side = one.side
        side.send(InitRequest())
        assert side.receive() == InitResponse(success=True)
        assert not Leaves.stopped.is_set()
    assert Leaves.stopped.is_set()


def test_a_handler_in_this_process_is_stopped_after_an_error_in_the_block() -> None:
    Leaves.stopped = threading.Event()
    with pytest.raises(LookupError), served(Leaves, timeout_s=PATIENCE_S):
        raise LookupError
    assert Leaves.stopped.wait(PATIENCE_S)


def test_a_handler_says_what_it_is() -> None:
    assert describe(Described) == InfoResponse(
        wants=BATCH,
        provides=STREAM,
        options={"field": OptionInfo(valueTypes=[STRING, DOUBLE])},
    )


class NoInfo(Described):
    """Raises in `info`."""

    def info(self) -> InfoResponse:
        raise ValueError("no idea")


class NoHandler(Described):
    """Raises in its constructor."""

    def __init__(self, agent: object) -> None:
        del agent
        raise ValueError("no idea")


@pytest.mark.parametrize(
    ("handler", "method"), [(NoInfo, "info"), (NoHandler, "__init__")], ids=["info", "init"]
)
def test_a_handler_that_fails_to_say_what_it_is_is_named(
    handler: type[Handler], method: str
) -> None:
    with pytest.raises(
        ProbeError, match=f"error: {handler.__name__}.{method} raised ValueError: no idea$"
    ):
        describe(handler)


def test_a_handler_that_takes_for_ever_to_say_what_it_is_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kapudf_cli.client.target._DESCRIBE_TIMEOUT_S", 0.1)
    let_go, stopped = threading.Event(), threading.Event()

    class Stuck(Described):
        def info(self) -> InfoResponse:
            assert let_go.wait(PATIENCE_S)
            return super().info()

        def teardown(self) -> None:
            stopped.set()

    with pytest.raises(TimeoutError):
        describe(Stuck)
    let_go.set()
    assert stopped.wait(PATIENCE_S)
