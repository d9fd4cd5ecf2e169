"""Tests of handlers without Kapacitor: a pytest plugin that is there once kapudf is installed.

    def test_it_averages(udf: StartTask) -> None:
        task = udf(MovingAverage, MovingAverageOptions(field="value", size=2))
        out = task.send(*lines("m value=1.0 10", "m value=3.0 20"))
        assert [get_field(point, "avg") for point in out.points] == [1.0, 2.0]

The handler runs in this process, with the same agent as in production, over a real socket. So
its output passes the same checks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import pytest

from kapudf_cli import plugins
from kapudf_cli.client.errors import UdfFaultError
from kapudf_cli.client.session import Session
from kapudf_cli.client.target import Connection, served
from kapudf_cli.errors import KapudfError
from kapudf_cli.handler import definition
from kapudf_cli.handler.batches import Batch, batch_messages
from kapudf_cli.handler.options import Options, calls_of
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotRequest,
    SnapshotResponse,
)
from kapudf_cli.tools.recordings.line_protocol import parse
from kapudf_cli.tools.recordings.notation import Grouping

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from kapudf_cli.client.driver import KapacitorSide
    from kapudf_cli.handler.handler import Handler
    from kapudf_cli.protocol.codec import DataMessage, RequestMessage

A = TypeVar("A", InfoResponse, InitResponse, SnapshotResponse, RestoreResponse)
R = TypeVar("R")

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
    """A task that calls one UDF, with the test in Kapacitor's place.

    Each method returns once the handler has handled what it was given.
    """

    def __init__(self, side: KapacitorSide) -> None:
        """Use a connection; tests call the fixture `udf` or `Task.of` instead."""
        connection = Connection(side, os.getpid(), lambda _: None, drains=True)
        self._session = Session(connection, timeout_s=_TIMEOUT_S)
        self._open_batch: Batch | None = None
        # Data that came before the answer to another request, for the next output.
        self._early = Output()
        self._failure: TaskFailedError | None = None

    @classmethod
    @contextlib.contextmanager
    def of(cls, handler: type[Handler], *, partitions: int = 1) -> Iterator[Self]:
        """Connect to a handler of this class, outside of a pytest test.

        Args:
            handler: the class.
            partitions: how many instances of it share the groups, as with the setting.

        Raises:
            TypeError: `kapudf serve` would refuse the class.
            WorkerSetupError: its `setup_worker` raised. It is called once in each process.
        """
        definition.check(handler)
        if partitions > 1:
            definition.check_partitions(handler)
        plugins.set_up(handler)
        with served(handler, timeout_s=_TIMEOUT_S, partitions=partitions) as one:
            yield cls(one.side)

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
        """Send points or batches; return the handler's output for them.

        Raises:
            TaskFailedError: the handler raised.
        """
        messages = itertools.chain.from_iterable(map(_messages, data))
        output = self._take_early()
        self._run(self._session.exchange(messages), output)
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
        """End the task as a replay ends; return what the handler writes at its end."""
        output = self._take_early()
        self._run(self._session.finish(), output)
        self._failure = TaskFailedError("the task is finished")
        return output

    def _ask(self, request: RequestMessage, answer: type[A]) -> A:
        """Send a request and return its answer; keep data that comes before it."""
        return self._run(self._session.ask(request, answer, type(request).__name__), self._early)

    def _take_early(self) -> Output:
        early, self._early = self._early, Output()
        return early

    def _run(self, waiting: Generator[DataMessage, None, R], output: Output) -> R:
        """Run an exchange to its end, and add what comes to an output.

        A task that has failed stays failed.
        """
        if self._failure is not None:
            raise self._failure
        try:
            while True:
                self._take(next(waiting), output)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        except UdfFaultError as error:
            text = str(error) if error.reported is None else error.reported
            self._failure = TaskFailedError(text)
            raise self._failure from error

    def _take(self, message: DataMessage, output: Output) -> None:
        match message:
            case Point() if self._open_batch is not None:
                self._open_batch.points.append(message)
            case Point():
                output.points.append(message)
            case BeginBatch():
                self._open_batch = Batch(by_name=message.byName)
            case EndBatch() if self._open_batch is not None:
                batch, self._open_batch = self._open_batch, None
                # As in Kapacitor, the values of the end replace those of the begin.
                batch.name, batch.group = message.name, message.group
                batch.tags, batch.tmax_ns = dict(message.tags), message.tmax
                output.batches.append(batch)


class StartTask(Protocol):
    """The type of the fixture `udf`."""

    def __call__(
        self, handler: type[Handler], options: Options | None = None, *, partitions: int = 1
    ) -> Task:
        """Start a task that calls this handler with these options; return it after Init.

        Args:
            handler: the class of the handler.
            options: its options.
            partitions: how many instances of it share the groups, as with the setting.

        Raises:
            TaskFailedError: the handler refused, or raised.
            TypeError: `kapudf serve` would refuse the class.
        """


@pytest.fixture
def udf() -> Iterator[StartTask]:
    """Start tasks: `udf(Handler, options)` returns a Task that is past Init."""
    with contextlib.ExitStack() as tasks:

        def start(
            handler: type[Handler], options: Options | None = None, *, partitions: int = 1
        ) -> Task:
            task = tasks.enter_context(Task.of(handler, partitions=partitions))
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
