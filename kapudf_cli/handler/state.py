"""State of a handler: declared once, kept across restarts of the task.

    class Seen(State, version=2):
        count: int = 0

    class Count(Handler):
        state = PerGroup(Seen, limit=100_000)

implements `snapshot` and `restore`. Kapacitor stores readable JSON with the handler's name
and a version, so that a snapshot of other code is recognised.
"""

from __future__ import annotations

import collections
import json
import threading
import typing
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

import msgspec

from kapudf_cli.handler.errors import StateError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterator

    from kapudf_cli.protocol.udf_pb2 import Point

_NANOSECONDS_A_MICROSECOND = 1000


class _VersionMeta(msgspec.StructMeta):
    """The metaclass of State, for the keyword `version`. A subclass has its base's version."""

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        version: int | None = None,
        **settings: Any,
    ) -> Any:
        if version is not None:
            if type(version) is not int:
                message = f"{name}: the version must be an int, not {version!r}"
                raise TypeError(message)
            namespace["__state_version__"] = version
        return super().__new__(cls, name, bases, namespace, **settings)


class State(msgspec.Struct, metaclass=_VersionMeta):
    """The state of a handler, or of one group. Each field needs a default.

    Fields may have any type that JSON can represent: numbers, strings, bool, None, lists,
    dicts with strings as keys, tuples, datetimes, and other structs.

    `class Seen(State, version=2)` gives its snapshots a version, which is 1 by default. Increase
    it if the class would misread a snapshot of older code.
    """

    __state_version__: ClassVar[int] = 1


S = TypeVar("S", bound=State)
C = TypeVar("C")

#: Before and after any time that a point can have.
_LONG_AGO_NS: Final = -(2**63)
_FAR_OFF_NS: Final = 2**63 - 1
#: After so many consecutive points whose times differ from the stream's by more than the expiry,
#: the stream's time moves there. A host with a wrong clock sends fewer points at once.
STRAY_POINTS: Final = 1000

_FOREIGN = "the snapshot is not one that a State wrote"
_UNFIT = "the snapshot does not fit the state"


class _Kept(msgspec.Struct, Generic[S], array_like=True):
    """A group in a snapshot."""

    group: str
    last_ns: int
    state: S


class _Strays(msgspec.Struct):
    """Consecutive points whose times differ from the stream's by more than the expiry."""

    points: int = 0
    ahead: int = 0
    first_ahead_ns: int = _FAR_OFF_NS


class _KeptGroups(msgspec.Struct, Generic[S], omit_defaults=True):
    newest_ns: int
    groups: list[_Kept[S]]
    strays: _Strays | None = None


class _Envelope(msgspec.Struct):
    """A snapshot: the handler's name, the version and the state."""

    handler: str
    version: int
    state: Any


class _OpenedEnvelope(_Envelope):
    """A snapshot whose state is not decoded yet."""

    state: msgspec.Raw


#: msgspec inspects the fields of a struct when the first decoder is created, and stores the
#: result before it is complete. Two threads that do this at once cause a segmentation fault.
#: After a worker's death, the threads of many connections restore the same state at once.
_INSPECTING_FIELDS: Final = threading.Lock()


def _reader(wanted: type[C]) -> msgspec.json.Decoder[C]:
    """Return a decoder from JSON, which any thread may use."""
    with _INSPECTING_FIELDS:
        return msgspec.json.Decoder(wanted)


_OPENED: Final = _reader(_OpenedEnvelope)
_PLAIN: Final = _reader(_Envelope)


@dataclass(slots=True)
class _Entry(Generic[S]):
    state: S
    used_ns: int


