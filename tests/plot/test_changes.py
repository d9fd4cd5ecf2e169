"""What the picture of a replay shows."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from kapudf_cli import Point, set_field
from kapudf_cli.tools.plot.changes import Changes
from kapudf_cli.tools.plot.picture import Lines
from kapudf_cli.tools.replay.differences import Differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kapudf_cli.tools.plot.picture import Picture

#: A point that the UDF dropped.
DROPPED = None


def point(time: int, fields: dict[str, Any], host: str = "a", name: str = "cpu") -> Point:
    made = Point(
        name=name, time=time, tags={"host": host}, dimensions=["host"], group=f"host={host}"
    )
    for field, value in fields.items():
        set_field(made, field, value)
    return made


def picture(
    pairs: Iterable[tuple[Point | None, Point | None]], named: Sequence[str] = ()
) -> Picture:
    """Return the picture of points that were sent, each with what came back."""
    changes = Changes(named)
    differences = Differences(changes.take)
    for sent, received in pairs:
        if sent is not None:
            differences.sent(sent)
        if received is not None:
            differences.received(received)
    differences.finish()
    return changes.picture("title")


def series(pictured: Picture) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the lines and marks of each panel, by title and label."""
    return {
        panel.title: {
            line.label: [(int(t), v) for t, v in zip(line.places, line.values, strict=True)]
            for line in panel.lines
        }
        for panel in pictured.panels
        if isinstance(panel, Lines)
    }


def test_a_new_field_is_drawn_over_the_field_that_an_option_names() -> None:
    pairs = [
        (point(n, {"v": float(n), "w": 1}), point(n, {"v": float(n), "w": 1, "avg": n / 2}))
        for n in range(4)
    ]
    pictured = picture(pairs, named=["v"])
    assert series(pictured) == {
        "cpu host=a  v, avg": {
            "input: v (4)": [(0, 0), (1, 1), (2, 2), (3, 3)],
            "new: avg (4)": [(0, 0), (1, 0.5), (2, 1), (3, 1.5)],
        }
    }
    assert pictured.notes == ["Fields that the UDF did not change are left out."]


def test_a_new_field_of_another_size_has_a_panel_of_its_own() -> None:
    pairs = [
        (point(n, {"v": 100.0 + n}), point(n, {"v": 100.0 + n, "score": -n})) for n in range(4)
    ]
    assert list(series(picture(pairs, named=["v"]))) == ["cpu host=a  v", "cpu host=a  score"]


def test_a_changed_field_has_both_lines() -> None:
    """From its first change on, its output is complete."""
    outputs = [1.0, 2.0, 2.5, 4.0, 2.5]
    pairs = [
        (point(n, {"v": n + 1.0, "w": 0}), point(n, {"v": v, "w": 0}))
        for n, v in enumerate(outputs)
    ]
    assert series(picture(pairs)) == {
        "cpu host=a  v": {
            "input: v (5)": [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)],
            "changed: v (2)": [(2, 2.5), (3, 4), (4, 2.5)],
        }
    }


def test_dropped_points_are_marked_or_if_they_are_most_the_others() -> None:
    few = [(point(n, {"v": n}), point(n, {"v": n}) if n != 2 else DROPPED) for n in range(5)]
    assert series(picture(few))["cpu host=a  v  (1 of 5 points dropped)"]["dropped (1)"] == [(2, 2)]
    most = [(point(n, {"v": n}), point(n, {"v": n}) if n == 2 else DROPPED) for n in range(5)]
    title = "cpu host=a  v  (4 of 5 points dropped)"
    assert series(picture(most))[title]["came back (1)"] == [(2, 2)]
    every = [(point(n, {"v": n}), DROPPED) for n in range(5)]
    title = "cpu host=a  v  (5 of 5 points dropped)"
    assert list(series(picture(every))[title]) == ["input: v (5)"]


def test_flags_are_marks_but_the_usual_text_is_not() -> None:
    def output(n: int) -> dict[str, Any]:
        return {"v": n, "spike": n == 3, "state": "bad" if n > 7 else "ok", "old": "same"}

    pairs = [(point(n, {"v": n, "old": "same"}), point(n, output(n))) for n in range(10)]
    panel = series(picture(pairs))['cpu host=a  v  (not marked: state = "ok", 8)']
    assert panel == {
        "input: v (10)": [(n, n) for n in range(10)],
        "spike (1)": [(3, 3)],
        'state = "bad" (2)': [(8, 8), (9, 9)],
    }


def test_a_tag_that_was_set_is_a_flag() -> None:
    tagged = point(0, {"v": 1})
    tagged.tags["level"] = "critical"
    pairs = [(point(0, {"v": 1}), tagged), *((point(n, {"v": 1}),) * 2 for n in range(1, 4))]
    panel = series(picture(pairs))["cpu host=a  v"]
    assert panel["level = critical (1)"] == [(0, 1)]


def test_points_that_were_not_sent_are_drawn() -> None:
    pairs = [(point(n, {"v": n}), None) for n in range(4)]
    pairs.append((None, point(9, {"mean": 1.5}, name="summary")))  # type: ignore[arg-type]
    assert series(picture(pairs))["summary host=a  mean"] == {"new: mean (1)": [(9, 1.5)]}


def test_groups_with_the_most_marks_are_drawn_and_the_others_are_counted() -> None:
    pairs = [
        (point(n, {"v": n}, host), point(n, {"v": n, "bad": host == "h20"}, host))
        for n, host in itertools.product(range(3), [f"h{number:02}" for number in range(50)])
    ]
    pictured = picture(pairs)
    titles = list(series(pictured))
    assert titles[:3] == ["cpu host=h20  v", "cpu host=h00  v", "cpu host=h01  v"]
    assert len(titles) == 12
    assert pictured.notes == ["38 groups not drawn; those with the most marks are."]


def test_values_that_are_no_numbers_are_counted() -> None:
    odd = point(1, {"v": 1.0})
    odd.fieldsDouble["v"] = float("nan")
    pictured = picture([(point(0, {"v": 1.0}), point(0, {"v": 1.0})), (odd, DROPPED)])
    assert pictured.notes == ["1 value not drawn: NaN or infinite."]


def test_a_long_line_says_that_it_is_shortened() -> None:
    pairs = [(point(n, {"v": n % 7}), point(n, {"v": n % 7})) for n in range(5_000)]
    (note,) = picture(pairs).notes
    assert "lowest and the highest value of each column" in note


def test_a_replay_without_points_is_a_picture_without_panels() -> None:
    assert picture([]).panels == []
