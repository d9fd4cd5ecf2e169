"""State: snapshots, restoring them, and dropping groups."""
# ruff: noqa: RUF012 - the fields of a msgspec struct: their defaults are copied

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import subprocess
import sys
import time
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given

from kapudf_cli.handler.errors import StateError
from kapudf_cli.handler.state import (
    STRAY_POINTS,
    PerGroup,
    Snapshot,
    State,
    create,
    dump,
    from_plain,
    inspect_snapshot,
    load,
)
from kapudf_cli.protocol.udf_pb2 import Point

SECOND_NS = 1_000_000_000


class Seen(State):
    """The smallest useful state."""

    count: int = 0
    values: list[float] = []


class Nested(State):
    when: dt.datetime = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    pair: tuple[int, str] = (0, "")


class Rich(State):
    """A field of each type that a state may have."""

    count: int = 0
    mean: float = 0.0
    name: str = ""
    known: bool = False
    maybe: float | None = None
    values: list[float] = []
    by_name: dict[str, int] = {}
    nested: Nested = msgspec.field(default_factory=Nested)
    many: list[Nested] = []


INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.builds(
    Nested,
    when=st.datetimes(timezones=st.just(dt.UTC)),
    pair=st.tuples(INTS, st.text()),
)
RICH = st.builds(
    Rich,
    count=INTS,
    mean=FLOATS,
    name=st.text(),
    known=st.booleans(),
    maybe=st.none() | FLOATS,
    values=st.lists(FLOATS),
    by_name=st.dictionaries(st.text(), INTS),
    nested=NESTED,
    many=st.lists(NESTED, max_size=3),
)


def per_group(
    annotation: Any = PerGroup[Seen],
    *,
    limit: int | None = None,
    expiry: dt.timedelta | None = None,
) -> PerGroup[Any]:
    made = create(annotation, limit=limit, expiry=expiry)
    assert isinstance(made, PerGroup)
    return made


def dumped(state: State | PerGroup[Any]) -> bytes:
    return dump(state, handler="Count", version=1)


def loaded(state: State | PerGroup[Any], snapshot: bytes) -> Any:
    return load(state, snapshot, handler="Count", version=1)


def contents(state: PerGroup[Any]) -> dict[str, Any]:
    """Return the states of groups without marking them as used."""
    return {group: entry.state for group, entry in state._entries.items()}


# --- created from an annotation ---


def test_a_plain_state_is_made_with_its_defaults() -> None:
    first, second = (create(Seen, limit=None, expiry=None) for _ in range(2))
    assert first == Seen(count=0, values=[])
    assert isinstance(first, Seen)
    first.values.append(1.0)
    assert second == Seen()


def test_a_state_for_each_group_is_made_empty() -> None:
    state = per_group()
    assert (len(state), list(state), state.dropped) == (0, [], 0)


class Required(State):
    count: int


@pytest.mark.parametrize("annotation", [Required, PerGroup[Required]], ids=["plain", "per group"])
def test_a_field_without_a_default_raises_at_once(annotation: object) -> None:
    with pytest.raises(TypeError, match="Missing required argument 'count'"):
        create(annotation, limit=None, expiry=None)


@pytest.mark.parametrize(
    "annotation",
    [int, dict[str, Seen], list[Seen], Seen | None, PerGroup, PerGroup[int], State(), "Seen"],  # type: ignore[type-var]  # that is the mistake
    ids=str,
)
def test_an_annotation_that_is_no_state_raises(annotation: object) -> None:
    with pytest.raises(TypeError, match=r"^state: .* is neither a subclass of State nor PerGroup"):
        create(annotation, limit=None, expiry=None)


class Left(State):
    left: int = 0


class Right(State):
    right: int = 0


class Ambiguous(State):
    """A state with a field of two types that are the same in JSON."""

    side: Left | Right | None = None


@pytest.mark.parametrize("annotation", [Ambiguous, PerGroup[Ambiguous]], ids=["plain", "per group"])
def test_a_type_that_cannot_be_restored_raises_at_once(annotation: object) -> None:
    with pytest.raises(TypeError, match="tagged"):
        create(annotation, limit=None, expiry=None)


