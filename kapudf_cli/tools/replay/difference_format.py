"""What a UDF changed, a line a point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapudf_cli.handler.points import get_fields
from kapudf_cli.protocol.udf_pb2 import BeginBatch, EndBatch
from kapudf_cli.system.terminal_text import printable
from kapudf_cli.tools.recordings.line_protocol import show_value
from kapudf_cli.tools.recordings.rfc3339 import write_time
from kapudf_cli.tools.replay.differences import Difference, Differences, Fate
from kapudf_cli.tools.replay.formats import end_of, series

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.protocol.codec import DataMessage

#: What each fate is called when they are counted.
_WORDS = {
    Fate.SAME: "as they were",
    Fate.CHANGED: "changed",
    Fate.LOST: "did not come back",
    Fate.NEW: "new",
}


class DifferenceFormat:
    """A line for each point that was sent or came back: its fate, its series, what changed.

    `=` came back as it was, `~` changed, `-` did not come back, `+` was not sent.
    """

    def __init__(
        self, emit: Callable[[str], None], paint: Callable[[str, Fate | None], str]
    ) -> None:
        """Hand each line to `emit`, which any thread may call, coloured by `paint`.

        `paint` is given a text and the fate that it tells of, None for a batch's lines.
        """
        self._emit = emit
        self._paint = paint
        self.differences = Differences(self._show)

    def take(self, message: DataMessage) -> None:
        """Take what came back."""
        self.differences.received(message)

    def finish(self) -> None:
        """Show what did not come back, and how many points had each fate."""
        self.differences.finish()
        counts = self.differences.counts
        counted = [f"{counts[fate]:,} {words}" for fate, words in _WORDS.items() if counts[fate]]
        if counted:
            self._emit(self._paint(f"# {', '.join(counted)}", None))

    def _show(self, told: Difference | BeginBatch | EndBatch) -> None:
        match told:
            case BeginBatch():
                self._emit(self._paint(f"# begin {series(told.name, told.tags)}", None))
            case EndBatch():
                end = f"# end {series(told.name, told.tags)} {end_of(told)}"
                self._emit(self._paint(end, None))
            case Difference():
                self._emit(self._line(told))

    def _line(self, told: Difference) -> str:
        which = f"{series(told.name, told.point.tags)} {write_time(told.point.time)}"
        changes = printable("  ".join(told.changes))
        line = f"{told.fate.value} {which}"
        if told.fate is Fate.NEW:
            fields = sorted(get_fields(told.point).items())
            shown = "  ".join(f"{name}={show_value(value)}" for name, value in fields)
            line = f"{line}  {printable(shown)}".rstrip()
        if told.fate is Fate.CHANGED:
            return f"{line}  {self._paint(changes, told.fate)}"
        return self._paint(line, told.fate)
