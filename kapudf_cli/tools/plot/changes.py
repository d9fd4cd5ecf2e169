"""The picture of a replay: the input of each group, and what the UDF changed."""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kapudf_cli.handler.points import get_fields
from kapudf_cli.system.terminal_text import counted, printable
from kapudf_cli.tools.plot.envelope import MARK_COLUMNS, Envelope
from kapudf_cli.tools.plot.picture import Line, Lines, Picture, Role
from kapudf_cli.tools.recordings.line_protocol import show_value
from kapudf_cli.tools.replay.differences import Difference, Fate

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from kapudf_cli.handler.points import FieldValue
    from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch, Point

#: How many groups, and fields of a group, are followed.
_GROUPS: Final = 40
_FIELDS: Final = 16
#: How many groups that are not followed are counted.
_COUNTED_GROUPS: Final = 100_000
#: How many panels are drawn: of a picture, and of a group.
_PANELS: Final = 12
_PANELS_OF_A_GROUP: Final = 4
#: How many different flags of a group are marked.
_FLAGS: Final = 6
_OTHER_FLAGS: Final = "other flags"
#: A new field is drawn over an input field if their ranges of values overlap this much.
_LEAST_OVERLAP: Final = 0.05


def _marks() -> Envelope:
    return Envelope(MARK_COLUMNS)


@dataclass
class _Field:
    """The values of one field of a group, and its values where points have marks.

    Attributes:
        given: the input.
        output: the output, from the first value that differs from the input.
        changes: how many values differ.
        dropped: the input of points that did not come back.
        kept: the input of points that did.
        flags: the values of points with each flag.
    """

    given: Envelope = field(default_factory=Envelope)
    output: Envelope = field(default_factory=Envelope)
    changes: int = 0
    dropped: Envelope = field(default_factory=_marks)
    kept: Envelope = field(default_factory=_marks)
    flags: dict[str, Envelope] = field(default_factory=dict)

    @property
    def span(self) -> tuple[float, float]:
        return (self.given if self.given.count else self.output).span


@dataclass
class _Group:
    """What is drawn of a group, and its number of points with each fate."""

    label: str
    fields: dict[str, _Field] = field(default_factory=dict)
    fates: collections.Counter[Fate] = field(default_factory=collections.Counter)
    flags: collections.Counter[str] = field(default_factory=collections.Counter)
    fields_left_out: int = 0

    @property
    def marks(self) -> int:
        """How many points are marked. The fewer of the dropped and the other points are."""
        flagged = sum(self.flags.values()) - self.flags[self.usual_flag]
        kept = self.fates[Fate.SAME] + self.fates[Fate.CHANGED]
        return flagged + min(self.fates[Fate.LOST], kept)

    @property
    def usual_flag(self) -> str:
        """The flag that most points have, which is not marked; empty if there is none."""
        points = self.fates.total() - self.fates[Fate.LOST]
        flag, count = max(self.flags.items(), key=lambda item: item[1], default=("", 0))
        # A bool that is always true is as notable as one that is seldom.
        return flag if 2 * count > points and "=" in flag else ""


