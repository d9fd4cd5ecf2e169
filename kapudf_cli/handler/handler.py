"""The handler: the user's code, called with each message that Kapacitor sends.

    from kapudf_cli import Handler, Options, Point, get_number, set_field

    class ScaleOptions(Options, kw_only=True):
        field: str
        factor: float = 2.0

    class Scale(Handler):
        '''Multiplies a field by a factor.'''

        options: ScaleOptions

        def point(self, point: Point) -> None:
            value = get_number(point, self.options.field)
            if value is not None:
                set_field(point, self.options.field, value * self.options.factor)
            self.agent.write_point(point)

Each connection, which is each node of each task, has a handler of its own. Its
methods are never called concurrently, and none is called after `stop`. Whatever
a method raises is logged, told to Kapacitor, and ends that connection only.
"""

from __future__ import annotations

import abc
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from kapudf_cli.errors import describe
from kapudf_cli.handler import options, state
from kapudf_cli.handler.class_attributes import declared
from kapudf_cli.handler.errors import OptionsError, StateError
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
    import datetime as dt
    from collections.abc import Callable

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

#: What becomes of a snapshot that is not of this handler's state: the handler starts
#: afresh and the reason is logged, or Restore is refused, which fails the task.
ForeignState: TypeAlias = Literal["discard", "refuse"]


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

    def forward(self, raw: RawPoint, patch: PointPatch | None = None, /) -> None:
        """Send on the point in hand as it came, with what a patch sets; see `Handler.raw_point`.

        The patch changes what is sent, not `raw`.
        """


