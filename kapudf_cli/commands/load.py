"""`kapudf load`: measure a UDF's throughput, latency, CPU and memory under load."""

from __future__ import annotations

import itertools
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import click

from kapudf_cli.commands import options
from kapudf_cli.commands.options import Number, silenced, target_options
from kapudf_cli.commands.output import json_text, labelled, own_stdout, say, show_live, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapudf_cli.client.target import Target
    from kapudf_cli.commands.options import Decorator
    from kapudf_cli.protocol.codec import DataMessage
    from kapudf_cli.protocol.udf_pb2 import EdgeType, InfoResponse, Option
    from kapudf_cli.tools.errors import RecordingError
    from kapudf_cli.tools.load.engine import Measured
    from kapudf_cli.tools.load.work import Shape
    from kapudf_cli.tools.plot.picture import Picture
    from kapudf_cli.tools.recordings.sources import Source

#: How many points are generated; they are sent repeatedly.
_BLOCK_POINTS = 1_000
#: How many messages of a recording are read; they are sent repeatedly.
_RECORDED_MESSAGES = 100_000
_DEFAULT_DURATION_S = 10.0
#: How many samples --plot keeps; of a longer run, it keeps every second one.
_MAX_SAMPLES = 2_000


def _count(flag: str, within: tuple[int, int], default: int, text: str) -> Decorator:
    """Return an option for a count."""
    least, most = within
    return click.option(
        flag,
        metavar="N",
        type=click.IntRange(least, most),
        default=default,
        show_default=True,
        help=text,
    )


@click.command(short_help="Put a load on a UDF, and measure it.")
@target_options
@options.calls(
    example=".field('usage_idle').size(10)",
    otherwise="none, or if the UDF refuses that, made from the options that it declares",
)
@click.option(
    "--recording",
    metavar="FILE",
    type=options.RecordingPath(exists=True, dir_okay=False, readable=True),
    help="Send the points of a recording, repeatedly, instead of generated ones: a file, or "
    "influxdb://HOST:8086/DATABASE with --query.",
)
@options.source_options("recording", "the --recording")
@_count(
    "--fields", (1, 10_000), 10, "Double fields per point; the default is as in telegraf's cpu."
)
@_count("--tags", (0, 1_000), 2, "Tags per point.")
@_count("--groups", (1, 1_000), 8, "Groups; the points take turns.")
@_count("--batch-size", (1, 1_000), 100, "Points per batch, for a UDF that wants batches.")
@_count("--connections", (1, 500), 1, "Connections, as of so many tasks.")
@click.option(
    "--rate",
    type=Number(min=0, min_open=True, max=1e8),
    metavar="POINTS",
    help="Points per second over all connections.  [default: as many as possible]",
)
@click.option(
    "--duration",
    "duration_s",
    type=Number(min=0, min_open=True, max=86_400),
    metavar="SECONDS",
    help="How long to send.  [default: 10, unless --points is given]",
)
@click.option("--points", type=click.IntRange(min=1), metavar="N", help="Number of points to send.")
@click.option(
    "--bulk",
    is_flag=True,
    help="Send many points per system call. Kapacitor needs two calls per point.",
)
@options.timeout("How long the UDF may send nothing.")
@options.plot("the throughput over time, and the latency")
@options.as_json
def load(
    target: Target, calls: str | None, source: Source | None, timeout_s: float,
    *, as_json: bool, plot: str | None, **how: Any,
) -> None:  # fmt: skip
    """Put a UDF, in any language, under load and measure it.

    Latency is the time from when a point was due until it came back. With --rate, it
    includes the time that a point waited for earlier points. At full speed, it includes
    the time that points wait in the socket. If the UDF does not return one point for
    each point, the latency of keepalives is measured instead.

    CPU time and memory are those of the process at the socket and its descendants.
    Ctrl-C ends the run and shows the results so far.

    Exits with 1 if the UDF failed, hung, or closed the connection.
    """
    from kapudf_cli.client.target import info_of
    from kapudf_cli.tickscript.calls import check_calls, read_calls, write_calls
    from kapudf_cli.tools.load.engine import Engine, Plan
    from kapudf_cli.tools.load.work import Shape, Work

    target = silenced(target)
    read = None if calls is None else read_calls(calls)
    duration_s, points = how["duration_s"], how["points"]
    if duration_s is None and points is None:
        duration_s = _DEFAULT_DURATION_S
    plan = Plan(
        connections=how["connections"],
        rate=how["rate"],
        duration_s=duration_s,
        points=points,
        bulk=how["bulk"],
        timeout_s=timeout_s,
    )
    with own_stdout() as out:
        info = info_of(target, timeout_s=timeout_s)
        given = None if read is None else check_calls(read, info)
        if source is None:
            shape = Shape(fields=how["fields"], tags=how["tags"], groups=how["groups"])
            messages = _made(shape, info.wants, how["batch_size"])
        else:
            messages = _recorded(source, info.wants)
        udf_options = _accepted(target, info, messages, timeout_s) if given is None else given
        engine = Engine(target, Work(messages, udf_options), plan)
        live = sys.stderr.isatty()
        course = _Course()
        try:
            measured = engine.run(lambda each: course.take(each, live=live))
        finally:
            if live:
                show_live("")
        facts = _facts(target, write_calls(udf_options), plan.rate, measured)
        if as_json:
            out.emit(json_text(facts))
        else:
            for line in _table(facts):
                out.emit(line)
    if plot is not None:
        from kapudf_cli.tools.plot.drawing import draw

        course.take(measured)
        draw(course.picture(facts), plot)
        say(f"written: {plot}", err=True)


