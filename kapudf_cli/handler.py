"""The handler: the user's code, called with each message that Kapacitor sends.

    from kapudf_cli import Handler, Point

    class Double(Handler):
        '''Doubles the field `value`.'''

        def point(self, point: Point) -> None:
            point.fieldsDouble["value"] *= 2
            self.agent.write_point(point)

Each connection, which is each node of each task, has a handler of its own. Its
methods are never called concurrently, and none is called after `stop`. Whatever
a method raises is logged, told to Kapacitor, and ends that connection only.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, ClassVar, Protocol

from kapudf_cli.wire.udf_pb2 import (
    BATCH,
    STREAM,
    InfoResponse,
    InitResponse,
    RestoreResponse,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from kapudf_cli.wire.udf_pb2 import (
        BeginBatch,
        EdgeType,
        EndBatch,
        InitRequest,
        Point,
        RestoreRequest,
    )


class Writer(Protocol):
    """What a handler sees of its agent: points and batches go out through it.

    Every method may be called at any time and from any thread. What is written
    leaves in the order of the calls. It is held back until Kapacitor can take
    it: a Kapacitor that waits for the answer to Init or Restore reads no data,
    and would wait for ever.

    Each raises InvalidWriteError for what would break Kapacitor, and
    ConnectionClosedError once the connection has ended. A message may be changed
    and written again after the call: its bytes were taken.
    """

    def write_point(self, point: Point, /) -> None:
        """Send a point, inside a batch where one has been begun."""

    def write_begin_batch(self, begin: BeginBatch, /) -> None:
        """Begin a batch; `size` is a hint of how many points come, 0 if unknown."""

    def write_end_batch(self, end: EndBatch, /) -> None:
        """End the batch that was begun."""


class Handler(abc.ABC):
    """A user-defined function. Subclass it; `point` is all that must be written.

    Attributes:
        wants: the edge it reads, STREAM or BATCH.
        provides: the edge it writes, STREAM or BATCH.
        agent: where points and batches are written to.
    """

    wants: ClassVar[EdgeType] = STREAM
    provides: ClassVar[EdgeType] = STREAM

    def __init__(self, agent: Writer) -> None:
        """Keep the agent. What costs time or memory belongs into `init`.

        Kapacitor opens a connection at its start just to ask for `info`, and a
        handler is made for that one too.
        """
        self.agent = agent

    def info(self) -> InfoResponse:
        """Return the edges, and the options that a TICKscript may call.

        Override it to declare options. It must return the same at any time: it
        is also asked before `init`.
        """
        return InfoResponse(wants=self.wants, provides=self.provides)

    def init(self, request: InitRequest, /) -> InitResponse:
        """Take the options of the TICKscript. `success=False` fails the task."""
        del request
        return InitResponse(success=True)

    def snapshot(self) -> SnapshotResponse:
        """Return the state, as bytes that `restore` understands. Empty by default."""
        return SnapshotResponse()

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        """Take back the state of an earlier `snapshot`. `success=False` fails the task."""
        del request
        return RestoreResponse(success=True)

    def begin_batch(self, begin: BeginBatch, /) -> None:
        """Take the begin of a batch; passed on by default, from batch to batch."""
        if self.wants == BATCH and self.provides == BATCH:
            self.agent.write_begin_batch(begin)

    @abc.abstractmethod
    def point(self, point: Point, /) -> None:
        """Take a point, of the stream or of the batch that was begun."""

    def end_batch(self, end: EndBatch, /) -> None:
        """Take the end of a batch; passed on by default, from batch to batch."""
        if self.wants == BATCH and self.provides == BATCH:
            self.agent.write_end_batch(end)

    def stop(self) -> None:  # noqa: B027 - most handlers have nothing to flush or release
        """Write what is still to be written and release what is held.

        Called once, as the last method, however the connection ends. After an
        error or a lost connection, what is written here reaches nobody.
        """