class Handler(abc.ABC):
    """A user-defined function. Subclass it; `point` is all that must be written.

    A class that annotates `options` with a subclass of `Options` has these
    declared to Kapacitor, checked, and at hand from `setup` on. A class that
    annotates `state` with a subclass of `State`, or with `PerGroup` of one, has
    it from the start, in every snapshot, and back after a restart of the task.

    Attributes:
        wants: the edge it reads, STREAM or BATCH.
        provides: the edge it writes, STREAM or BATCH.
        options: what the TICKscript called.
        state: what it remembers.
        state_version: raise it when a snapshot of older code would be misread.
        state_limit: the most groups that a `PerGroup` keeps, None for any number.
        state_expiry: how far the times of points advance until a `PerGroup` drops a group
            without points, None for never. Where the options say either, make the state in
            `setup`.
        foreign_state: what becomes of a snapshot that is not of this state.
        raw_point: where it is set, by `setup` at the latest, points are handed to it
            undecoded, and `point` is not called. What it is given may be handed to
            `agent.forward` before it returns, with fields and tags set by a
            `PointPatch`, which is several times cheaper than to decode a point and
            encode it again; or to `decode_point`.
        agent: where points and batches are written to.
    """

    raw_point: Callable[[RawPoint], None] | None = None
    wants: ClassVar[EdgeType] = STREAM
    provides: ClassVar[EdgeType] = STREAM
    state_version: ClassVar[int] = 1
    state_limit: ClassVar[int | None] = None
    state_expiry: ClassVar[dt.timedelta | None] = None
    foreign_state: ClassVar[ForeignState] = "discard"

    options: Any
    state: Any

    def __init__(self, agent: Writer) -> None:
        """Keep the agent. What costs time or memory belongs in `setup`.

        Kapacitor opens a connection at its start just to ask for `info`, and a
        handler is made for that one too.
        """
        self.agent = agent
        fresh = self._fresh_state()
        if fresh is not None:
            self.state = fresh

    def setup(self) -> None:  # noqa: B027 - most handlers have nothing to prepare
        """Prepare for data: the options are known, none has come yet.

        Raise OptionsError to fail the task with a sentence for the author of its
        TICKscript.
        """

    def info(self) -> InfoResponse:
        """Return the edges, and the options that a TICKscript may call.

        It must return the same at any time: it is also asked before `init`.
        """
        declaration = self._options_type()
        return InfoResponse(
            wants=self.wants,
            provides=self.provides,
            options=None if declaration is None else options.declare(declaration),
        )

    def init(self, request: InitRequest, /) -> InitResponse:
        """Take the options of the TICKscript. `success=False` fails the task."""
        try:
            declaration = self._options_type()
            if declaration is not None:
                self.options = options.parse(declaration, request.options)
            self.setup()
        except OptionsError as error:
            return InitResponse(error=str(error))
        return InitResponse(success=True)

    def snapshot(self) -> SnapshotResponse:
        """Return the state, as bytes that `restore` understands; empty if none is declared."""
        if declared(type(self), "state", above=Handler) is None:
            return SnapshotResponse()
        content = state.dump(self.state, handler=type(self).__name__, version=self.state_version)
        return SnapshotResponse(snapshot=content)

    def restore(self, request: RestoreRequest, /) -> RestoreResponse:
        """Take back the state of an earlier `snapshot`. `success=False` fails the task."""
        fresh = self._state_to_fill()
        if fresh is None or not request.snapshot:
            return RestoreResponse(success=True)
        name = type(self).__name__
        try:
            self.state = state.load(
                fresh, request.snapshot, handler=name, version=self.state_version
            )
        except StateError as error:
            return self._restore_foreign(request.snapshot, str(error))
        return RestoreResponse(success=True)

    def migrate(self, handler: str, version: int, content: Any) -> Any:
        """Return the content of another version's snapshot as this version has it.

        Args:
            handler: the class that took the snapshot.
            version: its `state_version`.
            content: the state as JSON has it, in dicts, lists and plain values.

        None, as here, says that it cannot be used.
        """
        del handler, version, content

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

    @classmethod
    def keeps_state(cls) -> bool:
        """Return whether it has a state: one that it declares, or a `snapshot` of its own."""
        of_its_own = cls.snapshot is not Handler.snapshot
        return of_its_own or declared(cls, "state", above=Handler) is not None

    @classmethod
    def check_definition(cls) -> None:
        """Find out before any task is there what could only fail, or lose data, in each.

        Raises:
            TypeError: an edge, an option, the state or a method is none that a handler can have.
            NameError: an annotation names what its module does not have at run time.
        """
        for name in ("wants", "provides"):
            if (edge := getattr(cls, name)) not in EdgeType.values():
                message = f"{cls.__name__}.{name}: {edge!r} is neither STREAM nor BATCH"
                raise TypeError(message)
        declaration = cls._options_type()
        if declaration is not None:
            options.declare(declaration)
        if cls._fresh_state() is None and isinstance(
            getattr(cls, "state", None), state.State | state.PerGroup
        ):
            message = f"{cls.__name__}.state is not annotated, so no snapshot would have it"
            raise TypeError(message)
        for name, method in inspect.getmembers(cls, inspect.isfunction):
            if hasattr(Handler, name):
                refuse_async(f"{cls.__name__}.{name}", method)
                if inspect.isgeneratorfunction(method):
                    problem = "has a yield and would never run; write with self.agent instead"
                    message = f"{cls.__name__}.{name} {problem}"
                    raise TypeError(message)

    @classmethod
    def _options_type(cls) -> type[options.Options] | None:
        annotation = declared(cls, "options", above=Handler)
        if annotation is None:
            return None
        if isinstance(annotation, type) and issubclass(annotation, options.Options):
            return annotation
        message = f"{cls.__name__}.options: {annotation!r} is not a subclass of kapudf_cli.Options"
        raise TypeError(message)

    @classmethod
    def _fresh_state(cls) -> state.AnyState | None:
        annotation = declared(cls, "state", above=Handler)
        if annotation is None:
            return None
        return state.make(annotation, limit=cls.state_limit, expiry=cls.state_expiry)

    def _state_to_fill(self) -> state.AnyState | None:
        """Return the state that a snapshot goes into, None if none is declared."""
        fresh = self._fresh_state()
        # What `setup` has put in its place has the limit and the expiry of the options.
        if isinstance(fresh, state.PerGroup) and isinstance(self.state, state.PerGroup):
            return self.state
        return fresh

    def _restore_foreign(self, snapshot: bytes, reason: str) -> RestoreResponse:
        """Deal with a snapshot that is not of this state: migrate, discard or refuse it."""
        fresh = self._state_to_fill()
        try:
            handler, version, content = state.peek(snapshot)
            migrated = self.migrate(handler, version, content)
            if migrated is not None and fresh is not None:
                self.state = state.from_plain(fresh, migrated)
                _log.info("snapshot migrated: %s", reason)
                return RestoreResponse(success=True)
        except StateError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - whatever an author's code may raise
            # A migration that fails must not be worse than none.
            _log.exception("migration of a snapshot failed")
            reason = f"{reason}; its migration failed: {describe(error)}"
        if self.foreign_state == "refuse":
            return RestoreResponse(error=reason)
        _log.warning("snapshot discarded, starting afresh: %s", reason)
        return RestoreResponse(success=True)


def refuse_async(name: str, method: object) -> None:
    """Raise TypeError for a method whose body would never run, for nothing awaits it."""
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        message = f"{name} is async; it is called and never awaited, so write a plain def"
        raise TypeError(message)
