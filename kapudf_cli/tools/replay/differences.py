"""What a UDF changed: compare each point that comes back with the point that was sent.

A point that comes back is paired with a pending point of the same group and time: one that was
sent and has not come back. UDFs keep the order within a group. So a point is lost once a later
point of its group has come back, and a point of a batch is lost once the batch has ended.
"""

from __future__ import annotations

import collections
import enum
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from kapudf_cli.handler.points import get_fields
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point
from kapudf_cli.tools.recordings.line_protocol import show_value
from kapudf_cli.tools.recordings.notation import group_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kapudf_cli.protocol.codec import DataMessage

#: How many points may be pending, about 1 KB each. If there are more, the oldest one counts as
#: lost.
MAX_PENDING: Final = 50_000
#: How many pending points of the same time are compared with a point that came back.
_MAX_OF_A_TIME: Final = 64

K = TypeVar("K")
V = TypeVar("V")


class Fate(enum.Enum):
    """What happened to a point."""

    SAME = "="
    CHANGED = "~"
    LOST = "-"
    NEW = "+"


@dataclass(frozen=True)
class Difference:
    """The result for one point.

    Attributes:
        fate: what happened to the point.
        point: the point as it came back, or as it was sent if it is lost.
        name: its measurement, which points of batches do not have themselves.
        group: its group.
        before: the point as it was sent, None if it is new.
        changes: a text for each change.
    """

    fate: Fate
    point: Point
    name: str
    group: str
    before: Point | None = None
    changes: tuple[str, ...] = ()


@dataclass(eq=False)
class _Sent:
    """A pending message: a point, or the end of a batch."""

    message: Point | EndBatch
    group: str
    name: str
    in_batch: bool
    done: bool = False


class Differences:
    """Pairs points that come back with points that were sent; in two threads, if you like.

    Attributes:
        counts: the number of points with each fate.
    """

    def __init__(self, tell: Callable[[Difference | BeginBatch | EndBatch], None]) -> None:
        """Call `tell` with each difference and each begin or end of a batch that came back."""
        self.counts = collections.Counter[Fate]()
        self._tell = tell
        self._lock = threading.Lock()
        # The pending messages in order: all of them, and those of each group.
        self._all: collections.deque[_Sent] = collections.deque()
        self._groups: dict[str, collections.deque[_Sent]] = {}
        # The pending points by time: of each group, and of all groups.
        self._of_group_and_time: dict[tuple[str, int], list[_Sent]] = {}
        self._of_time: dict[int, list[_Sent]] = {}
        # The pending ends of batches, by group and tmax.
        self._ends: dict[tuple[str, int], list[_Sent]] = {}
        self._sent_batch: BeginBatch | None = None
        self._received_batch: BeginBatch | None = None

    def sent(self, message: DataMessage) -> None:
        """Add a message that will be sent next. It must not change afterwards."""
        with self._lock:
            match message:
                case BeginBatch():
                    self._sent_batch = message
                case EndBatch():
                    self._sent_batch = None
                    self._add(_Sent(message, message.group, message.name, in_batch=True))
                case Point():
                    batch = self._sent_batch
                    name = message.name if batch is None else batch.name
                    self._add(_Sent(message, message.group, name, in_batch=batch is not None))

    def received(self, message: DataMessage) -> None:
        """Add a message that came back."""
        with self._lock:
            match message:
                case BeginBatch():
                    self._received_batch = message
                    self._tell(message)
                case EndBatch():
                    self._received_batch = None
                    self._end_batch(message)
                    self._tell(message)
                case Point():
                    self._pair(message)

    def finish(self) -> None:
        """Report all pending points as lost: nothing more will come back."""
        with self._lock:
            while self._all:
                self._lose(self._all[0])

    def _add(self, sent: _Sent) -> None:
        self._all.append(sent)
        self._groups.setdefault(sent.group, collections.deque()).append(sent)
        if isinstance(sent.message, EndBatch):
            self._ends.setdefault((sent.group, sent.message.tmax), []).append(sent)
        else:
            time = sent.message.time
            self._of_group_and_time.setdefault((sent.group, time), []).append(sent)
            self._of_time.setdefault(time, []).append(sent)
        while len(self._all) > MAX_PENDING:
            self._lose(self._all[0])

    def _pair(self, point: Point) -> None:
        batch = self._received_batch
        if batch is None:
            # Kapacitor ignores the group that the UDF sends, and computes it.
            dimensions = list(point.dimensions)
            group = group_id(point.name, point.tags, dimensions, by_name=point.byName)
            name = point.name
        else:
            group, name = batch.group, batch.name
        sent = self._find(point, group, name)
        if sent is None:
            self._report(Difference(Fate.NEW, point, name, group))
            return
        if not sent.in_batch:
            while (first := self._groups[sent.group][0]) is not sent:
                self._lose(first)
        self._forget(sent)
        changes = tuple(_changes(sent, point, name, in_stream=batch is None and not sent.in_batch))
        fate = Fate.CHANGED if changes else Fate.SAME
        self._report(Difference(fate, point, name, sent.group, _point(sent), changes))

    def _find(self, point: Point, group: str, name: str) -> _Sent | None:
        """Return the pending message of a point that came back, None if the point is new."""
        tags = dict(point.tags)
        candidates = self._of_group_and_time.get((group, point.time), [])[:_MAX_OF_A_TIME]
        if not candidates:
            others = self._of_time.get(point.time, [])[:_MAX_OF_A_TIME]
            candidates = [sent for sent in others if sent.name == name and _agree(sent, tags)]
        if self._received_batch is None:
            # A point that was computed from a batch has none of the fields of its points.
            fields = get_fields(point).keys()
            candidates = [
                sent
                for sent in candidates
                if not sent.in_batch or fields & get_fields(_point(sent)).keys()
            ]
        best, most = None, -1
        for sent in candidates:
            before = dict(sent.message.tags)
            if before == tags:
                return sent
            alike = len(before.items() & tags.items())
            if alike > most:
                best, most = sent, alike
        return best

    def _end_batch(self, end: EndBatch) -> None:
        """Report the pending points of the batch that ends, and of those before it, as lost."""
        ends = self._ends.get((end.group, end.tmax))
        if ends is None:
            return
        same = ends[0]
        while not same.done:
            self._lose(self._groups[end.group][0])

    def _lose(self, sent: _Sent) -> None:
        self._forget(sent)
        if isinstance(sent.message, Point):
            message = sent.message
            self._report(Difference(Fate.LOST, message, sent.name, sent.group, message))

    def _forget(self, sent: _Sent) -> None:
        """Remove a message from the pending ones."""
        sent.done = True
        if isinstance(sent.message, EndBatch):
            _remove(self._ends, (sent.group, sent.message.tmax), sent)
        else:
            time = sent.message.time
            _remove(self._of_group_and_time, (sent.group, time), sent)
            _remove(self._of_time, time, sent)
        order = self._groups[sent.group]
        while order and order[0].done:
            order.popleft()
        if not order:
            del self._groups[sent.group]
        while self._all and self._all[0].done:
            self._all.popleft()

    def _report(self, difference: Difference) -> None:
        self.counts[difference.fate] += 1
        self._tell(difference)