class Odd(State):
    odd: complex = 0j


def test_a_type_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="complex"):
        dumped(Odd())


# --- round trips ---


@given(RICH)
def test_any_plain_state_comes_back(state: Rich) -> None:
    snapshot = dumped(state)
    assert loaded(Rich(), snapshot) == state
    assert dumped(loaded(Rich(), snapshot)) == snapshot


@given(st.dictionaries(st.text(), RICH, max_size=4), st.booleans())
def test_any_states_of_groups_come_back(states: dict[str, Rich], limited: bool) -> None:  # noqa: FBT001 - drawn
    limit = 1000 if limited else None
    state = per_group(PerGroup[Rich], limit=limit)
    for when, (group, rich) in enumerate(states.items()):
        state.at(group, when)
        state._entries[group].state = rich
    snapshot = dumped(state)
    back = loaded(per_group(PerGroup[Rich], limit=limit), snapshot)
    assert contents(back) == states
    assert list(back) == list(states)
    assert dumped(back) == snapshot


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_float_that_is_not_finite_comes_back_or_is_refused(value: float) -> None:
    try:
        snapshot = dumped(Seen(values=[1.0, value]))
    except (TypeError, ValueError):
        return
    assert repr(loaded(Seen(), snapshot)) == repr(Seen(values=[1.0, value]))


def test_a_huge_integer_comes_back() -> None:
    assert loaded(Seen(), dumped(Seen(count=10**50))) == Seen(count=10**50)


def test_a_snapshot_is_json_that_people_can_read() -> None:
    snapshot = dump(Seen(count=3, values=[1.5]), handler="Count", version=7)
    assert snapshot == b'{"handler":"Count","version":7,"state":{"count":3,"values":[1.5]}}'


def test_a_snapshot_of_groups_is_json_that_people_can_read() -> None:
    state = per_group(expiry=dt.timedelta(seconds=10))
    state.at("host=a", 5).count = 1
    state.at("host=b", 7).count = 2
    found = json.loads(dumped(state))
    assert found["handler"] == "Count"
    assert found["state"]["newest_ns"] == 7
    assert found["state"]["groups"] == [
        ["host=a", 5, {"count": 1, "values": []}],
        ["host=b", 7, {"count": 2, "values": []}],
    ]


def test_new_fields_get_defaults_and_removed_ones_are_ignored() -> None:
    snapshot = b'{"handler":"Count","version":1,"state":{"count":4,"gone":true}}'
    assert loaded(Seen(), snapshot) == Seen(count=4)


def test_a_reformatted_snapshot_is_accepted() -> None:
    pretty = json.dumps(json.loads(dumped(Seen(count=4))), indent=2).encode()
    assert loaded(Seen(), pretty) == Seen(count=4)


# --- invalid snapshots ---


GOOD = dumped(Seen(count=3, values=[1.5]))

FOREIGN: dict[str, tuple[bytes, str]] = {
    "another handler": (
        dump(Seen(), handler="Other", version=1),
        "the snapshot is of handler Other, not Count",
    ),
    "another version": (
        dump(Seen(), handler="Count", version=2),
        "the snapshot is of version 2, not 1",
    ),
    "another handler and version": (
        dump(Seen(), handler="Other", version=2),
        "the snapshot is of handler Other, not Count",
    ),
    "a field of another type": (
        b'{"handler":"Count","version":1,"state":{"count":"3"}}',
        "the snapshot does not fit the state: Expected `int`, got `str` - at `$.count`",
    ),
    "no object": (
        b'{"handler":"Count","version":1,"state":[]}',
        "the snapshot does not fit the state: Expected `object`, got `array`",
    ),
    "no state": (
        b'{"handler":"Count","version":1}',
        "the snapshot is not one that a State wrote: Object missing required field `state`",
    ),
    "empty": (b"", "the snapshot is not one that a State wrote: "),
    "of older code": (
        b"17",
        "the snapshot is not one that a State wrote: Expected `object`, got `int`",
    ),
    "pickled": (b"\x80\x04K\x03.", "the snapshot is not one that a State wrote: "),
    "cut off": (GOOD[:-3], "the snapshot is not one that a State wrote: "),
    "with more behind it": (GOOD + b"x", "the snapshot is not one that a State wrote: "),
    "another encoding": (
        GOOD.replace(b"Count", b"Co\xfcnt"),
        "the snapshot is not one that a State wrote",
    ),
    "endless": (
        b'{"handler":"Count","version":1,"state":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "the snapshot ",
    ),
}