class PerGroup(Generic[S]):
    """A state for each group of a task, created at the group's first point.

    A limit or an expiry bounds the memory for series that no longer exist. Over the limit,
    the least recently used group is dropped. A group expires when the stream's time has
    advanced by the expiry since the group's last point.

    The stream's time follows from the times of points, not from the clock, so the same
    points give the same state. A point whose time differs by more than the expiry only
    counts if the next points' times do too; see `STRAY_POINTS`. So a single wrong time
    neither drops groups nor stops expiry.

    Attributes:
        dropped: how many groups have been dropped.
    """

    def __init__(
        self,
        make: type[S],
        *,
        limit: int | None = None,
        expiry: dt.timedelta | None = None,
    ) -> None:
        """Create states with `make()`; keep at most `limit` groups, each for `expiry`."""
        self._make = make
        self._reader: msgspec.json.Decoder[_KeptGroups[S]] = _reader(_KeptGroups[make])  # type: ignore[valid-type]  # made at run time
        self._limit = limit
        self._expiry_ns = (
            None
            if expiry is None
            else round(expiry.total_seconds() * 1e6) * _NANOSECONDS_A_MICROSECOND
        )
        # The least recently used group is first. In a plain dict, finding the first entry is
        # slow once others before it have been removed.
        self._entries: collections.OrderedDict[str, _Entry[S]] = collections.OrderedDict()
        # The latest time of the stream, without strays.
        self._time_ns = _LONG_AGO_NS
        # How far the stream's time has advanced. Unlike the time, it never decreases.
        self._advance_ns = _LONG_AGO_NS
        self._strays: _Strays | None = None
        self.dropped = 0

    def fresh(self) -> PerGroup[S]:
        """Return another one with the same settings and without groups."""
        copy = PerGroup(self._make, limit=self._limit)
        copy._expiry_ns = self._expiry_ns
        return copy

    @property
    def has_expiry(self) -> bool:
        """Whether groups expire, so that what happens depends on the stream's time."""
        return self._expiry_ns is not None

    def of(self, point: Point) -> S:
        """Return the state of a point's group."""
        return self.at(point.group, point.time)

    def at(self, group: str, time_ns: int) -> S:
        """Return the state of a group, used at `time_ns` in nanoseconds since the epoch."""
        step_ns = time_ns - self._time_ns
        expiry_ns = self._expiry_ns
        if expiry_ns is None:
            if step_ns > 0:
                self._time_ns = self._advance_ns = time_ns
        elif -expiry_ns <= step_ns <= expiry_ns:
            self._strays = None
            if step_ns > 0:
                self._time_ns = time_ns
                self._advance_ns += step_ns
        else:
            self._take_stray(time_ns)
        entry = self._entries.get(group)
        if entry is None:
            entry = self._entries[group] = _Entry(self._make(), self._advance_ns)
            if self._limit is not None and len(self._entries) > self._limit:
                self._drop_first()
        else:
            # Also without a limit: a later version of the handler may set one.
            self._entries.move_to_end(group)
            entry.used_ns = self._advance_ns
        if expiry_ns is not None and step_ns > 0:
            self._expire(expiry_ns)
        return entry.state

    def discard(self, group: str) -> None:
        """Drop a group's state; do nothing if there is none."""
        self._entries.pop(group, None)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        """Yield the groups, the least recently used first."""
        return iter(self._entries)

    def __contains__(self, group: str) -> bool:
        """Return whether there is a state for a group."""
        return group in self._entries

    def _drop_first(self) -> None:
        self._entries.popitem(last=False)
        self.dropped += 1

    def _expire(self, expiry_ns: int) -> None:
        """Drop expired groups. The current group is the last one, so it is never dropped."""
        oldest_ns = self._advance_ns - expiry_ns
        entries = self._entries
        while entries and next(iter(entries.values())).used_ns < oldest_ns:
            self._drop_first()

    def _take_stray(self, time_ns: int) -> None:
        """Count a point whose time differs from the stream's by more than the expiry."""
        if self._time_ns == _LONG_AGO_NS:
            self._time_ns = self._advance_ns = time_ns  # the first point of all
            return
        strays = self._strays
        if strays is None:
            strays = self._strays = _Strays()
        strays.points += 1
        if time_ns > self._time_ns:
            strays.ahead += 1
            strays.first_ahead_ns = min(strays.first_ahead_ns, time_ns)
        if strays.points < STRAY_POINTS:
            return
        self._strays = None
        if 2 * strays.ahead > strays.points:
            # There was a gap in the stream. Groups used since then do not age by it.
            paused_ns = self._advance_ns
            self._advance_ns += strays.first_ahead_ns - self._time_ns
            for entry in reversed(self._entries.values()):
                if entry.used_ns < paused_ns:
                    break
                entry.used_ns = self._advance_ns
            # Distinguishes these groups from groups that are used later.
            self._advance_ns += 1
        self._time_ns = time_ns

    def _dump(self) -> _KeptGroups[S]:
        # Relative to the stream's time, which is readable.
        ahead_ns = self._advance_ns - self._time_ns
        kept = [
            _Kept(group, max(entry.used_ns - ahead_ns, _LONG_AGO_NS), entry.state)
            for group, entry in self._entries.items()
        ]
        return _KeptGroups(self._time_ns, kept, self._strays)

    def _load(self, content: object) -> None:
        kept = _read(content, self._reader)
        groups = kept.groups
        if self._limit is not None and len(groups) > self._limit:
            # The limit may be lower than when the snapshot was taken.
            self.dropped += len(groups) - self._limit
            groups = groups[len(groups) - self._limit :]
        self._time_ns = self._advance_ns = kept.newest_ns
        self._strays = kept.strays
        # A snapshot of other code may hold groups that would expire at once.
        oldest_ns = _LONG_AGO_NS if self._expiry_ns is None else kept.newest_ns - self._expiry_ns
        self._entries = collections.OrderedDict(
            (each.group, _Entry(each.state, min(max(each.last_ns, oldest_ns), kept.newest_ns)))
            for each in groups
        )


AnyState = State | PerGroup[Any]


