"""`kapudf replay`: send a recording through a UDF as a task would, and show the output."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from kapudf_cli.commands import options
from kapudf_cli.commands.options import Number, target_options
from kapudf_cli.commands.output import own_stdout, progress, say, warn
from kapudf_cli.system.terminal_text import counted, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kapudf_cli.client.target import Counts, Target
    from kapudf_cli.commands.output import Stdout
    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import Option
    from kapudf_cli.tools.dev import Report
    from kapudf_cli.tools.errors import RecordingError
    from kapudf_cli.tools.recordings.recording import Recording
    from kapudf_cli.tools.recordings.sources import Source
    from kapudf_cli.tools.replay.differences import Fate
    from kapudf_cli.tools.replay.feed import Feed
    from kapudf_cli.tools.replay.formats import Format
    from kapudf_cli.tools.replay.replay import Replay

#: With --keep-going, how many ill-formed lines are shown one by one.
_SHOWN_LINES = 10
#: With --diff, the colours of points by what happened to them; unchanged ones have none.
_COLOURS = {"+": "green", "-": "red", "~": "yellow"}


@dataclass
class _IllFormed:
    """Ends the replay at an ill-formed line or, with --keep-going, shows and counts it."""

    keep_going: bool
    count: int = 0

    def refuse(self, error: RecordingError) -> None:
        """Raise the error, or show and count it."""
        if not self.keep_going:
            raise error
        self.count += 1
        if self.count <= _SHOWN_LINES:
            say(f"skipped: {error}", err=True)
        if self.count == _SHOWN_LINES:
            say("skipped: more lines, which are only counted", err=True)


class _Plot:
    """The picture of --plot, which is drawn at the end.

    Attributes:
        changes: collects what is drawn.
        tell: takes the differences that --diff finds; None without --plot.
        differences: finds the differences without --diff; None without --plot.
    """

    def __init__(self, path: str | None, udf_options: Sequence[Option], *, compares: bool) -> None:
        from kapudf_cli.tools.plot.changes import Changes
        from kapudf_cli.tools.replay.differences import Differences

        texts = [value.stringValue for option in udf_options for value in option.values]
        self.changes = Changes(list(filter(None, texts)))
        self.differences = Differences(self.changes.take) if compares else None
        self.tell = None if path is None else self.changes.take
        self._path = path

    def take(self, message: DataMessage) -> None:
        """Compare a message that came back."""
        if self.differences is not None:
            self.differences.received(message)

    def draw(self, name: str, counts: Counts) -> None:
        """Draw the picture; all messages have been taken."""
        from kapudf_cli.tools.plot.drawing import draw

        if self._path is None:
            return
        if self.differences is not None:
            self.differences.finish()
        sent = f"{counted(counts.points_sent, 'point')} sent"
        title = f"{name}: {sent}, {counts.points_received:,} came back"
        draw(self.changes.picture(title), self._path)
        say(f"written: {self._path}", err=True)


def _report_to(ctx: click.Context, param: click.Parameter, value: int | None) -> Report | None:
    """Return the report for `kapudf dev`, which begins before the handler is loaded."""
    del ctx, param
    if value is None:
        return None
    from kapudf_cli.system.source_code import on_read
    from kapudf_cli.tools.dev import Report

    report = Report(value)
    on_read(report.file)
    return report


@click.command(short_help="Send a recording through a UDF, and show the output.")
@click.argument("file", type=options.RecordingPath(exists=True, dir_okay=False, allow_dash=True))
@target_options
@options.calls(example=".field('usage', 42.0).every(10s)")
@options.source_options("file", "FILE")
@click.option(
    "--group-by",
    metavar="TAGS",
    help="Group the stream by these tags (comma-separated), or by all: '*'.",
)
@click.option("--by-name", is_flag=True, help="Also group by measurement.")
@click.option("--measurement", metavar="NAME", help="Send only this measurement.")
@click.option(
    "--database",
    metavar="NAME",
    help="Send only this database. Points without one, as in line protocol, get this one.",
)
@click.option("--retention-policy", metavar="NAME", help="The same for the retention policy.")
@click.option(
    "--window",
    "period_ns",
    metavar="PERIOD",
    callback=options.period,
    help="Split the stream into batches, as |window().period(PERIOD).every(PERIOD) does.",
)
@click.option(
    "--speed",
    metavar="FACTOR",
    type=Number(min=0, min_open=True, max=1e9),
    help="Send at FACTOR times the recorded pace.  [default: as fast as possible]",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=0),
    help="Send at most N points, or of a batch recording N batches.",
)
@click.option(
    "--format",
    "shape",
    type=click.Choice(["lines", "json", "table"]),
    default="lines",
    show_default=True,
    help="Output format: line protocol, one JSON object per line, or a table.",
)
@options.as_json
@click.option(
    "--diff", is_flag=True, help="Show what the UDF changed, point by point, instead of its output."
)
@options.plot("what the UDF changed in each group")
@options.timeout(
    "How long the UDF may send nothing: the timeout in kapacitor.conf. Keepalives are sent "
    "at half of it."
)
@click.option(
    "--snapshot-to",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    callback=options.is_folder_there,
    help="Request a snapshot after the last point, and write it to this file.",
)
@click.option(
    "--restore-from",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    help="Restore this snapshot right after Init.",
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Continue after ill-formed lines and count them; the exit status is still 1.",
)
@click.option("--report", type=int, hidden=True, callback=_report_to)
def replay(
    *,
    source: Source,
    target: Target,
    calls: str,
    group_by: str | None,
    measurement: str | None,
    database: str | None,
    retention_policy: str | None,
    period_ns: int | None,
    speed: float | None,
    limit: int | None,
    shape: str,
    timeout_s: float,
    snapshot_to: str | None,
    restore_from: str | None,
    as_json: bool,
    by_name: bool,
    diff: bool,
    keep_going: bool,
    plot: str | None,
    report: Report | None,
) -> None:
    """Send a recording through a UDF as a task would, and print its output.

    FILE is a Kapacitor recording, stream (.srpl) or batch (.brpl), or line protocol,
    plain or compressed; - is standard input. It may also be a database of InfluxDB 1.x,
    influxdb://[USER:PASSWORD@]HOST[:8086]/DATABASE, with --query; $INFLUX_USERNAME and
    $INFLUX_PASSWORD keep a password out of the list of processes, and influxdbs:// uses
    TLS. The UDF may be in any language.

    Exits with 0 on success; with 1 if the UDF did something that fails a task, if a line
    is ill-formed, or if nothing was sent; and with 2 if the options are wrong or do not
    match the recording or the UDF.
    """
    from kapudf_cli.client.target import info_of
    from kapudf_cli.errors import KapudfError
    from kapudf_cli.protocol.udf_pb2 import InitRequest
    from kapudf_cli.tickscript.calls import check_calls, read_calls
    from kapudf_cli.tools.recordings.notation import Grouping
    from kapudf_cli.tools.replay.feed import Feed, Selection, Windows, check_compatible
    from kapudf_cli.tools.replay.replay import Replay

    shape = _checked_shape(shape, as_json=as_json, diff=diff)
    feed = Feed(
        selection=Selection(measurement, database, retention_policy),
        grouping=Grouping(_tags(group_by), by_name=by_name),
        windows=None if period_ns is None else Windows(period_ns),
        limit=limit,
        speed=speed,
    )
    parsed_calls = read_calls(calls)
    ill_formed = _IllFormed(keep_going)
    on_terminal = sys.stdout.isatty()
    with contextlib.suppress(BrokenPipeError), contextlib.ExitStack() as open_now:
        # If the reader closes stdout, the replay ends without an error.
        out = open_now.enter_context(own_stdout())
        info = info_of(target, timeout_s=timeout_s)
        udf_options = check_calls(parsed_calls, info)
        recording = open_now.enter_context(
            source.open(
                info.wants,
                refuse=ill_formed.refuse,
                warn=warn,
                retention_policy=retention_policy,
            )
        )
        check_compatible(info.wants, recording.kind, feed)
        out.live = on_terminal or speed is not None or recording.size_bytes is None
        plotted = _Plot(plot, udf_options, compares=plot is not None and not diff)
        shown = _shown(
            shape, out, diff=diff, on_terminal=on_terminal, report=report, plotted=plotted
        )
        connection = open_now.enter_context(target.open(timeout_s=timeout_s))
        run = Replay(connection, provides=info.provides, timeout_s=timeout_s)
        out.while_blocked = run.keep_alive
        messages = _compared(feed.messages(recording.records), shown, plotted)
        came_back = open_now.enter_context(
            contextlib.closing(
                run.run(
                    InitRequest(taskID="replay", nodeID="replay2", options=udf_options),
                    messages,
                    restore=None if restore_from is None else _read(restore_from),
                    take_snapshot=snapshot_to is not None,
                )
            )
        )
        began_s = ended_s = time.monotonic()
        failures = 0
        try:
            # On a terminal, the output itself shows the progress.
            with contextlib.nullcontext() if on_terminal else progress(recording, run.counts):
                for message in came_back:
                    shown.take(message)
                    plotted.take(message)
                    ended_s = time.monotonic()
            _check_that_points_were_sent(run.counts, recording, feed, ill_formed)
        except KapudfError:
            failures = 1
            raise
        finally:
            shown.finish()
            out.flush()
            errors = ill_formed.count + failures + _report_unwritable(shown)
            _summarize(run, ended_s - began_s, errors, recording, feed)
            plotted.draw(f"{target.name}{calls}", run.counts)
        _complete(report, run, target, snapshot_to)
        if errors:
            click.get_current_context().exit(1)


def _complete(report: Report | None, run: Replay, target: Target, snapshot_to: str | None) -> None:
    """Complete the report of a replay without errors, warn of silence, write the snapshot."""
    if report is not None:
        report.complete()
    _warn_of_silence(run.counts, target)
    _write(snapshot_to, run.snapshot)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise click.FileError(path, error.strerror) from error


def _write(path: str | None, snapshot: bytes | None) -> None:
    """Write the snapshot to the file, if both are given."""
    from kapudf_cli.errors import OutputError

    if path is None or snapshot is None:
        return
    try:
        Path(path).write_bytes(snapshot)
    except OSError as error:
        problem = f"{path}: the snapshot cannot be written: {error.strerror}"
        raise OutputError(problem) from error


def _checked_shape(shape: str, *, as_json: bool, diff: bool) -> str:
    """Return the format; refuse --format together with --diff or --json."""
    source = click.get_current_context().get_parameter_source("shape")
    if (diff or as_json) and source is not ParameterSource.DEFAULT:
        flag = "--diff has its own format" if diff else "--json is a format"
        raise click.UsageError(f"{flag}; remove --format")
    return "json" if as_json else shape


def _tags(group_by: str | None) -> tuple[str, ...] | None:
    tags = tuple(tag for tag in map(str.strip, (group_by or "").split(",")) if tag)
    return None if tags == ("*",) else tags


def _shown(
    shape: str,
    out: Stdout,
    *,
    diff: bool,
    on_terminal: bool,
    report: Report | None,
    plotted: _Plot,
) -> Format:
    """Return the formatter of the output."""
    from kapudf_cli.tools.replay.formats import (
        DifferenceFormat,
        JsonDifferenceFormat,
        JsonFormat,
        LineFormat,
        TableFormat,
    )

    if diff and shape == "json":
        return JsonDifferenceFormat(out.emit)
    if diff:
        colour = on_terminal and "NO_COLOR" not in os.environ
        emit = out.emit if report is None else _reported(out.emit, report)
        paint = _paint if colour else lambda text, _: text
        return DifferenceFormat(emit, paint, plotted.tell)
    match shape:
        case "json":
            return JsonFormat(out.emit, out.emit_part)
        case "table":
            return TableFormat(out.emit)
        case _:
            # Line protocol is printed unchanged, except on a terminal, which text must not control.
            return LineFormat(
                lambda line: out.emit(printable(line)) if on_terminal else out.emit(line)
            )


def _reported(emit: Callable[[str], None], report: Report) -> Callable[[str], None]:
    """Return a function that emits a line, and reports it if it is a point's."""

    def emit_and_report(line: str) -> None:
        emit(line)
        plain = click.unstyle(line)
        if not plain.startswith("#"):
            report.line(plain)

    return emit_and_report