def _remove(index: dict[K, list[_Sent]], key: K, sent: _Sent) -> None:
    entries = index[key]
    entries.remove(sent)
    if not entries:
        del index[key]


def _changes(sent: _Sent, after: Point, name: str, *, in_stream: bool) -> Iterator[str]:
    """Yield what was added, removed or changed in a point."""
    before = _point(sent)
    if sent.name != name:
        yield f"name: {sent.name} → {name}"
    yield from _changed("tag ", dict(before.tags), dict(after.tags), str)
    yield from _changed("", get_fields(before), get_fields(after), show_value)
    if in_stream:
        # Nodes after the UDF use these to join and to group.
        envelopes = (_envelope(before), _envelope(after))
        for key, value in envelopes[0].items():
            if envelopes[1][key] != value:
                yield f"{key}: {value or '(none)'} → {envelopes[1][key] or '(none)'}"


def _point(sent: _Sent) -> Point:
    assert isinstance(sent.message, Point), "only points are looked up by their time"
    return sent.message


def _agree(sent: _Sent, tags: Mapping[str, str]) -> bool:
    """Return whether all tags that both points have are equal."""
    return all(tags.get(tag, value) == value for tag, value in sent.message.tags.items())


def _changed(
    prefix: str, before: Mapping[str, V], after: Mapping[str, V], show: Callable[[V], str]
) -> Iterator[str]:
    for key in sorted({*before, *after}):
        if key not in before:
            yield f"+{prefix}{key}={show(after[key])}"
        elif key not in after:
            yield f"-{prefix}{key}"
        elif (old := show(before[key])) != (new := show(after[key])):
            yield f"{prefix}{key}: {old} → {new}"


def _envelope(point: Point) -> dict[str, str]:
    return {
        "database": point.database,
        "retention policy": point.retentionPolicy,
        "dimensions": ",".join(point.dimensions),
        "by name": "yes" if point.byName else "",
    }
