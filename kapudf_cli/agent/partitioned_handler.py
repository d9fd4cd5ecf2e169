"""The handler of a connection whose calls go to its partitions."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

from kapudf_cli.agent.dispatcher import Dispatcher
from kapudf_cli.agent.errors import HandlerError
from kapudf_cli.agent.handler_caller import HandlerCaller
from kapudf_cli.agent.partition import KEEPS_TIME
from kapudf_cli.agent.partition_line import partition_of
from kapudf_cli.agent.partition_messages import Ask, Create, Drain, End, Handle, TakeSnapshot
from kapudf_cli.errors import KapudfError
from kapudf_cli.handler import partitioned_state
from kapudf_cli.handler.definition import keeps_groups
from kapudf_cli.handler.handler import Handler
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import MAX_VARINT, FrameReader
from kapudf_cli.protocol.udf_pb2 import (
    BeginBatch,
    EndBatch,
    InfoRequest,
    InfoResponse,
    InitResponse,
    Point,
    RestoreRequest,
    RestoreResponse,
    SnapshotResponse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from kapudf_cli.agent.outbox import Outbox
    from kapudf_cli.agent.partition_line import PartitionLine
    from kapudf_cli.agent.partition_messages import Failure, Order, Result
    from kapudf_cli.agent.partitions import Partitions
    from kapudf_cli.handler.output import Writer
    from kapudf_cli.protocol.codec import RequestMessage
    from kapudf_cli.protocol.udf_pb2 import InitRequest

    Note = Callable[[int, Result], bool]

A = TypeVar("A", InfoResponse, InitResponse, RestoreResponse)
S = TypeVar("S", InitResponse, RestoreResponse)


class PartitionError(Exception):
    """What a handler raised in a partition: its text is the traceback."""


class PartitionHandlerError(HandlerError):
    """A method of a handler raised in a partition."""

    def __init__(self, handler: str, failure: Failure) -> None:
        KapudfError.__init__(self, failure.text)
        self.handler = handler
        self.method = failure.method
        self.cause = self.__cause__ = PartitionError(f"\n{failure.trace}")


class PartitionedHandler(Handler):
    """Stands for the handler: gives Info, Init, Restore and the end to all partitions.

    Points and batches take another way; see `partitioned_loop`.
    """

    def __init__(self, agent: Writer, handler: type[Handler], partitions: Partitions) -> None:
        """Stand for handlers of a class, one in each of `partitions`."""
        super().__init__(agent)
        self._handler = handler
        self._partitions = partitions
        self._has_groups = keeps_groups(handler)
        self._created: set[int] = set()
        # A snapshot of another program, or of an earlier version without groups, was restored by
        # all partitions as a whole.
        self._may_overlap = False

    def info(self) -> InfoResponse:
        """Ask one of the partitions."""
        return self._ask(InfoResponse, {0: InfoRequest()})[0]

    def init(self, request: InitRequest, /) -> InitResponse:
        """Give Init to all partitions."""
        return _first_refusal(self._ask(InitResponse, dict.fromkeys(self._all, request)))

    def snapshot(self) -> SnapshotResponse:
        """Return the joined snapshots of all partitions."""
        results = self._call(dict.fromkeys(self._all, TakeSnapshot()))
        snapshots = [results[number].outputs[0] for number in self._all]
        if self._has_groups:
            joined = partitioned_state.join(
                snapshots,
                self._partition_of,
                may_overlap=self._may_overlap,
                keeps_times=any(KEEPS_TIME in each.outputs[1:] for each in results.values()),
            )
        else:
            joined = self._handler.join_snapshots(snapshots)
        return SnapshotResponse(snapshot=joined)

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        """Give each partition its share of a snapshot."""
        shares: Any = None
        if self._has_groups:
            shares = partitioned_state.split(
                request.snapshot, self._partitions.count, self._partition_of
            )
        elif self._handler.keeps_state():
            shares = self._handler.split_snapshot(
                request.snapshot, self._partitions.count, self._partition_of
            )
        self._may_overlap = shares is None
        if shares is None:
            shares = [request.snapshot] * self._partitions.count
        requests = {number: RestoreRequest(snapshot=share) for number, share in enumerate(shares)}
        return _first_refusal(self._ask(RestoreResponse, requests))

    def drop(self, partition: int, frame: bytes) -> None:
        """Have a partition accept a frame that its handler does not get."""
        self._call({partition: Handle(frame, replays=True, drops=True)})

    def drain_for(self, limit_s: float, line: PartitionLine) -> None:
        """Call `drain` of partitions, which take at most `limit_s` seconds each.

        Those that have frames in `line` are busy, perhaps for long, and are not waited for.
        """
        self._call(dict.fromkeys(self._created - line.busy, Drain(limit_s)), note=line.note)

    def teardown(self) -> None:
        """Call `teardown` of all partitions, and write what they return."""
        created, self._created = self._created, set()
        self._call(dict.fromkeys(created, End()), write=True)

    def keeps_state(self) -> bool:  # type: ignore[override]  # a class method of its base
        """Return whether the partitions keep state."""
        return self._handler.keeps_state()

    # --- inside ---

    @property
    def _all(self) -> range:
        return range(self._partitions.count)

    def _partition_of(self, group: str) -> int:
        return partition_of(group.encode(), self._partitions.count)

    def _ask(self, expected: type[A], requests: Mapping[int, RequestMessage]) -> list[A]:
        """Return the answers of partitions to requests."""
        missing = requests.keys() - self._created
        self._created |= missing
        self._call(dict.fromkeys(missing, Create()))
        asked = {number: Ask(REQUESTS.encode(each)) for number, each in requests.items()}
        results = self._call(asked)
        answers = []
        for number in requests:
            answer = expected()
            for message in _messages(results[number].outputs):
                if isinstance(message, expected):
                    answer = message
                else:
                    self._write(message)  # `setup` has written it.
            answers.append(answer)
        return answers

    def _call(
        self, orders: Mapping[int, Order], *, write: bool = False, note: Note | None = None
    ) -> dict[int, Result]:
        """Return the results of orders, one for each partition.

        Args:
            orders: the orders.
            write: whether to write the output.
            note: gets results, and returns whether they belong to earlier orders. By default,
                those are discarded.

        Raises:
            PartitionHandlerError: a handler raised.
            ConnectionClosedError: the connection was aborted.
        """
        partitions = self._partitions
        if note is None:
            partitions.forget()
            note = _is_unknown
        for number, order in orders.items():
            partitions.send(number, order)
        results: dict[int, Result] = {}
        while len(results) < len(orders):
            taken = partitions.take()
            results.update(each for each in taken if not note(*each))
            if not taken:
                partitions.wait()
        failure = None
        for _, result in sorted(results.items()):
            if write:
                for message in _messages(result.outputs):
                    self._write(message)
            failure = failure or result.failure
        if failure is not None:
            raise PartitionHandlerError(self._handler.__name__, failure)
        return results

    def _write(self, message: object) -> None:
        match message:
            case Point():
                self.agent.write_point(message)
            case BeginBatch():
                self.agent.write_begin_batch(message)
            case EndBatch():
                self.agent.write_end_batch(message)


def _is_unknown(partition: int, result: Result) -> bool:
    """Return False: a result is not that of an earlier order."""
    del partition, result
    return False


def _messages(frames: Collection[bytes]) -> Iterator[object]:
    reader = FrameReader(RESPONSES.decode_in, MAX_VARINT)
    for frame in frames:
        yield from reader.feed(frame)


def _first_refusal(answers: list[S]) -> S:
    """Return the first answer that is no success, or else the first one."""
    return next((each for each in answers if not each.success), answers[0])


class PartitionedCaller(HandlerCaller):
    """Creates the handler of one connection in its partitions, and calls it."""

    def __init__(
        self, handler: type[Handler], outbox: Outbox, partitions: Partitions, line: PartitionLine
    ) -> None:
        """Have handlers of a class in `partitions`, which handle `line` and write to `outbox`."""
        super().__init__(lambda writer: PartitionedHandler(writer, handler, partitions), outbox)
        self.name = handler.__name__
        self._partitions = partitions
        self._line = line

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Have the partitions in this thread."""
        self._partitions.open(self._write_of_thread)
        try:
            yield
        finally:
            self._partitions.close()

    def choose_form(self) -> None:
        """Do nothing: each partition chooses the form in which it gets points."""

    def blame(self, method: str, error: BaseException) -> Any:
        """Return the error to report; see `HandlerCaller.blame`."""
        if isinstance(error, HandlerError):
            return error
        return super().blame(method, error)

    def drain(self, limit_s: float) -> None:
        """Call `drain` of partitions that are not busy; see `HandlerCaller.drain`."""
        if self._handler is None:
            return
        try:
            cast("PartitionedHandler", self._handler).drain_for(limit_s, self._line)
        except HandlerError as error:
            self._log_drain(error)

    def abort(self) -> None:
        """Do not wait for partitions any longer. From any thread."""
        super().abort()
        self._partitions.abort()

    def end_in_child(self) -> None:
        """In a forked process: partitions belong to its parent."""

    def _write_of_thread(self, frame: bytes) -> None:
        """Write what a thread of a handler has written in a partition."""
        for message in _messages([frame]):
            with self._outbox.changing() as output:
                output.write(cast("Any", message), frame, by_owner=False)
                defers = output.defers
            if not defers:
                self._outbox.flush()


