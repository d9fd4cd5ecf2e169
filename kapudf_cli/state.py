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

import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from kapudf_cli.errors import StateError

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator

    from kapudf_cli.wire.udf_pb2 import Point

_NANOSECONDS_A_MICROSECOND = 1000


class State(msgspec.Struct):
    """What a handler, or one group of it, remembers. Every field needs a default.

    Fields may have any type that JSON can hold: numbers, strings, bool, None,
    lists, dicts with text as keys, tuples, datetimes, and other such structs.
    """


S = TypeVar("S", bound=State)


class _Kept(msgspec.Struct, array_like=True):
    """One group's entry in a snapshot."""

    group: str
    last_ns: int
    state: msgspec.Raw


class _KeptGroups(msgspec.Struct):
    newest_ns: int
    groups: list[_Kept]


class _Envelope(msgspec.Struct):
    """A snapshot: whose state it is, and the state."""

    handler: str
    version: int
    state: msgspec.Raw


@dataclass(slots=True)
class _Entry(Generic[S]):
    state: S
    last_ns: int


class PerGroup(Generic[S]):
    """A state for each group of a task, made at the group's first point.

    With a limit or an expiry, memory does not grow with series that have died.
    Both go by what has come, not by the clock, so that the same points give the
    same state: a group expires when a point of another is so much later than
    its own last one; over the limit, the group unused for longest goes.

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
        self._limit = limit
        self._expiry_ns = (
            None
            if expiry is None
            else round(expiry.total_seconds() * 1e6) * _NANOSECONDS_A_MICROSECOND
        )
        self._forgets = limit is not None or expiry is not None
        # In the order of use, the one unused for longest first.
        self._entries: dict[str, _Entry[S]] = {}
        self._newest_ns = 0
        self.dropped = 0

    def of(self, point: Point) -> S:
        """Return the state of a point's group."""
        return self.at(point.group, point.time)

    def at(self, group: str, time_ns: int) -> S:
        """Return the state of a group, used at a time in nanoseconds since the epoch."""
        entry = self._entries.get(group)
        if entry is None:
            entry = self._entries[group] = _Entry(self._make(), time_ns)
            if self._limit is not None and len(self._entries) > self._limit:
                self._drop_first()
        elif self._forgets:
            # To the end of the order of use.
            del self._entries[group]
            self._entries[group] = entry
        if self._expiry_ns is not None:
            entry.last_ns = max(entry.last_ns, time_ns)
            self._newest_ns = max(self._newest_ns, time_ns)
            self._expire(self._expiry_ns)
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
        del self._entries[next(iter(self._entries))]
        self.dropped += 1

    def _expire(self, expiry_ns: int) -> None:
        """Drop what has expired, from the front; the last one is in use, however old."""
        while len(self._entries) > 1:
            if self._newest_ns - next(iter(self._entries.values())).last_ns <= expiry_ns:
                return
            self._drop_first()

    def _dump(self) -> _KeptGroups:
        encode = msgspec.json.encode
        return _KeptGroups(
            self._newest_ns,
            [
                _Kept(group, entry.last_ns, msgspec.Raw(encode(entry.state)))
                for group, entry in self._entries.items()
            ],
        )

    def _load(self, raw: bytes) -> None:
        kept = msgspec.json.decode(raw, type=_KeptGroups)
        decoder = msgspec.json.Decoder(self._make)
        entries = {
            each.group: _Entry(decoder.decode(each.state), each.last_ns) for each in kept.groups
        }
        self._entries = entries
        self._newest_ns = kept.newest_ns
        # The handler may have been given a lower limit since.
        while self._limit is not None and len(self._entries) > self._limit:
            self._drop_first()


AnyState = State | PerGroup[Any]


def make(annotation: object, *, limit: int | None, expiry: dt.timedelta | None) -> AnyState:
    """Return an empty state of what a handler declares: `Seen` or `PerGroup[Seen]`.

    Raises:
        TypeError: it is neither.
    """
    if typing.get_origin(annotation) is PerGroup:
        (each,) = typing.get_args(annotation)
        if isinstance(each, type) and issubclass(each, State):
            each()  # a field without a default shows here, not at the first point
            return PerGroup(each, limit=limit, expiry=expiry)
    elif isinstance(annotation, type) and issubclass(annotation, State):
        return annotation()
    message = f"state: {annotation!r} is neither a subclass of State nor PerGroup of one"
    raise TypeError(message)


def dump(state: AnyState, *, handler: str, version: int) -> bytes:
    """Return a state as a snapshot: one JSON object.

    Raises:
        TypeError: a field holds what JSON cannot.
    """
    content = state._dump() if isinstance(state, PerGroup) else state  # noqa: SLF001 - its other half
    raw = msgspec.Raw(msgspec.json.encode(content))
    return msgspec.json.encode(_Envelope(handler, version, raw))


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
    return _fill(state, bytes(envelope.state))


def from_plain(state: AnyState, content: object) -> AnyState:
    """Return the state in plain Python, as `peek` gives it and a migration may change it.

    Raises:
        StateError: it does not fit.
    """
    return _fill(state, msgspec.json.encode(content))


def peek(snapshot: bytes) -> tuple[str, int, object]:
    """Return the handler, the version and the content of a snapshot, as plain Python.

    Raises:
        StateError: the bytes are no snapshot of this form.
    """
    envelope = _open(snapshot)
    return envelope.handler, envelope.version, msgspec.json.decode(envelope.state)


def _open(snapshot: bytes) -> _Envelope:
    try:
        return msgspec.json.decode(snapshot, type=_Envelope)
    except msgspec.MsgspecError as error:
        raise StateError(f"the snapshot is none of this kind: {error}") from error


def _fill(state: AnyState, raw: bytes) -> AnyState:
    try:
        if isinstance(state, PerGroup):
            state._load(raw)  # noqa: SLF001 - its other half
            return state
        return msgspec.json.decode(raw, type=type(state))
    except msgspec.MsgspecError as error:
        raise StateError(f"the snapshot does not fit the state: {error}") from error
