"""State: named once in a handler, kept across restarts of the task.

    class Seen(State):
        count: int = 0

    class Count(Handler):
        state: PerGroup[Seen]

gives a snapshot and a restore. What Kapacitor stores is JSON that people can
read, with the handler's name and a version, so that a snapshot of other code is
recognised as such.
"""

from __future__ import annotations

import collections
import json
import threading
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from kapudf_cli.handler.errors import StateError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterator

    from kapudf_cli.protocol.udf_pb2 import Point

_NANOSECONDS_A_MICROSECOND = 1000


class State(msgspec.Struct):
    """What a handler, or one group of it, remembers. Every field needs a default.

    Fields may have any type that JSON can hold: numbers, strings, bool, None,
    lists, dicts with text as keys, tuples, datetimes, and other such structs.
    """


S = TypeVar("S", bound=State)
C = TypeVar("C")

#: Before any time that a point can have, and after any.
_LONG_AGO_NS: Final = -(2**63)
_FAR_OFF_NS: Final = 2**63 - 1
#: So many points in a row must be further from the time of a stream than the expiry until
#: the stream is taken to have moved there. A host whose clock is wrong sends fewer at once.
STRAY_POINTS: Final = 1000

_FOREIGN = "the snapshot is not one that a State wrote"
_UNFIT = "the snapshot does not fit the state"


class _Kept(msgspec.Struct, Generic[S], array_like=True):
    """One group's entry in a snapshot."""

    group: str
    last_ns: int
    state: S


class _Strays(msgspec.Struct):
    """Points in a row whose times are further from the stream's than the expiry."""

    points: int = 0
    ahead: int = 0
    first_ahead_ns: int = _FAR_OFF_NS


class _KeptGroups(msgspec.Struct, Generic[S], omit_defaults=True):
    newest_ns: int
    groups: list[_Kept[S]]
    strays: _Strays | None = None


class _Envelope(msgspec.Struct):
    """A snapshot: whose state it is, and the state."""

    handler: str
    version: int
    state: Any


class _OpenedEnvelope(_Envelope):
    """The same, with a state that is not looked at yet."""

    state: msgspec.Raw


#: msgspec looks at a struct's fields when it first reads one, and keeps what it found before
#: it is complete: two threads that do so at once are a segmentation fault. Connections have
#: a thread each, and after a death many restore the same kind of state at once.
_LOOKING_AT_FIELDS: Final = threading.Lock()


def _reader(wanted: type[C]) -> msgspec.json.Decoder[C]:
    """Return what reads structs from JSON; from then on, any thread may read them."""
    with _LOOKING_AT_FIELDS:
        return msgspec.json.Decoder(wanted)


_OPENED: Final = _reader(_OpenedEnvelope)
_PLAIN: Final = _reader(_Envelope)


@dataclass(slots=True)
class _Entry(Generic[S]):
    state: S
    used_ns: int