@pytest.mark.parametrize(("snapshot", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_snapshot_that_is_not_of_this_state_is_refused_with_a_reason(
    snapshot: bytes, message: str
) -> None:
    with pytest.raises(StateError) as caught:
        loaded(Seen(), snapshot)
    assert str(caught.value).startswith(message)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@example(GOOD.index(b"Count"), 0xFF)
def test_a_damaged_snapshot_is_a_state_error_or_still_one(place: int, byte: int) -> None:
    damaged = GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]
    with contextlib.suppress(StateError):
        assert isinstance(loaded(Seen(), damaged), Seen)


@given(st.binary())
def test_any_bytes_are_refused_as_a_state_error(snapshot: bytes) -> None:
    with pytest.raises(StateError):
        loaded(per_group(), snapshot)
    assert inspect_snapshot(snapshot) == Snapshot(None, None, None, snapshot)


@pytest.mark.parametrize(
    "groups",
    [
        b'[["a",1,{"count":2}],["b",1,{"count":"x"}]]',
        b'[["a",1,{"count":2}],["b",1]]',
        b'[["a",1,{"count":2}],["b","x",{}]]',
        b'{"a":{"count":2}}',
    ],
    ids=["a type", "too short", "a time", "an object"],
)
def test_groups_that_do_not_fit_leave_the_state_as_it_was(groups: bytes) -> None:
    state = per_group()
    state.at("kept", 1).count = 9
    body = b'{"newest_ns":1,"groups":' + groups + b"}"
    with pytest.raises(StateError, match=r"^the snapshot does not fit the state: "):
        loaded(state, b'{"handler":"Count","version":1,"state":' + body + b"}")
    assert contents(state) == {"kept": Seen(count=9)}


def test_a_plain_snapshot_does_not_fit_groups_and_the_reverse() -> None:
    with pytest.raises(StateError, match=r"^the snapshot does not fit the state: "):
        loaded(per_group(), dumped(Seen(count=1)))
    with pytest.raises(StateError, match=r"^the snapshot does not fit the state: "):
        loaded(Seen(), b'{"handler":"Count","version":1,"state":[]}')


# --- plain Python, for a migration ---


#: New state classes, each restored for the first time by eight threads at once.
FIRST_USES = """
import sys, threading
from kapudf_cli.handler.state import PerGroup, State, create, dump, load
from kapudf_cli.protocol.udf_pb2 import Point

sys.setswitchinterval(1e-6)

def restored(kind, before, snapshot, counts):
    before.wait()
    state = load(create(kind, limit=None, expiry=None), snapshot, handler="h", version=1)
    counts.append((state.of(Point(group="g")) if kind is per_group else state).count)

for number in range(40):
    class Fresh(State):
        count: int = 0
        total: float = 0.0
    per_group = PerGroup[Fresh]
    groups = create(per_group, limit=None, expiry=None)
    groups.of(Point(group="g")).count = number
    for kind, state in ((per_group, groups), (Fresh, Fresh(number))):
        snapshot, before, counts = dump(state, handler="h", version=1), threading.Barrier(8), []
        arguments = (kind, before, snapshot, counts)
        threads = [threading.Thread(target=restored, args=arguments) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [number] * 8, counts
"""


def test_many_threads_may_restore_a_state_for_the_first_time_at_once() -> None:
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", FIRST_USES],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_a_snapshot_can_be_inspected() -> None:
    raw = dump(Seen(count=3, values=[1.5]), handler="Other", version=4)
    assert inspect_snapshot(raw) == Snapshot("Other", 4, {"count": 3, "values": [1.5]}, raw)


@pytest.mark.parametrize(
    "snapshot", [b"", b"17", b"null", b"[]", b'{"version":1}', GOOD[:-1], b"\xff", b'"\xff"']
)
def test_bytes_of_another_program_have_no_content(snapshot: bytes) -> None:
    assert inspect_snapshot(snapshot) == Snapshot(None, None, None, snapshot)


@given(RICH)
def test_the_content_of_a_snapshot_can_be_restored(state: Rich) -> None:
    content = inspect_snapshot(dumped(state)).content
    assert from_plain(Rich(), content) == state


def test_groups_can_be_migrated_as_plain_python() -> None:
    state = per_group(limit=3)
    state.at("a", 5).count = 1
    state.at("b", 6).count = 2
    content = inspect_snapshot(dumped(state)).content
    for _, _, each in content["groups"]:
        each["count"] *= 10
    back = from_plain(per_group(limit=3), content)
    assert isinstance(back, PerGroup)
    assert contents(back) == {"a": Seen(count=10), "b": Seen(count=20)}


def test_plain_python_that_does_not_fit_is_refused() -> None:
    with pytest.raises(StateError, match="Expected `int`, got `str`"):
        from_plain(Seen(), {"count": "x"})
    with pytest.raises(StateError):
        from_plain(Seen(), {"count": object()})


# --- groups ---


def test_each_group_has_a_state_of_its_own() -> None:
    state = per_group()
    for group in ("host=a", "host=b", "host=a"):
        state.of(Point(group=group, time=1)).count += 1
    assert contents(state) == {"host=a": Seen(count=2), "host=b": Seen(count=1)}
    assert "host=a" in state
    assert "host=c" not in state
    assert len(state) == 2


def test_points_without_a_group_have_one_state() -> None:
    state = per_group()
    state.of(Point(time=1)).count += 1
    state.of(Point(time=2)).count += 1
    assert contents(state) == {"": Seen(count=2)}


def test_looking_up_a_group_creates_no_state() -> None:
    state = per_group(limit=2)
    state.at("a", 1)
    state.at("b", 2)
    assert "a" in state
    assert "c" not in state
    assert list(state) == ["a", "b"]
    state.at("c", 3)
    assert list(state) == ["b", "c"]


def test_a_discarded_group_starts_with_an_empty_state() -> None:
    state = per_group(limit=5)
    state.at("a", 1).count = 5
    state.discard("a")
    state.discard("never there")
    assert (len(state), state.dropped) == (0, 0)
    assert state.at("a", 2) == Seen()


@pytest.mark.parametrize("limit", [None, 10], ids=["any number", "a limit"])
def test_groups_come_in_the_order_of_their_use(limit: int | None) -> None:
    state = per_group(limit=limit)
    for when, group in enumerate(["a", "b", "c", "a"]):
        state.at(group, when)
    assert list(state) == ["b", "c", "a"]


def test_over_the_limit_the_least_recently_used_group_is_dropped() -> None:
    state = per_group(limit=2)
    for when, group in enumerate(["a", "b", "a", "c"]):
        state.at(group, when).count += 1
    assert contents(state) == {"a": Seen(count=2), "c": Seen(count=1)}
    assert state.dropped == 1
    assert state.at("b", 9) == Seen()
    assert state.dropped == 2


def test_a_group_expires_by_the_time_of_points() -> None:
    state = per_group(expiry=dt.timedelta(seconds=10))
    state.at("a", 0)
    state.at("b", 5 * SECOND_NS)
    state.at("c", 10 * SECOND_NS)
    assert list(state) == ["a", "b", "c"]
    state.at("c", 10 * SECOND_NS + 1)
    assert list(state) == ["b", "c"]
    assert state.dropped == 1
    state.at("d", 20 * SECOND_NS + 1)
    assert list(state) == ["c", "d"]
    assert state.dropped == 2


def test_a_single_wrong_time_drops_no_group_and_keeps_expiry() -> None:
    state = per_group(expiry=dt.timedelta(seconds=10))
    for time_s in range(100):
        state.at("used", time_s * SECOND_NS).count += 1
        state.at(f"once at {time_s}", time_s * SECOND_NS)
        if time_s % 10 == 5:
            state.at("wrong clock", (10**9 - 10**8 * time_s) * SECOND_NS)
            assert len(state) <= 13
    assert state.at("used", 100 * SECOND_NS).count == 100
    assert next(iter(state)) == "once at 90"


@pytest.mark.parametrize("first_s", [10**9, -(10**9)], ids=["ahead", "behind"])
def test_a_first_time_far_off_delays_expiry_by_a_bounded_number_of_points(first_s: int) -> None:
    state = per_group(expiry=dt.timedelta(seconds=10))
    state.at("wrong clock", first_s * SECOND_NS)
    for time_s in range(2 * STRAY_POINTS):
        state.at(f"once at {time_s}", time_s * SECOND_NS)
        assert len(state) <= STRAY_POINTS + 12
    assert len(state) == 11


def test_after_a_pause_the_groups_without_points_expire() -> None:
    state = per_group(expiry=dt.timedelta(seconds=10))
    for group in ("dead", "alive", "late"):
        state.at(group, 0)
    state.at("late", SECOND_NS)
    for number in range(STRAY_POINTS):
        assert "dead" in state
        group = "late" if number == 1 else "alive"
        state.at(group, 10**6 * SECOND_NS + number).count += 1
    assert list(state) == ["late", "alive"]
    assert state.at("alive", 10**6 * SECOND_NS).count == STRAY_POINTS - 1


def test_times_that_are_all_further_apart_than_the_expiry_keep_memory_bounded() -> None:
    state = per_group(expiry=dt.timedelta(seconds=10))
    for number in range(5 * STRAY_POINTS):
        state.at(f"once {number}", number * 60 * SECOND_NS)
        assert len(state) <= 3 * STRAY_POINTS


def test_a_restart_during_strays_changes_nothing() -> None:
    expiry = dt.timedelta(seconds=10)
    through, restarted = per_group(expiry=expiry), per_group(expiry=expiry)
    times = [0, 1, *range(500, 500 + 2 * STRAY_POINTS), 3, *range(9000, 9020)]
    for number, time_s in enumerate(times):
        for state in (through, restarted):
            state.at(f"once at {time_s}", time_s * SECOND_NS)
        if number % 100 == 0:
            restarted = loaded(per_group(expiry=expiry), dumped(restarted))
    assert dumped(through) == dumped(restarted)
    assert len(through) < 100


def test_a_snapshot_whose_newest_time_is_far_off_keeps_its_groups_and_expires_again() -> None:
    content = {"newest_ns": 10**18, "groups": [["a", 5, {"count": 1}], ["wrong", 10**18, {}]]}
    state = from_plain(per_group(expiry=dt.timedelta(seconds=10)), content)
    assert isinstance(state, PerGroup)
    for time_s in range(STRAY_POINTS + 100):
        assert state.at("a", time_s * SECOND_NS).count == 1
        state.at(f"once at {time_s}", time_s * SECOND_NS)
    assert len(state) == 12


def test_a_group_does_not_expire_by_its_own_silence() -> None:
    state = per_group(expiry=dt.timedelta(seconds=10))
    state.at("a", 0).count = 5
    assert state.at("a", 10**6 * SECOND_NS).count == 5


def test_a_late_point_does_not_make_a_group_older() -> None:
    state = per_group(expiry=dt.timedelta(seconds=10))
    state.at("a", 20 * SECOND_NS)
    state.at("a", 1 * SECOND_NS)
    state.at("b", 25 * SECOND_NS)
    assert list(state) == ["a", "b"]


def test_points_before_1970_expire_as_any_others() -> None:
    state = per_group(expiry=dt.timedelta(microseconds=5))
    state.at("a", -10_000).count = 3
    assert state.at("a", -9_000).count == 3
    state.at("b", -5_000)
    assert list(state) == ["a", "b"]
    state.at("b", -3_000)
    assert list(state) == ["b"]


@pytest.mark.parametrize("discarded", [False, True], ids=["by the limit", "by the handler"])
def test_the_group_in_use_is_never_dropped(discarded: bool) -> None:  # noqa: FBT001 - a parameter
    state = per_group(limit=1, expiry=dt.timedelta(seconds=10))
    state.at("ahead", 100 * SECOND_NS)
    if discarded:
        state.discard("ahead")
    state.at("behind", 1 * SECOND_NS).count = 1
    assert list(state) == ["behind"]
    assert state.at("behind", 2 * SECOND_NS).count == 1


USES = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60)), max_size=60)


