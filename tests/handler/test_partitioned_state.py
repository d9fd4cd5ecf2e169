"""Joining the snapshots of partitions, and splitting them again."""

from __future__ import annotations

import datetime as dt
import json
import math
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.handler.errors import StateError
from kapudf_cli.handler.partitioned_state import join, split
from kapudf_cli.handler.state import PerGroup, State, dump, load

if TYPE_CHECKING:
    from collections.abc import Iterable


class Seen(State):
    value: float = 0.0


def partition(group: str) -> int:
    """Put groups with an even number into partition 0, and others into 1."""
    return int(group) % 2


def snapshot(groups: Iterable[tuple[str, int, float]], *, expiry_s: float | None = None) -> bytes:
    """Return the snapshot of groups that were used at some times, with values."""
    expiry = None if expiry_s is None else dt.timedelta(seconds=expiry_s)
    state = PerGroup(Seen, expiry=expiry)
    for group, time_ns, value in groups:
        state.at(group, time_ns).value = value
    return dump(state, handler="H", version=3)


def joined(*snapshots: bytes, keeps_times: bool = False) -> bytes:
    return join(snapshots, partition, may_overlap=False, keeps_times=keeps_times)


EVEN = [("0", 10, 1.0), ("2", 30, 2.0)]
ODD = [("1", 20, 3.0), ("3", 40, 4.0)]


def test_the_joined_snapshot_is_that_of_one_state() -> None:
    one = snapshot(sorted([*EVEN, *ODD], key=lambda each: each[1]))
    assert joined(snapshot(EVEN), snapshot(ODD)) == one
    assert split(one, 2, partition) == [
        # The stream's time is that of all groups.
        snapshot(EVEN).replace(b'"newest_ns":30', b'"newest_ns":40'),
        snapshot(ODD),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_no_json_are_kept(value: float) -> None:
    both = joined(snapshot([("0", 1, value)]), snapshot(ODD))
    state = load(PerGroup(Seen), both, handler="H", version=3)
    assert isinstance(state, PerGroup)
    assert str(state.at("0", 1).value) == str(value)
    assert split(both, 2, partition) is not None


def test_the_time_of_each_partition_is_kept_if_groups_expire() -> None:
    parts = [snapshot(EVEN, expiry_s=1), snapshot(ODD, expiry_s=1)]
    both = joined(*parts, keeps_times=True)
    assert split(both, 2, partition) == parts
    # For another number, the latest time counts.
    shares = split(both, 3, lambda group: int(group) % 3)
    assert shares is not None
    assert {json.loads(each)["state"]["newest_ns"] for each in shares} == {40}
    # Without partitions, the times are passed over.
    state = load(PerGroup(Seen), both, handler="H", version=3)
    assert isinstance(state, PerGroup)
    assert list(state) == ["0", "1", "2", "3"]


def test_a_key_that_is_no_group_is_an_error() -> None:
    with pytest.raises(StateError, match="key '2', which is no group of a point"):
        joined(snapshot(EVEN), snapshot(EVEN[1:]))


def test_groups_of_other_partitions_are_left_out_if_they_may_be_there() -> None:
    whole = snapshot([*EVEN, *ODD])
    both = join([whole, whole], partition, may_overlap=True, keeps_times=False)
    assert sorted(group for group, _, _ in json.loads(both)["state"]["groups"]) == list("0123")


@pytest.mark.parametrize("foreign", [b"", b"\xff", b"5", b'{"handler":"H","version":1,"state":{}}'])
def test_another_snapshot_cannot_be_split(foreign: bytes) -> None:
    assert split(foreign, 2, partition) is None


def test_without_state_there_is_nothing_to_join() -> None:
    assert joined(b"", b"") == b""