def _paint(text: str, fate: Fate | None) -> str:
    if fate is None:
        return click.style(text, dim=True)
    colour = _COLOURS.get(fate.value)
    return click.style(text, fg=colour) if colour else text


def _compared(
    messages: Iterator[DataMessage], shown: Format, plotted: _Plot
) -> Iterator[DataMessage]:
    """Yield the messages; with --diff and --plot, record each as sent before it is sent."""
    from kapudf_cli.tools.replay.formats import DifferenceFormat

    differences = plotted.differences
    if isinstance(shown, DifferenceFormat):
        differences = shown.differences
    for message in messages:
        if differences is not None:
            differences.sent(message)
        yield message


def _check_that_points_were_sent(
    counts: Counts, recording: Recording, feed: Feed, ill_formed: _IllFormed
) -> None:
    """Fail a replay that sent no points.

    Raises:
        RecordingError: no point was sent, and --limit 0 was not given.
    """
    from kapudf_cli.tools.errors import RecordingError

    if counts.points_sent or ill_formed.count or feed.limit == 0:
        return
    if feed.left_out:
        reason = "it has no points of this measurement, database and retention policy"
    elif feed.windows is not None and feed.windows.held:
        held = counted(feed.windows.held, "point")
        reason = f"its {held} do not fill a window; choose a shorter --window"
    else:
        reason = "it has no points"
    raise RecordingError(recording.name, f"nothing was sent: {reason}")


