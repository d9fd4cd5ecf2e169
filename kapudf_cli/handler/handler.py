"""The handler: the author's code, called for each message from Kapacitor.

    from kapudf_cli import Handler, Options, Point, get_number, set_field

    class ScaleOptions(Options):
        field: str
        factor: float = 2.0

    class Scale(Handler):
        '''Multiplies a field by a factor.'''

        options: ScaleOptions

        def point(self, point: Point) -> Point:
            value = get_number(point, self.options.field)
            if value is not None:
                set_field(point, self.options.field, value * self.options.factor)
            return point

Each connection, that is each node of each task, has its own handler. Its methods are never
called concurrently, and none is called after `teardown`. An exception that a method raises is
logged, sent to Kapacitor, and ends that connection only.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, cast

from kapudf_cli.errors import describe
from kapudf_cli.handler import deprecated, options, state
from kapudf_cli.handler.concurrency import DEFAULT_CONCURRENCY
from kapudf_cli.handler.declared import options_class, state_declaration
from kapudf_cli.handler.errors import OptionsError, StateError
from kapudf_cli.protocol.codec import decode_point
from kapudf_cli.protocol.udf_pb2 import (
    BATCH,
    STREAM,
    EdgeType,
    InfoResponse,
    InitResponse,
    RestoreResponse,
    SnapshotResponse,
)
from kapudf_cli.system import loggers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from kapudf_cli.handler.output import MaybeAsync, RawReturned, Returned, Writer
    from kapudf_cli.handler.patch import PointPatch
    from kapudf_cli.protocol.raw_points import RawPoint
    from kapudf_cli.protocol.udf_pb2 import (
        BeginBatch,
        EndBatch,
        InitRequest,
        Point,
        RestoreRequest,
    )

_log = loggers.get(__name__)

#: What happens with a snapshot that cannot be used: `discard` starts with an empty state and logs
#: the reason, `refuse` refuses Restore, which fails the task.
OnStateMismatch: TypeAlias = Literal["discard", "refuse"]


class Handler:
    """A user-defined function. Subclass it and implement `point`.

    What `point`, `raw_point`, `begin_batch` and `end_batch` return is written: a point, a batch,
    an iterable of these, or None for nothing. Each may have a `yield`: each point is written
    as it is yielded. `self.agent` writes at other times.

    If the class annotates `options` with a subclass of `Options`, the options are declared to
    Kapacitor, checked, and available from `setup` on. If it assigns `state`, the state exists
    from the start, is part of each snapshot, and is restored when the task restarts:
    `state = PerGroup(Last, limit=1000)` or `state = Total()`, for subclasses of `State`. The
    annotations `state: PerGroup[Last]` and `state: Total` declare it too. Each handler has a
    state of its own. If an option sets the limit or the expiry of a `PerGroup`, assign
    `self.state` in `setup`.

    Attributes:
        wants: the edge that the handler reads, STREAM or BATCH.
        provides: the edge that the handler writes, STREAM or BATCH.
        options: the options that the TICKscript sets.
        state: the state.
        serialize: whether the handlers of a process are called one at a time, because what
            they share is not safe for threads. By default, those of different connections are
            called at the same time, each in a thread of its own.
        shared: what `setup_worker` returned, for all connections of the worker.
        on_state_mismatch: what happens with a snapshot of another version, handler or program
            that `migrate` does not convert: "discard" it or "refuse" it.
        concurrency: the most calls of an async `point` or `batch` at once.
        ordered: False to let points overtake those of other groups, for a handler of streams whose
            `point` is async or that has partitions.
        timeout_s: how long each of these calls may take, in seconds; None for any time.
        passes_through: True to send each point on as it came, or a `PointPatch` to send it on
            with the same changes to each. Neither `point` nor `raw_point` is called then. It is
            read once, after `init`: `setup` may set it, and a later change has no effect.
        partition_by: "group" if the handler treats each group by itself, although its state is
            not declared as a `PerGroup`. With `partitions`, instances then share the groups.
        may_drop_all: whether it is right that nothing is written, as by a handler that writes
            only anomalies. Otherwise `check` fails for it, and `replay` warns.
        agent: writes points and batches.
    """

    passes_through: bool | PointPatch = False
    wants: ClassVar[EdgeType] = STREAM
    provides: ClassVar[EdgeType] = STREAM
    serialize: ClassVar[bool] = False
    on_state_mismatch: ClassVar[OnStateMismatch] = "discard"
    concurrency: ClassVar[int] = DEFAULT_CONCURRENCY
    ordered: ClassVar[bool] = True
    timeout_s: ClassVar[float | None] = None
    partition_by: ClassVar[Literal["group"] | None] = None
    may_drop_all: ClassVar[bool] = False
    shared: Any = None

    if TYPE_CHECKING:  # at run time, only annotations of subclasses declare something
        # Not `state`: type checkers take its type from the subclass.
        options: Any

    def __init__(self, agent: Writer) -> None:
        """Keep the agent. Do expensive work in `setup`.

        Kapacitor opens a connection at its start just to ask for `info`, and a handler is
        created for that connection too.
        """
        self.agent = agent
        declaration = state_declaration(type(self))
        if declaration is not None:
            _stateful(self).state = declaration.fresh()

    @classmethod
    def setup_worker(cls) -> Any:
        """Prepare what all connections of a worker share, such as a model.

        Called once in each worker process, after the import and before any connection. What it
        returns, unless None, is the class attribute `shared`. If it raises, the worker does not
        start.
        """

    def setup(self) -> Coroutine[Any, Any, None] | None:
        """Prepare for data. The options are known, and no data has come yet.

        It may be async if `point` or `batch` is.

        Raise OptionsError to fail the task with a message for the author of its TICKscript.
        """

    def info(self) -> InfoResponse:
        """Return the edges, and the options that a TICKscript may set.

        It must always return the same; it is also called before `init`.
        """
        declaration = options_class(type(self))
        return InfoResponse(
            wants=self.wants,
            provides=self.provides,
            options=None if declaration is None else options.declare(declaration),
        )

    def init(self, request: InitRequest, /) -> InitResponse:
        """Handle Init, with the options of the TICKscript. `success=False` fails the task."""
        try:
            declaration = options_class(type(self))
            if declaration is not None:
                self.options = options.parse(declaration, request.options)
            prepared = self.setup()
            if inspect.iscoroutine(prepared):
                asyncio = importlib.import_module("asyncio")  # most handlers do not need it
                asyncio.get_event_loop().run_until_complete(prepared)
        except OptionsError as error:
            return InitResponse(error=str(error))
        return InitResponse(success=True)

    def snapshot(self) -> SnapshotResponse:
        """Return the state as bytes for `restore`; empty if no state is declared."""
        declaration = state_declaration(type(self))
        if declaration is None:
            return SnapshotResponse()
        name = type(self).__name__
        content = state.dump(_stateful(self).state, handler=name, version=declaration.version)
        return SnapshotResponse(snapshot=content)

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        """Restore the state of an earlier `snapshot`. `success=False` fails the task."""
        declaration = state_declaration(type(self))
        if declaration is None or not request.snapshot:
            return RestoreResponse(success=True)
        name, version = type(self).__name__, declaration.version
        fresh = declaration.fresh()
        current = _stateful(self).state
        if isinstance(fresh, state.PerGroup) and isinstance(current, state.PerGroup):
            # `setup` may have created a state with a limit and an expiry of the options.
            fresh = current
        try:
            _stateful(self).state = state.load(
                fresh, request.snapshot, handler=name, version=version
            )
        except StateError as error:
            return self._restore_mismatch(fresh, request.snapshot, str(error))
        return RestoreResponse(success=True)

    def migrate(self, snapshot: state.Snapshot, /) -> Any:
        """Convert a snapshot of another version, handler or program for this version.

        Args:
            snapshot: what was stored. If kapudf took it, `snapshot.content` is the state as
                decoded JSON. If another program took it, `snapshot.handler` is None, and
                `snapshot.raw` has its bytes.

        Returns:
            A state of this version, its content as dicts, lists and plain values, or None (the
            default) if the snapshot cannot be used.
        """
        del snapshot

    def begin_batch(self, begin: BeginBatch, /) -> Returned:
        """Handle the begin of a batch. By default it is sent on, if both edges are BATCH."""
        if self.wants == BATCH and self.provides == BATCH:
            self.agent.write_begin_batch(begin)
        return None

    def point(self, point: Point, /) -> MaybeAsync:
        """Handle a point, of the stream or of the current batch; return what is written.

        It may be async. Then up to `concurrency` points are handled at once, and the output
        is sent in the order of the input.
        """
        del point
        message = f"{type(self).__name__} does not define point()"
        raise NotImplementedError(message)

    def raw_point(self, raw: RawPoint, /) -> RawReturned:
        """Handle an undecoded point. If a class overrides this, `point` is not called.

        This is several times cheaper than decoding and encoding the point. Return `raw` to send
        the point on as it came, or a `PointPatch` to send it on with these changes. To write
        several, call `agent.forward`; `decode_point` decodes the point. By default, `point` is
        called with the decoded point. Whether the class overrides this is decided once, after
        `init`.
        """
        return self.point(decode_point(raw))  # type: ignore[return-value]  # it is not async

    def end_batch(self, end: EndBatch, /) -> MaybeAsync:
        """Handle the end of a batch. By default it is sent on, if both edges are BATCH."""
        if self.wants == BATCH and self.provides == BATCH:
            self.agent.write_end_batch(end)
        return None

    def drain(self) -> Coroutine[Any, Any, None] | None:
        """Finish the work of the handler's own threads, and write their output.

        Called when no other method runs: before another process continues with the connection,
        and before `teardown` at an orderly end. After 5 s, kapudf goes on without it. It runs in
        a thread of its own; it may be async if `point` or `batch` is. It may be called more than
        once, and points may come after it.
        """

    def teardown(self) -> MaybeAsync:
        """Release resources, and return remaining output.

        It may be async if `point` or `batch` is.
        Called once, as the last method, however the connection ends. After an error or a lost
        connection, what it returns or writes is not sent, and writing raises
        ConnectionClosedError: release resources first, or in a `finally`.
        """

    @classmethod
    def join_snapshots(cls, snapshots: Sequence[bytes], /) -> bytes:
        """Return the snapshots of all partitions as one, for `partition_by`.

        A handler with a `PerGroup` needs neither this nor `split_snapshot`.
        """
        if any(snapshots):
            message = f"{cls.__name__} does not define join_snapshots()"
            raise NotImplementedError(message)
        return b""

    @classmethod
    def split_snapshot(
        cls, snapshot: bytes, count: int, partition_of: Callable[[str], int], /
    ) -> Sequence[bytes]:
        """Return the share of each partition in what `join_snapshots` returned.

        Args:
            snapshot: the snapshot; it may be of another number of partitions, or of none.
            count: how many partitions there are.
            partition_of: returns the partition of a group.
        """
        del partition_of
        return [snapshot] * count

    def stop(self) -> None:
        """Do what `teardown` does: its old name, for handlers that call or override it."""
        self.teardown()

    @classmethod
    def keeps_state(cls) -> bool:
        """Return whether the class declares a state or overrides `snapshot`."""
        of_its_own = cls.snapshot is not Handler.snapshot
        return of_its_own or state_declaration(cls) is not None

    def _restore_mismatch(
        self, fresh: state.AnyState, snapshot: bytes, reason: str
    ) -> RestoreResponse:
        """Handle a snapshot of another version, handler or program: migrate, discard or refuse it.

        Args:
            fresh: an empty state.
            snapshot: the snapshot.
            reason: why it cannot be restored as it is.
        """
        try:
            migrated = deprecated.migrate(self, state.inspect_snapshot(snapshot))
            if migrated is not None:
                _stateful(self).state = state.from_plain(fresh, migrated)
                _log.info("snapshot migrated: %s", reason)
                return RestoreResponse(success=True)
        except StateError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - an author's code may raise anything
            # Treat a failed migration like a missing one.
            _log.exception("migration of a snapshot failed")
            reason = f"{reason}; its migration failed: {describe(error)}"
        if deprecated.on_state_mismatch(self) == "refuse":
            return RestoreResponse(error=reason)
        _log.warning("snapshot discarded, starting afresh: %s", reason)
        return RestoreResponse(success=True)


class _Stateful(Protocol):
    """A handler that declares a state."""

    state: state.AnyState


def _stateful(handler: Handler) -> _Stateful:
    return cast("_Stateful", handler)
