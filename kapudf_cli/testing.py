"""Tests of handlers without Kapacitor: a pytest plugin that is there once kapudf is installed.

    def test_it_averages(udf):
        task = udf(MovingAverage, MovingAverageOptions(field="value", size=2))
        out = task.send(*lines("m value=1.0 10", "m value=3.0 20"))
        assert [get_field(point, "avg") for point in out.points] == [1.0, 2.0]

The handler runs in this process, driven by the very agent that serves it, over a
real socket: what passes here passes the same checks as in production.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar

import pytest

from kapudf_cli.client.in_process import served
from kapudf_cli.errors import KapudfError
from kapudf_cli.handler.batches import Batch, batch_messages
from kapudf_cli.handler.options import Options, calls_of
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
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
from kapudf_cli.tools.recordings.grouping import Grouping
from kapudf_cli.tools.recordings.line_parser import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kapudf_cli.client.driver import KapacitorSide
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.protocol.codec import RequestMessage, ResponseMessage

A = TypeVar("A", InfoResponse, InitResponse, SnapshotResponse, RestoreResponse)

#: A handler that takes longer in a test hangs.
_TIMEOUT_S = 30.0


class TaskFailedError(KapudfError):
    """The task failed: the text is what Kapacitor would show for it."""


@dataclass
class Output:
    """What a handler sent.

    Attributes:
        points: the points outside batches, in order.
        batches: the batches, in order.
    """

    points: list[Point] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)


class Task:
    """A task that calls one UDF, played by the test in Kapacitor's place.

    Each method returns once the handler has dealt with what it was given.
    """

    def __init__(self, side: KapacitorSide) -> None:
        """Play Kapacitor on a connection; use the fixture `udf` or `Task.of`."""
        self._side = side
        self._marks = itertools.count(1)
        self._begun: Batch | None = None
        # Data that came before an answer to something else, for the next who asks.
        self._early = Output()
        self._failure: TaskFailedError | None = None

    @classmethod
    @contextlib.contextmanager
    def of(cls, handler: type[Handler]) -> Iterator[Self]:
        """Connect to a handler of this class, outside of a pytest test.

        Raises:
            TypeError: `kapudf serve` would refuse the class.
        """
        handler.check_definition()
        with served(handler, timeout_s=_TIMEOUT_S) as side:
            yield cls(side)

    def info(self) -> InfoResponse:
        """Ask what the handler declares."""
        return self._ask(InfoRequest(), InfoResponse)

    def init(self, options: Options | None = None) -> None:
        """Start the task with options.

        Raises:
            TaskFailedError: the handler refused, or raised.
        """
        calls = [] if options is None else calls_of(options)
        self.init_raw(InitRequest(taskID="test", nodeID="udf1", options=calls))

    def init_raw(self, request: InitRequest) -> None:
        """Start the task with an InitRequest as it is; raises as `init` does."""
        response = self._ask(request, InitResponse)
        if not response.success:
            self._failure = TaskFailedError(response.error)
            raise self._failure

    def send(self, *data: Point | Batch) -> Output:
        """Send points or batches; return what comes of them.

        Raises:
            TaskFailedError: the handler raised.
        """
        mark = KeepaliveRequest(time=next(self._marks))
        messages = itertools.chain.from_iterable(map(_messages, data))
        output = self._take_early()
        with self._talking(), self._side.sending([*messages, mark]):
            while (response := self._receive()) != KeepaliveResponse(time=mark.time):
                self._take(response, output)
        return output

    def snapshot(self) -> bytes:
        """Ask for a snapshot and return it."""
        return self._ask(SnapshotRequest(), SnapshotResponse).snapshot

    def restore(self, snapshot: bytes) -> None:
        """Give a snapshot back, as Kapacitor does right after Init.

        Raises:
            TaskFailedError: the handler refused, or raised.
        """
        response = self._ask(RestoreRequest(snapshot=snapshot), RestoreResponse)
        if not response.success:
            self._failure = TaskFailedError(response.error)
            raise self._failure

    def finish(self) -> Output:
        """End the task as a replay ends; return what the handler flushes."""
        output = self._take_early()
        with self._talking():
            self._side.half_close()
            for response in self._side.responses():
                self._take(response, output)
        self._failure = TaskFailedError("the task is finished")
        return output

    def _ask(self, request: RequestMessage, answer: type[A]) -> A:
        """Send a request and return its answer; data that comes before it is kept."""
        with self._talking():
            self._side.send(request)
            while not isinstance(response := self._receive(), answer):
                self._take(response, self._early)
        return response

    def _take_early(self) -> Output:
        early, self._early = self._early, Output()
        return early

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """Give the exchange inside its time; a task that has failed stays failed."""
        if self._failure is not None:
            raise self._failure
        self._side.extend(_TIMEOUT_S)
        try:
            yield
        except TaskFailedError as failure:
            self._failure = failure
            raise
        except (BrokenPipeError, ConnectionResetError) as error:
            self._failure = TaskFailedError("the handler's connection ended")
            raise self._failure from error

    def _receive(self) -> ResponseMessage:
        response = self._side.receive()
        if response is None:
            raise TaskFailedError("the handler's connection ended")
        if isinstance(response, ErrorResponse):
            raise TaskFailedError(response.error)
        return response

    def _take(self, response: ResponseMessage, output: Output) -> None:
        match response:
            case Point() if self._begun is not None:
                self._begun.points.append(response)
            case Point():
                output.points.append(response)
            case BeginBatch():
                self._begun = Batch(by_name=response.byName)
            case EndBatch() if self._begun is not None:
                batch, self._begun = self._begun, None
                # As Kapacitor does: of begin and end, the end's word counts.
                batch.name, batch.group = response.name, response.group
                batch.tags, batch.tmax_ns = dict(response.tags), response.tmax
                output.batches.append(batch)
            case ErrorResponse():
                raise TaskFailedError(response.error)


@pytest.fixture
def udf() -> Iterator[Callable[..., Task]]:
    """Start tasks: `udf(Handler, options)` gives a Task that is past Init."""
    with contextlib.ExitStack() as tasks:

        def start(handler: type[Handler], options: Options | None = None) -> Task:
            task = tasks.enter_context(Task.of(handler))
            task.init(options)
            return task

        yield start


def lines(
    *texts: str, database: str = "telegraf", retention_policy: str = "autogen"
) -> list[Point]:
    """Return points from line protocol, a line each: `cpu,host=a usage=0.5,up=true 1000`.

    Times are in nanoseconds, 0 where a line has none. Several lines may stand in
    one text.

    Raises:
        ValueError: a line is no line protocol.
    """
    # Only a line feed ends a line; a string field may hold what splitlines() splits at.
    found = (line.strip() for text in texts for line in text.split("\n"))
    points = [parse(line) for line in found if line and not line.startswith("#")]
    for point in points:
        point.database, point.retentionPolicy = database, retention_policy
    return points


def grouped(points: Sequence[Point], *tags: str) -> list[Point]:
    """Return points as Kapacitor sends them after `.groupBy(tags)`; they are changed."""
    grouping = Grouping(tags)
    for point in points:
        grouping.apply(point)
    return list(points)


def _messages(data: Point | Batch) -> Iterator[RequestMessage]:
    if isinstance(data, Point):
        yield data
    else:
        yield from batch_messages(data)
