"""Old names of the handler's interface, which work for one more release."""

from __future__ import annotations

import contextlib
import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest

from kapudf_cli.handler.handler import Handler
from kapudf_cli.handler.points import get_field, set_field
from kapudf_cli.handler.state import PerGroup, State, dump, inspect_snapshot, peek
from kapudf_cli.testing import Task, TaskFailedError, grouped, lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.protocol.udf_pb2 import Point


class Seen(State):
    count: int = 0


class Counts(Handler):
    state: PerGroup[Seen]

    def point(self, point: Point) -> Point:
        seen = self.state.of(point)
        seen.count += 1
        set_field(point, "count", seen.count)
        return point


class Bounded(Counts):
    state_limit = 2
    state_expiry = dt.timedelta(seconds=10)


class Versioned(Counts):
    state_version = 3
    foreign_state = "refuse"


class Migrates(Counts):
    def migrate(self, handler: str, version: int, content: Any) -> Any:  # type: ignore[override]  # the old form
        content["groups"][0][2]["count"] += 10 * version
        return content if handler == "Counts" else None


class Stops(Counts):
    def stop(self) -> None:
        self.agent.write_point(lines("m stopped=true 1")[0])
        super().stop()


def group_counts(task: Task) -> list[object]:
    points = grouped(lines("m,h=a v=1 1", "m,h=b v=1 2", "m,h=c v=1 3", "m,h=a v=1 4"), "h")
    return [get_field(point, "count") for point in task.send(*points).points]


@contextlib.contextmanager
def started(handler: type[Handler], *texts: str) -> Iterator[Task]:
    """Start a task whose class is warned of when it is loaded, once with each text."""
    task = contextlib.ExitStack()
    with pytest.warns(DeprecationWarning, match=handler.__name__) as warned:
        side = task.enter_context(Task.of(handler))
    assert [str(each.message) for each in warned] == [f"{handler.__name__}: {t}" for t in texts]
    assert {each.filename for each in warned} == {__file__}
    with task:
        side.init()
        yield side


def test_limit_and_expiry_of_groups() -> None:
    with started(
        Bounded,
        "state_limit is deprecated; write state = PerGroup(MyState, limit=...)",
        "state_expiry is deprecated; write state = PerGroup(MyState, expiry=...)",
    ) as task:
        assert group_counts(task) == [1, 1, 1, 1]
        content = inspect_snapshot(task.snapshot()).content
        assert [name for name, _, _ in content["groups"]] == ["h=c", "h=a"]


def test_version_and_refusal() -> None:
    with started(
        Versioned,
        "state_version is deprecated; write class MyState(State, version=2)",
        "foreign_state is deprecated; write on_state_mismatch",
    ) as task:
        assert inspect_snapshot(task.snapshot()).version == 3
        with pytest.raises(TaskFailedError, match="is of version 1, not 3"):
            task.restore(dump(PerGroup(Seen), handler="Versioned", version=1))


def test_migrate_with_three_arguments() -> None:
    with Task.of(Counts) as task:
        task.init()
        group_counts(task)
        snapshot = task.snapshot()
    with started(
        Migrates,
        "migrate(self, handler, version, content) is deprecated; "
        "write migrate(self, snapshot), which has these as attributes",
    ) as task:
        task.restore(b"of another program")
        assert group_counts(task) == [1, 1, 1, 2]
        task.restore(snapshot)
        # The snapshot has the groups b, c and a, in the order of their last points.
        assert group_counts(task) == [3, 12, 2, 4]


def test_stop_instead_of_teardown() -> None:
    with started(Stops, "the method stop is deprecated; rename it to teardown") as task:
        out = task.finish()
        assert [get_field(point, "stopped") for point in out.points] == [True]


def test_stop_is_not_called_if_a_subclass_has_teardown() -> None:
    class TearsDown(Stops):
        def teardown(self) -> Point:
            return lines("m torn=true 1")[0]

    with Task.of(TearsDown) as task:
        task.init()
        assert [get_field(point, "torn") for point in task.finish().points] == [True]


def test_peek_instead_of_inspect_snapshot() -> None:
    snapshot = dump(Seen(count=3), handler="Other", version=4)
    with pytest.warns(DeprecationWarning, match="use inspect_snapshot"):
        found = peek(snapshot)
    assert found == ("Other", 4, {"count": 3})