@given(USES, st.none() | st.integers(1, 4), st.none() | st.integers(1, 30))
def test_the_same_points_give_the_same_state_also_across_a_restart(
    uses: list[tuple[str, int]], limit: int | None, expiry_s: int | None
) -> None:
    expiry = None if expiry_s is None else dt.timedelta(seconds=expiry_s)
    through = per_group(limit=limit, expiry=expiry)
    restarted = per_group(limit=limit, expiry=expiry)
    for group, time_s in uses:
        through.at(group, time_s * SECOND_NS).count += 1
        restarted.at(group, time_s * SECOND_NS).count += 1
        restarted = loaded(per_group(limit=limit, expiry=expiry), dumped(restarted))
    assert dumped(through) == dumped(restarted)
    assert contents(through) == contents(restarted)
    if limit is not None:
        assert len(through) <= limit


@given(USES, st.integers(1, 4))
def test_a_limit_keeps_just_the_groups_used_last(uses: list[tuple[str, int]], limit: int) -> None:
    state = per_group(limit=limit)
    order: list[str] = []
    made = 0
    for group, time_ns in uses:
        made += group not in state
        state.at(group, time_ns)
        order = [*(each for each in order if each != group), group][-limit:]
    assert list(state) == order
    assert state.dropped == made - len(order)