def create(annotation: object, *, limit: int | None, expiry: dt.timedelta | None) -> AnyState:
    """Return an empty state for an annotation: `Seen` or `PerGroup[Seen]`.

    Raises:
        TypeError: the annotation is neither.
    """
    if typing.get_origin(annotation) is PerGroup:
        (each,) = typing.get_args(annotation)
        if isinstance(each, type) and issubclass(each, State):
            _check_fields(each)
            return PerGroup(each, limit=limit, expiry=expiry)
    elif isinstance(annotation, type) and issubclass(annotation, State):
        _check_fields(annotation)
        return annotation()
    message = f"state: {annotation!r} is neither a subclass of State nor PerGroup of one"
    raise TypeError(message)


def version_of(state: AnyState) -> int:
    """Return the version of the class of a state, or of the states of groups."""
    one = state._make if isinstance(state, PerGroup) else type(state)
    return one.__state_version__


def dump(state: AnyState, *, handler: str, version: int) -> bytes:
    """Return a state as a snapshot: one JSON object.

    Raises:
        TypeError: a field has a value that JSON cannot represent.
    """
    content = state._dump() if isinstance(state, PerGroup) else state  # noqa: SLF001 - its other half
    envelope = _Envelope(handler, version, content)
    snapshot = msgspec.json.encode(envelope)
    if b"null" in snapshot:
        # msgspec writes NaN and infinities as null; Python's json module keeps them.
        plain = msgspec.to_builtins(envelope)
        snapshot = json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()
    return snapshot


def load(state: AnyState, snapshot: bytes, *, handler: str, version: int) -> AnyState:
    """Return the state in a snapshot.

    Args:
        state: an empty state of the expected type; it may be filled and returned.
        snapshot: the result of `dump`.
        handler: the expected name of the handler.
        version: the expected version.

    Raises:
        StateError: the snapshot is of another handler or version, or damaged.
    """
    envelope = _open(snapshot)
    if envelope.handler != handler:
        raise StateError(f"the snapshot is of handler {envelope.handler}, not {handler}")
    if envelope.version != version:
        raise StateError(f"the snapshot is of version {envelope.version}, not {version}")
    return _fill(state, envelope.state)


def from_plain(state: AnyState, content: object) -> AnyState:
    """Return the state from what `Handler.migrate` returned.

    Args:
        state: an empty state of the expected type; it may be filled and returned.
        content: a state of the same type, or plain Python objects, as in `Snapshot.content`.

    Raises:
        StateError: the content does not fit the state.
    """
    if isinstance(content, PerGroup):
        content = msgspec.to_builtins(content._dump())  # noqa: SLF001 - its other half
    return content if type(content) is type(state) else _fill(state, content)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that Kapacitor stored, taken by any code.

    Attributes:
        handler: the class of the handler that took it, None if another program took it.
        version: the version of its state, None if another program took it.
        content: the state as decoded JSON: dicts, lists and plain values. For a `PerGroup`, a dict
            with `newest_ns` and `groups`, a list of group, time and state. None if another
            program took it.
        raw: the bytes as they were stored.
    """

    handler: str | None
    version: int | None
    content: Any
    raw: bytes


def inspect_snapshot(raw: bytes) -> Snapshot:
    """Return what the bytes of a snapshot contain."""
    try:
        envelope = _open(raw)
        content = _guarded(_FOREIGN, lambda: _plain(envelope.state))
    except StateError:
        return Snapshot(None, None, None, raw)
    return Snapshot(envelope.handler, envelope.version, content, raw)


def peek(snapshot: bytes) -> tuple[str, int, object]:
    """Return the handler, the version and the content of a snapshot; deprecated.

    Raises:
        StateError: another program took it.
    """
    message = "peek is deprecated; use inspect_snapshot of kapudf_cli.handler"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    found = inspect_snapshot(snapshot)
    if found.handler is None or found.version is None:
        raise StateError(_FOREIGN)
    return found.handler, found.version, found.content


def _check_fields(state: type[State]) -> None:
    """Raise now what would otherwise be raised at the first point or the first Restore."""
    state()
    _reader(state)


def _open(snapshot: bytes) -> _Envelope:
    try:
        return _OPENED.decode(snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Python's json module also reads NaN and infinities.
        return _guarded(_FOREIGN, lambda: msgspec.convert(json.loads(snapshot), _PLAIN.type))


def _fill(state: AnyState, content: object) -> AnyState:
    if isinstance(state, PerGroup):
        _guarded(_UNFIT, lambda: state._load(content))  # noqa: SLF001 - its other half
        return state
    return _guarded(_UNFIT, lambda: _read(content, _reader(type(state))))


def _read(content: object, reader: msgspec.json.Decoder[C]) -> C:
    if isinstance(content, msgspec.Raw):
        return reader.decode(content)
    return msgspec.convert(content, reader.type)


def _plain(content: object) -> object:
    return msgspec.json.decode(content) if isinstance(content, msgspec.Raw) else content


def _guarded(problem: str, read: Callable[[], C]) -> C:
    """Call `read`; raise StateError for all errors that an invalid snapshot may cause."""
    try:
        return read()
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{problem}: {error}") from error