def _report_unwritable(shown: Format) -> int:
    """Print how many points the output format cannot show to stderr; return the number."""
    from kapudf_cli.tools.replay.formats import LineFormat

    if not isinstance(shown, LineFormat) or shown.first_unwritable is None:
        return 0
    what = counted(shown.unwritable, "point")
    say(f"not printed: {what}; the first: {shown.first_unwritable}", err=True)
    return shown.unwritable


def _warn_of_silence(counts: Counts, target: Target) -> None:
    """Print a warning to stderr if nothing came back, unless the handler says that it drops all."""
    from kapudf_cli.client.target import HandlerTarget

    if counts.messages_received or not counts.points_sent:
        return
    if not isinstance(target, HandlerTarget):
        warn("the UDF wrote nothing")
    elif not target.handler.may_drop_all:
        warn(
            "the UDF wrote nothing; what `point` and `end_batch` of a handler return is written "
            "(`may_drop_all = True` in its class ends this warning)"
        )


def _summarize(run: Replay, seconds: float, errors: int, recording: Recording, feed: Feed) -> None:
    """Print to stderr which parts of the recording were not sent, and the summary."""
    tally = recording.tally
    if tally.passed_over:
        lines = counted(tally.passed_over, "line")
        say(f"skipped: {lines} (blank lines, comments, headers)", err=True)
    if tally.empty_batches:
        batches = counted(tally.empty_batches, "batch")
        say(f"not sent: {batches} without points, which Kapacitor does not send", err=True)
    if feed.left_out:
        records = counted(feed.left_out, "batch" if recording.kind.has_batches else "point")
        what = "another measurement, database or retention policy"
        say(f"not sent: {records} of {what}", err=True)
    if feed.windows is not None and feed.windows.held:
        held = counted(feed.windows.held, "point")
        say(f"not sent: {held} in the last, incomplete windows", err=True)
    say(_summary(run.counts, seconds, errors), err=True)
    if not run.settled:
        say(
            "output may be missing: the UDF was still sending when its input ended, "
            "and some UDFs then drop unsent output",
            err=True,
        )


def _summary(counts: Counts, seconds: float, errors: int) -> str:
    """Return how much was sent and came back, how fast, and how many errors there were."""
    rate = counts.points_sent / seconds if seconds else 0.0
    return (
        f"{_amount(counts.points_sent, counts.batches_sent)} sent, "
        f"{_amount(counts.points_received, counts.batches_received)} came back, "
        f"{counted(errors, 'error')}; {seconds:.2f} s, {rate:,.0f} points/s"
    )


def _amount(points: int, batches: int) -> str:
    amount = counted(points, "point")
    return f"{amount} in {counted(batches, 'batch')}" if batches else amount