class _Course:
    """The number of points over time, for --plot."""

    def __init__(self) -> None:
        self._samples = [(0.0, 0, 0)]

    def take(self, measured: Measured, *, live: bool = False) -> None:
        """Add the results so far; show them on a terminal."""
        if live:
            _show_live(measured)
        if measured.elapsed_s > self._samples[-1][0]:
            self._samples.append((measured.elapsed_s, measured.sent, measured.returned))
        if len(self._samples) > _MAX_SAMPLES:
            del self._samples[1::2]

    def picture(self, facts: dict[str, Any]) -> Picture:
        """Return the picture of a run with these results."""
        from kapudf_cli.tools.plot.picture import Bars, Line, Lines, Picture, Role

        ends = [sample[0] for sample in self._samples[1:]]
        rates = [
            [(later[n] - now[n]) / (later[0] - now[0]) for now, later in pairwise(self._samples)]
            for n in (1, 2)
        ]
        throughput = [
            Line("sent", ends, rates[0], Role.INPUT),
            Line("came back", ends, rates[1], Role.OUTPUT),
        ]
        latency = f"latency of {facts['timed']}, ms"
        return Picture(
            f"{facts['target']}{facts['options']}: {facts['points_per_s']:,.0f} points/s",
            [
                Lines("points/s", throughput, "seconds"),
                Bars(latency, list(facts["latency_ms"].items()), decimals=3),
            ],
        )


def _accepted(
    target: Target, info: InfoResponse, messages: Sequence[DataMessage], timeout_s: float
) -> Sequence[Option]:
    """Return options that the UDF accepts: none, or some that name a field of the messages."""
    from kapudf_cli.client.session import Session, drain
    from kapudf_cli.protocol.udf_pb2 import InitRequest, InitResponse, Point
    from kapudf_cli.tools.options import first_accepted, generated

    def init(options: Sequence[Option]) -> InitResponse:
        request = InitRequest(taskID="kapudf-load", nodeID="udf1", options=options)
        with target.open(timeout_s=timeout_s) as connection:
            session = Session(connection, timeout_s=timeout_s)
            response = drain(session.ask(request, InitResponse, "Init"))
            session.part()
            return response

    if not info.options:
        return ()
    point = next(message for message in messages if isinstance(message, Point))
    field = min(point.fieldsDouble or point.fieldsInt, default="value")
    return first_accepted([(), *generated(info, field)], init, are_generated=True)