def test_a_lower_limit_drops_groups_at_restore() -> None:
    state = per_group(limit=5)
    for when, group in enumerate("abcab"):
        state.at(group, when)
    back = loaded(per_group(limit=2), dumped(state))
    assert list(back) == ["a", "b"]
    assert back.dropped == 1


def test_a_first_limit_keeps_the_groups_used_last() -> None:
    state = per_group()
    for when, group in enumerate("abca"):
        state.at(group, when)
    back = loaded(per_group(limit=2), dumped(state))
    assert list(back) == ["c", "a"]


def test_a_first_expiry_keeps_a_group_that_is_in_use() -> None:
    state = per_group()
    for time_s in range(100):
        state.at("a", time_s * SECOND_NS).count += 1
    back = loaded(per_group(expiry=dt.timedelta(seconds=10)), dumped(state))
    back.at("b", 101 * SECOND_NS)
    assert "a" in back


def test_a_snapshot_far_over_the_limit_is_restored_in_linear_time() -> None:
    groups = [[f"host={number}", number, {}] for number in range(200_000)]
    content = {"newest_ns": 200_000, "groups": groups}
    began_s = time.process_time()
    state = from_plain(per_group(limit=10), content)
    assert time.process_time() - began_s < 10
    assert isinstance(state, PerGroup)
    assert list(state) == [f"host={number}" for number in range(199_990, 200_000)]
    assert state.dropped == 199_990


def test_ten_thousand_groups_come_back() -> None:
    state = per_group(limit=10_000)
    for number in range(10_000):
        seen = state.at(f"host={number}", number)
        seen.count = number
        seen.values = [number / 7] * 10
    snapshot = dumped(state)
    back = loaded(per_group(limit=10_000), snapshot)
    assert contents(back) == contents(state)
    assert list(back) == list(state)
    assert back.dropped == 0


def test_a_state_for_each_group_can_be_made_without_a_handler() -> None:
    state = PerGroup(Seen, limit=1)
    state.at("a", 1).count = 1
    state.at("b", 1).count = 2
    assert contents(state) == {"b": Seen(count=2)}