class Changes:
    """Collects what a UDF did to each point, in bounded memory."""

    def __init__(self, named: Collection[str] = ()) -> None:
        """Draw the fields that `named` has, such as values of the UDF's options, first."""
        self._named = list(named)
        self._groups: dict[tuple[str, str], _Group] = {}
        self._other_groups: set[tuple[str, str]] = set()
        #: In order; the number of names is that of groups times flags at most.
        self._flag_names: dict[str, None] = {}
        self._not_finite = 0

    def take(self, result: Difference | BeginBatch | EndBatch) -> None:
        """Add what happened to a point; other messages are ignored."""
        if not isinstance(result, Difference):
            return
        group = self._group(result)
        if group is None:
            return
        group.fates[result.fate] += 1
        before = {} if result.before is None else get_fields(result.before)
        numbers = self._numbers(before)
        if result.before is not None:
            time_ns = result.before.time
            is_dropped = result.fate is Fate.LOST
            for name, value in numbers.items():
                if (drawn := self._field(group, name)) is not None:
                    drawn.given.add(time_ns, value)
                    (drawn.dropped if is_dropped else drawn.kept).add(time_ns, value)
        if result.fate is not Fate.LOST:
            self._take_output(group, result, before, numbers)

    def _take_output(
        self,
        group: _Group,
        result: Difference,
        before: Mapping[str, FieldValue],
        numbers: dict[str, float],
    ) -> None:
        point = result.point
        after = before if result.fate is Fate.SAME else get_fields(point)
        for name, value in self._numbers(after).items():
            drawn = self._field(group, name)
            if drawn is not None:
                drawn.changes += numbers.get(name) != value
                if drawn.changes:
                    drawn.output.add(point.time, value)
            numbers.setdefault(name, value)
        for flag in self._flags(result, before, after):
            named = flag
            if flag not in group.flags and len(group.flags) >= _FLAGS:
                named = _OTHER_FLAGS
            self._flag_names.setdefault(named)
            group.flags[named] += 1
            for name, value in numbers.items():
                if (drawn := self._field(group, name)) is not None:
                    drawn.flags.setdefault(named, _marks()).add(point.time, value)

    def _flags(
        self, result: Difference, before: Mapping[str, FieldValue], after: Mapping[str, FieldValue]
    ) -> Iterator[str]:
        """Yield a name for each bool, string and tag that the UDF set, if it is not false."""
        for name, value in after.items():
            if isinstance(value, (bool, str)) and before.get(name) != value and value is not False:
                yield name if value is True else f"{name} = {show_value(value)}"
        tags = {} if result.before is None else dict(result.before.tags)
        if result.before is not None:
            for tag, text in result.point.tags.items():
                if tags.get(tag) != text:
                    yield f"{tag} = {text}"

    def _group(self, result: Difference) -> _Group | None:
        point = result.point if result.before is None else result.before
        key = (result.name, result.group)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= _GROUPS:
                if len(self._other_groups) < _COUNTED_GROUPS:
                    self._other_groups.add(key)
                return None
            group = self._groups[key] = _Group(_label(result, point))
        return group

    def _field(self, group: _Group, name: str) -> _Field | None:
        found = group.fields.get(name)
        if found is None:
            if len(group.fields) >= _FIELDS and name not in self._named:
                group.fields_left_out += 1
                return None
            found = group.fields[name] = _Field()
        return found

    def _numbers(self, fields: Mapping[str, FieldValue]) -> dict[str, float]:
        numbers = {}
        for name, value in fields.items():
            if isinstance(value, (bool, str)):
                continue
            if math.isfinite(value):
                numbers[name] = float(value)
            else:
                self._not_finite += 1
        return numbers

    # --- the picture ---

    def picture(self, title: str) -> Picture:
        """Return the picture of all points so far."""
        # Of groups with as many marks, the first ones come first.
        ranked = sorted(self._groups.values(), key=lambda group: -group.marks)
        panels: list[Lines] = []
        drawn_groups = drawn_fields = all_fields = 0
        for group in ranked:
            of_group = list(self._panels(group))
            if not of_group or len(panels) + len(of_group) > _PANELS:
                continue
            drawn_groups += 1
            all_fields += len(group.fields)
            drawn_fields += sum(lines for _, lines in of_group)
            panels += [panel for panel, _ in of_group]
        return Picture(title, panels, list(self._notes(drawn_groups, all_fields - drawn_fields)))

    def _notes(self, drawn_groups: int, other_fields: int) -> Iterator[str]:
        everything = [
            each
            for group in self._groups.values()
            for field_ in group.fields.values()
            for each in (field_.given, field_.output, *field_.flags.values())
        ]
        if any(each.is_joined for each in everything):
            yield (
                "Lines and marks with many points show the lowest and the highest value of each "
                "column of time."
            )
        more = "more than " * (len(self._other_groups) == _COUNTED_GROUPS)
        if left := len(self._groups) + len(self._other_groups) - drawn_groups:
            yield f"{more}{counted(left, 'group')} not drawn; those with the most marks are."
        if other_fields or any(group.fields_left_out for group in self._groups.values()):
            yield "Fields that the UDF did not change are left out."
        if self._not_finite:
            yield f"{counted(self._not_finite, 'value')} not drawn: NaN or infinite."

    def _panels(self, group: _Group) -> Iterator[tuple[Lines, int]]:
        """Yield the panels of a group, each with its number of fields."""
        given = {name: each for name, each in group.fields.items() if each.given.count}
        new = {name: each for name, each in group.fields.items() if not each.given.count}
        base = [name for name in self._named if name in given]
        base += [name for name in given if given[name].changes and name not in base]
        # Without a hint, a new field may belong to any of the others, or to none.
        base = base or sorted(given)[: _PANELS_OF_A_GROUP // 2]
        over: dict[str, list[str]] = {name: [] for name in base}
        alone = []
        for name, each in new.items():
            if not each.output.count:
                continue
            overlaps = {other: _overlap(given[other].span, each.span) for other in over}
            if not self._named and len(given) > 1:
                overlaps = {}
            best = max(overlaps, key=lambda other: overlaps[other], default="")
            if overlaps.get(best, 0.0) >= _LEAST_OVERLAP:
                over[best].append(name)
            else:
                alone.append(name)
        for name, names in list(over.items())[:_PANELS_OF_A_GROUP]:
            lines = list(self._lines(group, name, names))
            yield Lines(_title(group, [name, *names]), lines), 1 + len(names)
        for name in alone[: max(_PANELS_OF_A_GROUP - len(over), 1)]:
            yield Lines(_title(group, [name]), list(self._lines(group, name, []))), 1

    def _lines(self, group: _Group, name: str, over: list[str]) -> Iterator[Line]:
        field_ = group.fields[name]
        if field_.given.count:
            yield _line(f"input: {name}", field_.given, Role.INPUT)
        number = 0
        for each in (name, *over):
            output = group.fields[each].output
            if output.count:
                word = "changed" if group.fields[each].given.count else "new"
                role = Role.OUTPUT if number == 0 else Role.OTHER_OUTPUT
                count = group.fields[each].changes
                yield _line(f"{word}: {each}", output, role, number=number, count=count)
                number += 1
        dropped, kept = field_.dropped, field_.kept
        if 0 < dropped.count <= kept.count:
            yield _line("dropped", dropped, Role.DROPPED, is_marks=True)
        elif dropped.count and kept.count:
            yield _line("came back", kept, Role.KEPT, is_marks=True)
        flags = [flag for flag in field_.flags if flag != group.usual_flag]
        for number, flag in enumerate(flags):
            yield _line(
                printable(flag), field_.flags[flag], Role.FLAG, is_marks=True, number=number
            )


def _label(result: Difference, point: Point) -> str:
    tags = [f"{tag}={point.tags.get(tag, '')}" for tag in point.dimensions]
    # A point of a batch has no dimensions.
    values = tags or list(filter(None, [result.group.rpartition("\n")[2]]))
    return printable(" ".join([result.name, *values]))


def _title(group: _Group, names: list[str]) -> str:
    title = f"{group.label}  {', '.join(map(printable, names))}"
    if dropped := group.fates[Fate.LOST]:
        sent = counted(group.fates.total() - group.fates[Fate.NEW], "point")
        title += f"  ({dropped:,} of {sent} dropped)"
    if group.usual_flag:
        title += f"  (not marked: {printable(group.usual_flag)}, {group.flags[group.usual_flag]:,})"
    return title


def _line(
    label: str,
    envelope: Envelope,
    role: Role,
    *,
    is_marks: bool = False,
    number: int = 0,
    count: int | None = None,
) -> Line:
    times, values = envelope.points()
    label = f"{printable(label)} ({envelope.count if count is None else count:,})"
    return Line(label, times, values, role, is_marks=is_marks, number=number)


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return how much two ranges overlap, from 0 to 1."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    whole = max(one[1], other[1]) - min(one[0], other[0])
    if whole == 0:
        return 1.0
    return max(shared, 0.0) / whole
