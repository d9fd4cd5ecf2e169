"""The snapshot of a partitioned handler: joined from those of its partitions, and split again.

The joined snapshot has the form that the handler would write without partitions. If groups expire,
each partition has a time of its own, which follows from its points: these times are kept beside the
groups, and a handler without partitions ignores them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from kapudf_cli.handler.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

C = TypeVar("C")


class _Groups(msgspec.Struct, Generic[C], omit_defaults=True):
    """The groups of a `PerGroup`: each has a name, a time and a state."""

    newest_ns: int
    groups: list[tuple[str, int, C]]
    strays: Any = None


class _Snapshot(msgspec.Struct, Generic[C], omit_defaults=True):
    """A snapshot of a handler with a `PerGroup`.

    Attributes:
        partitions: the time and the strays of each partition, if groups expire.
    """

    handler: str
    version: int
    state: _Groups[C]
    partitions: list[tuple[int, Any]] | None = None


#: States are copied undecoded, except for those with NaN or infinities, which are no JSON.
_RAW: Final = msgspec.json.Decoder(_Snapshot[msgspec.Raw])


def join(
    snapshots: Sequence[bytes],
    partition_of: Callable[[str], int],
    *,
    may_overlap: bool,
    keeps_times: bool,
) -> bytes:
    """Return the snapshots of all partitions as one.

    Args:
        snapshots: those of partitions 0, 1, and so on; all of them are empty without a state.
        partition_of: returns the partition of a group.
        may_overlap: whether partitions may have groups of others, which are left out.
        keeps_times: whether the time of each partition is a part of its state.

    Raises:
        StateError: a partition has the state of another group.
    """
    if not any(snapshots):
        return b""
    kept = _read_all(snapshots)
    groups: list[tuple[str, int, Any]] = []
    for partition, each in enumerate(kept):
        for group in each.state.groups:
            if partition_of(group[0]) == partition:
                groups.append(group)
            elif not may_overlap:
                raise StateError(
                    f"the state has a key {group[0]!r}, which is no group of a point; with "
                    "partitions, use point.group as the key"
                )
    # The least recently used group is first. The sort is stable: it keeps the order of those of
    # one partition.
    groups.sort(key=lambda group: group[1])
    times = [(each.state.newest_ns, each.state.strays) for each in kept]
    newest_ns = max(time_ns for time_ns, _ in times)
    return _encode(
        _Snapshot(
            kept[0].handler,
            kept[0].version,
            _Groups(newest_ns, groups),
            times if keeps_times else None,
        )
    )


def split(snapshot: bytes, count: int, partition_of: Callable[[str], int]) -> list[bytes] | None:
    """Return the snapshots for partitions, None if the snapshot is not one of a `PerGroup`.

    Args:
        snapshot: what `join` returned, or what a handler wrote without partitions.
        count: how many partitions there are.
        partition_of: returns the partition of a group.
    """
    try:
        (kept,) = _read_all([snapshot])
    except StateError:
        return None
    groups: list[list[tuple[str, int, Any]]] = [[] for _ in range(count)]
    for group in kept.state.groups:
        groups[partition_of(group[0])].append(group)
    times = kept.partitions
    if times is None or len(times) != count:
        times = [(kept.state.newest_ns, None)] * count
    return [
        _encode(_Snapshot(kept.handler, kept.version, _Groups(newest_ns, share, strays)))
        for share, (newest_ns, strays) in zip(groups, times, strict=True)
    ]


def _read_all(snapshots: Sequence[bytes]) -> list[_Snapshot[Any]]:
    try:
        try:
            return [_RAW.decode(each) for each in snapshots]
        except msgspec.MsgspecError:
            # Python's json module also reads NaN and infinities.
            return [msgspec.convert(json.loads(each), _Snapshot[Any]) for each in snapshots]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StateError(f"the snapshot is not one of a PerGroup: {error}") from error


def _encode(snapshot: _Snapshot[Any]) -> bytes:
    if all(isinstance(group[2], msgspec.Raw) for group in snapshot.state.groups):
        return msgspec.json.encode(snapshot)
    plain = msgspec.to_builtins(snapshot)
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()