def _made(shape: Shape, wants: EdgeType, batch_size: int) -> Sequence[DataMessage]:
    from kapudf_cli.protocol.udf_pb2 import BATCH

    if wants == BATCH:
        return list(shape.batches(max(_BLOCK_POINTS // batch_size, 1) * batch_size, batch_size))
    return list(shape.points(_BLOCK_POINTS))


def _recorded(source: Source, wants: EdgeType) -> Sequence[DataMessage]:
    """Return the first messages of a recording, without an incomplete batch at the end."""
    from kapudf_cli.protocol.udf_pb2 import EndBatch, Point
    from kapudf_cli.tools.errors import IncompatibleError
    from kapudf_cli.tools.replay.feed import Feed, check_compatible

    def refuse(error: RecordingError) -> None:
        raise error

    with source.open(wants, refuse=refuse, warn=warn) as opened:
        feed = Feed()
        check_compatible(wants, opened.kind, feed)
        messages = list(itertools.islice(feed.messages(opened.records), _RECORDED_MESSAGES))
    if any(isinstance(message, EndBatch) for message in messages):
        while not isinstance(messages[-1], EndBatch):
            messages.pop()
    if not any(isinstance(message, Point) for message in messages):
        raise IncompatibleError(f"{opened.name}: the recording has no points to send")
    return messages


def _show_live(measured: Measured) -> None:
    rate = measured.sent / measured.elapsed_s if measured.elapsed_s else 0.0
    parts = [
        f"{measured.elapsed_s:.1f} s",
        f"{measured.sent:,} points",
        f"{rate:,.0f} points/s",
        f"p99 {measured.latencies.percentile_ns(99) / 1e6:.2f} ms",
    ]
    if measured.cpu_s is not None and measured.rss_bytes is not None:
        parts.append(f"CPU {measured.cpu_s / measured.elapsed_s:.0%}")
        parts.append(f"{measured.rss_bytes / 1e6:.0f} MB")
    show_live("   ".join(parts))


def _facts(target: Target, calls: str, rate: float | None, measured: Measured) -> dict[str, Any]:
    """Return the results in the form of the JSON output."""
    from kapudf_cli.tools.load.connection import PERCENTILES

    latencies = measured.latencies
    known = measured.cpu_s is not None and measured.sent > 0
    return {
        "target": target.name,
        "options": calls,
        "points_sent": measured.sent,
        "points_returned": measured.returned,
        "elapsed_s": round(measured.elapsed_s, 6),
        "points_per_s": round(measured.sent / measured.elapsed_s, 1),
        "rate": rate,
        "timed": measured.timed,
        "latency_ms": {
            **{
                f"p{percent:g}": round(latencies.percentile_ns(percent) / 1e6, 4)
                for percent in PERCENTILES
            },
            "max": round(latencies.max_ns / 1e6, 4),
        },
        "cpu_s": None if measured.cpu_s is None else round(measured.cpu_s, 3),
        "cpu_us_per_point": (
            round((measured.cpu_s or 0) / measured.sent * 1e6, 3) if known else None
        ),
        "rss_mb": None if measured.rss_bytes is None else round(measured.rss_bytes / 1e6, 1),
        "pids": list(measured.pids),
        "interrupted": measured.interrupted,
    }


def _table(facts: dict[str, Any]) -> list[str]:
    sent, returned, elapsed = facts["points_sent"], facts["points_returned"], facts["elapsed_s"]
    asked = f", {facts['rate']:,.0f} requested" if facts["rate"] else ""
    rows = [("options", facts["options"])] if facts["options"] else []
    rows += [
        ("points", f"{sent:,} sent, {returned:,} came back"),
        ("time", f"{elapsed:.2f} s{' (interrupted)' if facts['interrupted'] else ''}"),
        ("throughput", f"{facts['points_per_s']:,.0f} points/s{asked}"),
    ]
    for name, value in facts["latency_ms"].items():
        rows.append((f"latency {name}", f"{value:.3f} ms"))
    if facts["timed"] != "points":
        rows.append(("latency of", facts["timed"]))
    if facts["cpu_us_per_point"] is not None:
        share = facts["cpu_s"] / elapsed
        each = facts["cpu_us_per_point"]
        rows.append(("CPU", f"{facts['cpu_s']:.2f} s, {share:.0%} of one, {each:.2f} µs a point"))
    if facts["rss_mb"] is not None:
        rows.append(("memory", f"{facts['rss_mb']:.1f} MB at most"))
    width = max(len(name) for name, _ in rows) + 2
    return [line for name, text in rows for line in labelled(name, text, indent=width)]