class PerGroup(Generic[S]):
    """A state for each group of a task, made at the group's first point.

    With a limit or an expiry, memory does not grow with series that have died. Over the
    limit, the group that is unused for longest is dropped. A group expires when the stream
    has advanced by the expiry since the group's last point.

    How far the stream has advanced follows from the times of its points, not from the
    clock, so the same points give the same state. A point that is further ahead or behind
    than the expiry counts only if the next points are too; see `STRAY_POINTS`. One wrong
    time therefore neither drops groups nor stops expiry.

    Attributes:
        dropped: how many groups have been dropped so far.
    """

    def __init__(
        self,
        make: type[S],
        *,
        limit: int | None = None,
        expiry: dt.timedelta | None = None,
    ) -> None:
        """Make states with `make()`; keep at most `limit` groups, each for `expiry`."""
        self._make = make
        self._reader: msgspec.json.Decoder[_KeptGroups[S]] = _reader(_KeptGroups[make])  # type: ignore[valid-type]  # made at run time
        self._limit = limit
        self._expiry_ns = (
            None
            if expiry is None
            else round(expiry.total_seconds() * 1e6) * _NANOSECONDS_A_MICROSECOND
        )
        # In the order of use, the one unused for longest first. A plain dict takes a time that
        # grows with its size to find its first entry, once others before it have gone.
        self._entries: collections.OrderedDict[str, _Entry[S]] = collections.OrderedDict()
        # The latest time of the stream, without strays.
        self._time_ns = _LONG_AGO_NS
        # How far the stream has advanced. Unlike the time, it never goes back.
        self._advance_ns = _LONG_AGO_NS
        self._strays: _Strays | None = None
        self.dropped = 0

    def of(self, point: Point) -> S:
        """Return the state of a point's group."""
        return self.at(point.group, point.time)

    def at(self, group: str, time_ns: int) -> S:
        """Return the state of a group, used at a time in nanoseconds since the epoch."""
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
            # To the end of the order of use, which a limit set later goes by as well.
            self._entries.move_to_end(group)
            entry.used_ns = self._advance_ns
        if expiry_ns is not None and step_ns > 0:
            self._expire(expiry_ns)
        return entry.state

    def discard(self, group: str) -> None:
        """Drop a group's state; nothing happens if there is none."""
        self._entries.pop(group, None)

    def __len__(self) -> int:
        """Return how many groups are kept."""
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        """Yield the groups that are kept, the one unused for longest first."""
        return iter(self._entries)

    def __contains__(self, group: str) -> bool:
        """Return whether a group is kept."""
        return group in self._entries

    def _drop_first(self) -> None:
        self._entries.popitem(last=False)
        self.dropped += 1

    def _expire(self, expiry_ns: int) -> None:
        """Drop the groups that have expired. The one in use is the last, and was used now."""
        oldest_ns = self._advance_ns - expiry_ns
        entries = self._entries
        while entries and next(iter(entries.values())).used_ns < oldest_ns:
            self._drop_first()

    def _take_stray(self, time_ns: int) -> None:
        """Take a point whose time is further from the stream's than the expiry."""
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
            # The stream has had a pause. The groups used since are not older for that.
            paused_ns = self._advance_ns
            self._advance_ns += strays.first_ahead_ns - self._time_ns
            for entry in reversed(self._entries.values()):
                if entry.used_ns < paused_ns:
                    break
                entry.used_ns = self._advance_ns
            # Tells the groups that are used from now on from these.
            self._advance_ns += 1
        self._time_ns = time_ns

    def _dump(self) -> _KeptGroups[S]:
        # By the time of the stream, which people can read.
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
            # The handler may have been given a lower limit since.
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


def make(annotation: object, *, limit: int | None, expiry: dt.timedelta | None) -> AnyState:
    """Return an empty state of what a handler declares: `Seen` or `PerGroup[Seen]`.

    Raises:
        TypeError: it is neither.
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


def dump(state: AnyState, *, handler: str, version: int) -> bytes:
    """Return a state as a snapshot: one JSON object.

    Raises:
        TypeError: a field holds what JSON cannot.
    """
    content = state._dump() if isinstance(state, PerGroup) else state  # noqa: SLF001 - its other half
    envelope = _Envelope(handler, version, content)
    snapshot = msgspec.json.encode(envelope)
    if b"null" in snapshot:
        # Perhaps NaN or an infinity, which JSON lacks and Python's own dialect has.
        plain = msgspec.to_builtins(envelope)
        snapshot = json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()
    return snapshot


def load(state: AnyState, snapshot: bytes, *, handler: str, version: int) -> AnyState:
    """Return the state in a snapshot.

    Args:
        state: an empty state of the kind wanted; it may be filled and returned.
        snapshot: as `dump` gave it.
        handler: whose snapshot it must be.
        version: of which version it must be.

    Raises:
        StateError: it is another handler's, another version's, or damaged.
    """
    envelope = _open(snapshot)
    if envelope.handler != handler:
        raise StateError(f"the snapshot is of handler {envelope.handler}, not {handler}")
    if envelope.version != version:
        raise StateError(f"the snapshot is of version {envelope.version}, not {version}")
    return _fill(state, envelope.state)


def from_plain(state: AnyState, content: object) -> AnyState:
    """Return the state in plain Python, as `peek` gives it and a migration may change it.

    Raises:
        StateError: it does not fit.
    """
    return _fill(state, content)


def peek(snapshot: bytes) -> tuple[str, int, object]:
    """Return the handler, the version and the content of a snapshot, as plain Python.

    Raises:
        StateError: the bytes are no snapshot of this form.
    """
    envelope = _open(snapshot)
    return envelope.handler, envelope.version, _guarded(_FOREIGN, lambda: _plain(envelope.state))


def _check_fields(state: type[State]) -> None:
    """Find out now what would show at the first point, or at the first Restore."""
    state()
    _reader(state)


def _open(snapshot: bytes) -> _Envelope:
    try:
        return _OPENED.decode(snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Python's own reader takes NaN and infinities too.
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
    """Turn whatever a snapshot that is damaged, or another's, may raise into one error."""
    try:
        return read()
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{problem}: {error}") from error