class PartitionedDispatcher(Dispatcher):
    """Answers requests other than points and batches, once the line is empty."""

    def __init__(
        self, line: PartitionLine, caller: PartitionedCaller, outbox: Outbox, **settings: Any
    ) -> None:
        """Answer requests.

        Args:
            line: the input.
            caller: the handler.
            outbox: where answers go.
            settings: see `Dispatcher`.
        """
        super().__init__(caller, outbox, **settings)
        self._line = line

    @property
    def done(self) -> int:
        """Which of the next frames were answered, as bits; see `ConnectionStats.done`."""
        return self._line.done | self._done << self._line.frames

    @property
    def same_done(self) -> int:
        """How many of the frames that come next were all answered, or all not."""
        done = ~self._done if self._done & 1 else self._done
        return (done & -done).bit_length() - 1 if done else sys.maxsize

    def take_done(self, frames: int = 1) -> bool:
        """Return whether the next frames were answered, all or none, and go on after them."""
        is_done = super().take_done()
        self._done >>= frames - 1
        return is_done

    @property
    def allows_checkpoint(self) -> bool:
        """Whether partitions have no frames, or no state and no batch; see `Dispatcher`."""
        return not self._line.parts or (self.stateless and self._line.is_between_batches)

    def _initialize(self, request: InitRequest) -> InitResponse:
        return self.caller.ask(InitResponse, "init", self.caller.handler.init, request)
