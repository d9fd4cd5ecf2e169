"""`kapudf replay`: recordings through handlers, sockets and processes; errors."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import pty
import re
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING

import click
import pytest

from kapudf_cli import Point, get_fields
from kapudf_cli.commands.replay import replay as command
from kapudf_cli.handler.batches import Batch
from kapudf_cli.protocol.codec import REQUESTS, RESPONSES
from kapudf_cli.protocol.framing import FrameReader
from kapudf_cli.protocol.udf_pb2 import (
    InfoRequest,
    InfoResponse,
    InitRequest,
    InitResponse,
    KeepaliveRequest,
    KeepaliveResponse,
)
from kapudf_cli.testing import grouped, lines
from kapudf_cli.tools.recordings.line_protocol import PRECISIONS, write
from kapudf_cli.tools.recordings.recording import open_recording
from tests.captured import points_of
from tests.handlers import recordings
from tests.peers import in_thread
from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kapudf_cli.protocol.codec import ResponseMessage
    from tests.serve_process import ServeProcess

STREAM = str(recordings.STREAM)
BATCH = str(recordings.BATCH)


def replay(
    *arguments: str, stdin: bytes | IO[bytes] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command; stdin is empty, bytes or a file."""
    given = stdin if stdin is not None and not isinstance(stdin, bytes) else None
    result = subprocess.run(
        [*KAPUDF, "replay", *arguments],
        stdin=given if given is not None else None if stdin is not None else subprocess.DEVNULL,
        input=stdin if isinstance(stdin, bytes) else None,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return subprocess.CompletedProcess(
        result.args, result.returncode, result.stdout.decode(), result.stderr.decode()
    )


def replayed(*arguments: str, stdin: bytes | IO[bytes] | None = None) -> str:
    """Return the output of a successful replay."""
    result = replay(*arguments, stdin=stdin)
    assert result.returncode == 0, result.stderr
    return result.stdout


def summary(*arguments: str) -> str:
    """Return the summary of a successful replay, without times."""
    result = replay(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stderr.splitlines()[-1].partition(";")[0]


def failure(*arguments: str, status: int = 1, stdin: bytes | None = None) -> str:
    """Return the error of a replay that fails with this status."""
    result = replay(*arguments, stdin=stdin)
    assert result.returncode == status, result.stderr
    # A traceback of the UDF itself is allowed.
    assert "kapudf_cli/commands" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    return last.removeprefix("Error: ")


def records_of(text: str, folder: Path) -> list[Point | Batch]:
    """Read output as a recording."""
    path = folder / "printed"
    path.write_text(text, encoding="utf-8", newline="")

    def refuse(error: Exception) -> None:
        raise error

    with open_recording(str(path), precision="ns", refuse=refuse) as recording:
        return list(recording.records)


def without_envelope(points: list[Point]) -> list[Point]:
    """Remove everything from points that line protocol cannot express."""
    for point in points:
        for name in ("database", "retentionPolicy", "group", "dimensions", "byName"):
            point.ClearField(name)
    return points


# --- what comes back ---


def test_a_stream_comes_back_through_the_mirror_point_for_point(tmp_path: Path) -> None:
    output = replayed(STREAM, "--handler", "mirror")
    expected = without_envelope(recordings.read_stream(recordings.STREAM))
    assert records_of(output, tmp_path) == expected
    assert replayed("-", "--handler", "mirror", stdin=output.encode()) == output


def test_batches_come_back_through_the_mirror_point_for_point(tmp_path: Path) -> None:
    output = replayed(BATCH, "--handler", "batch-mirror", "--format", "json")
    assert records_of(output, tmp_path) == recordings.read_batches(recordings.BATCH)
    assert (
        replayed("-", "--handler", "batch-mirror", "--format", "json", stdin=output.encode())
        == output
    )


def test_a_moving_average_is_that_of_a_direct_computation(tmp_path: Path) -> None:
    output = replayed(
        *(STREAM, "--handler", "moving-average", "--group-by", "host"),
        *("--options", ".field('usage_idle').size(5).as('idle')"),
    )
    history: dict[str, list[float]] = {}
    averaged = 0
    for point in records_of(output, tmp_path):
        assert isinstance(point, Point)
        fields = get_fields(point)
        if "usage_idle" not in fields:
            assert "idle" not in fields
            continue
        values = history.setdefault(point.tags["host"], [])
        values.append(float(fields["usage_idle"]))
        assert fields["idle"] == pytest.approx(statistics.fmean(values[-5:]), rel=1e-12)
        averaged += 1
    assert averaged > 100


def test_outliers_are_those_of_a_direct_computation(tmp_path: Path) -> None:
    output = replayed(
        *(BATCH, "--handler", "outliers", "--format", "json"),
        *("--options", ".field('usage_idle').scale(1.5)"),
    )
    found = records_of(output, tmp_path)
    expected = []
    for batch in recordings.read_batches(recordings.BATCH):
        values = [point.fieldsDouble["usage_idle"] for point in batch.points]
        first, _, third = statistics.quantiles(values, n=4, method="inclusive")
        low, high = first - 1.5 * (third - first), third + 1.5 * (third - first)
        expected.append(
            [p for p, value in zip(batch.points, values, strict=True) if not low <= value <= high]
        )
    assert sum(map(len, expected)) > 10
    # A batch without outliers is empty, and replay leaves it out, as Kapacitor does.
    assert [batch.points for batch in found if isinstance(batch, Batch)] == list(
        filter(None, expected)
    )


def test_windows_of_a_stream_are_those_of_kapacitor(tmp_path: Path) -> None:
    stream = tmp_path / "stream"
    stream.write_text("".join(replayed_lines(points_of("stream-01"))), encoding="utf-8", newline="")
    result = replay(
        *(str(stream), "--handler", "batch-mirror", "--format", "json"),
        *("--group-by", "host", "--window", "10s"),
    )
    batches = [each for each in records_of(result.stdout, tmp_path) if isinstance(each, Batch)]
    assert len(batches) == 36
    assert sum(len(batch.points) for batch in batches) == 142
    assert result.stderr.splitlines() == [
        "not sent: 8 points in the last, incomplete windows",
        result.stderr.splitlines()[-1],
    ]


def replayed_lines(points: list[Point]) -> list[str]:
    return [f"{write(point)}\n" for point in points]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_standard_input_may_be_any_recording(packed: bool) -> None:  # noqa: FBT001 - a parameter of the test
    plain = gzip.decompress(recordings.STREAM.read_bytes())
    data = recordings.STREAM.read_bytes() if packed else plain
    assert replayed("-", "--handler", "mirror", stdin=data) == replayed(
        STREAM, "--handler", "mirror"
    )
    batches = recordings.BATCH.read_bytes()
    assert replayed("-", "--handler", "batch-mirror", stdin=batches) == replayed(
        BATCH, "--handler", "batch-mirror"
    )


def test_a_socket_and_a_process_are_udfs_as_well(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    serve("mirror")
    expected = replayed(STREAM, "--handler", "mirror")
    assert replayed(STREAM, "--socket", socket_path) == expected
    command = " ".join([*KAPUDF, "exec", "--handler", "mirror"])
    assert replayed(STREAM, "--exec", command) == expected


# --- formats ---


def test_each_format_shows_batches() -> None:
    udf = (BATCH, "--handler", "batch-mirror", "--limit", "2")
    ends = ["cpu,host=server00 tmax=2020-09-13T12:27:40Z", "cpu,host=server01 tmax=2020-"]
    output = replayed(*udf)
    assert output.startswith("# begin cpu,host=server00\ncpu,host=server00 n_cpus=13.0,")
    assert all(f"# end {end}" in output for end in ends)
    assert [
        len(json.loads(line)["points"]) for line in replayed(*udf, "--format", "json").splitlines()
    ] == [20, 20]
    table = replayed(*udf, "--format", "table")
    assert all(f"end   {end}" in table for end in ends)
    assert table.splitlines()[0].split() == ["time", "measurement", "tags", "fields"]
    diff = replayed(*udf, "--diff").splitlines()
    assert [line[0] for line in diff] == ["#", *"=" * 20, "#"] * 2 + ["#"]
    assert diff[-1] == "# 40 as they were"


def test_a_diff_shows_what_a_udf_did() -> None:
    assert replayed(
        *(STREAM, "--handler", "mirror", "--limit", "2", "--diff"),
        *("--options", ".field('usage_idle', 1.0).tag('checked', 'yes')"),
    ) == (
        "~ cpu,checked=yes,cpu=cpu-total,host=server00 2020-09-13T12:28:20Z"
        "  +tag checked=yes  usage_idle: 23.7965 → 1.0\n"
        "~ cpu,checked=yes,cpu=cpu-total,host=server01 2020-09-13T12:28:21Z"
        "  +tag checked=yes  usage_idle: 23.4331 → 1.0\n"
        "# 2 changed\n"
    )


def test_what_cannot_be_printed_is_counted(tmp_path: Path) -> None:
    handler = tmp_path / "strip.py"
    handler.write_text(
        "from kapudf_cli import Handler\n"
        "class Strip(Handler):\n"
        "    def point(self, point):\n"
        "        print('on stdout')\n"
        "        point.ClearField('fieldsDouble')\n"
        "        self.agent.write_point(point)\n",
        encoding="utf-8",
    )
    result = replay("-", "--handler", f"{handler}:Strip", stdin=b"m x=1 1\nm y=1i 2\n")
    assert (result.returncode, result.stdout) == (1, "m y=1i 2\n")
    assert "not printed: 1 point; the first: not line protocol: 'm': a point" in result.stderr
    assert "2 points sent, 2 points came back, 1 error;" in result.stderr
    assert result.stderr.count("on stdout") == 2


# --- what is sent ---


def test_points_are_selected_grouped_and_limited(tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    recording.write_text(
        "db\nrp\ncpu,host=b,dc=1 x=1 1\n"
        "db\nrp\nmem,host=b,dc=1 x=2 2\n"
        "other\nrp\ncpu,host=b,dc=1 x=3 3\n"
        "db\nlong\ncpu,host=b,dc=1 x=4 4\n"
        "db\nrp\ncpu,host=a x=5 5\n"
        "db\nrp\ncpu,host=a x=6 6\n",
        encoding="utf-8",
    )
    output = replayed(
        *(str(recording), "--handler", "mirror", "--format", "json", "--limit", "2"),
        *("--measurement", "cpu", "--database", "db", "--retention-policy", "rp"),
        *("--group-by", "*", "--by-name"),
    )
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["fields"] for row in rows] == [{"x": 1.0}, {"x": 5.0}]
    assert [row["group"] for row in rows] == ["cpu\ndc=1,host=b", "cpu\nhost=a"]
    assert [row["dimensions"] for row in rows] == [["dc", "host"], ["host"]]
    assert all(row["byname"] for row in rows)


def test_line_protocol_is_of_the_database_that_is_named() -> None:
    output = replayed(
        *("-", "--handler", "mirror", "--format", "json", "--precision", "s"),
        *("--database", "db", "--retention-policy", "rp", "--group-by", "b,a"),
        stdin=b"m,a=1 x=1i 1600000000\n",
    )
    row = json.loads(output)
    assert (row["database"], row["retentionPolicy"]) == ("db", "rp")
    assert (row["time"], row["group"]) == ("2020-09-13T12:26:40Z", "a=1,b=")


def test_the_recorded_times_pace_the_replay() -> None:
    started = time.monotonic()
    assert summary(STREAM, "--handler", "mirror", "--limit", "4", "--speed", "6").startswith(
        "4 points sent, 4 points came back"
    )
    assert time.monotonic() - started >= 0.5


def test_keepalives_go_out_while_there_is_nothing_to_send() -> None:
    udf = ("--handler", "mirror", "--limit", "2", "--speed", "0.3", "--timeout", "1.5")
    assert summary(STREAM, *udf).startswith("2 points sent, 2 points came back, 0 errors")


def test_a_slow_pipe_is_passed_on_as_it_comes() -> None:
    process = subprocess.Popen(
        [*KAPUDF, "replay", "-", "--handler", "mirror"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"m x=1.0 1\n", b"m x=2.0 2\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert select.select([process.stdout], [], [], PATIENCE_S)[0]
            assert os.read(process.stdout.fileno(), 1000) == line
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


def test_a_snapshot_is_taken_and_given_back(tmp_path: Path) -> None:
    snapshot = str(tmp_path / "snapshot")
    udf = (
        *("--handler", "moving-average", "--group-by", "host"),
        *("--options", ".field('x').size(2).as('avg')"),
    )
    first = replayed("-", *udf, "--snapshot-to", snapshot, stdin=b"m,host=a x=1 1\n")
    assert first == "m,host=a avg=1.0,x=1.0 1\n"
    again = replayed("-", *udf, "--restore-from", snapshot, stdin=b"m,host=a x=3 2\n")
    assert again == "m,host=a avg=2.0,x=3.0 2\n"


def test_a_limit_of_none_is_a_task_without_data() -> None:
    told = summary(STREAM, "--handler", "mirror", "--limit", "0")
    assert told == "0 points sent, 0 points came back, 0 errors"


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        (b"", (), "there is nothing in it"),
        (b"# m x=1 1\n\n", (), "nothing was sent: it has no points"),
        (
            b"m x=1 1\n",
            ("--measurement", "n"),
            "nothing was sent: it has no points of this measurement, database and retention policy",
        ),
        (
            b"m x=1 1\nm x=1 2\n",
            ("--handler", "batch-mirror", "--window", "1m"),
            "nothing was sent: its 2 points do not fill a window; choose a shorter --window",
        ),
    ],
)
def test_a_replay_that_sends_nothing_fails(
    tmp_path: Path, content: bytes, options: tuple[str, ...], reason: str
) -> None:
    path = tmp_path / "recording"
    path.write_bytes(content)
    assert failure(str(path), "--handler", "mirror", *options) == f"{path}: {reason}"


def test_what_is_read_and_not_sent_is_counted() -> None:
    content = b"# c\n\nm x=1 1\nn x=1 1\nn x=2 2\nm x=2 2\n"
    result = replay("-", "--handler", "mirror", "--measurement", "m", stdin=content)
    assert (result.returncode, result.stdout) == (0, "m x=1.0 1\nm x=2.0 2\n")
    assert result.stderr.splitlines()[:2] == [
        "skipped: 2 lines (blank lines, comments, headers)",
        "not sent: 2 points of another measurement, database or retention policy",
    ]


def test_the_format_of_a_file_can_be_named() -> None:
    recording = b"a=b\nautogen\nm x=1 1\n"
    shape = ("--handler", "mirror", "--format", "json")
    shown = replay("-", *shape, "--input-format", "stream", stdin=recording)
    assert (shown.returncode, json.loads(shown.stdout)["database"]) == (0, "a=b")
    problem = failure(BATCH, "--handler", "mirror", "--input-format", "lines")
    assert problem == f"{BATCH}: a zip can only be a batch recording"


# --- the summary, and the terminal ---


def test_the_summary_has_points_batches_and_errors() -> None:
    assert summary(STREAM, "--handler", "mirror") == (
        "550 points sent, 550 points came back, 0 errors"
    )
    assert summary(BATCH, "--handler", "outliers", "--options", ".field('usage_idle')") == (
        "600 points in 30 batches sent, 28 points in 30 batches came back, 0 errors"
    )


def on_terminal(*arguments: str, stdout: IO[bytes] | None = None) -> tuple[int, str]:
    """Run the command on a terminal, with stdout optionally elsewhere; return status and screen."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*KAPUDF, "replay", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    screen = b""
    with process, contextlib.suppress(OSError):
        # Reading raises once all other ends of the terminal are closed.
        while data := os.read(ours, 65536):
            screen += data
    os.close(ours)
    return process.returncode, screen.decode()


def test_a_diff_has_colours_on_a_terminal() -> None:
    arguments = (STREAM, "--limit", "2", "--diff", "--handler")
    status, screen = on_terminal(*arguments, "mirror", "--options", ".field('a', 1.0)")
    assert (status, screen.count("\x1b[33m+a=1.0\x1b[0m")) == (0, 2)


def test_progress_is_shown_after_a_second(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as out:
        udf = ("--handler", "mirror", "--limit", "4", "--speed")
        _, screen = on_terminal(STREAM, *udf, "2", stdout=out)
        assert re.search(r"\[#*-*\] +\d+%.*[1-4] of [1-4] points came back", screen)
        _, screen = on_terminal(STREAM, *udf, "1000", stdout=out)
        assert "%" not in screen
    _, screen = on_terminal(STREAM, *udf, "2")
    assert "%" not in screen


def test_nobody_reading_ends_it_quietly(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f"m x=1 {number}\n" for number in range(100_000)))
    process = subprocess.Popen(
        [*KAPUDF, "replay", str(path), "--handler", "mirror"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"m x=1.0 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_S) == 0


def test_output_that_cannot_be_written() -> None:
    line = " ".join([*KAPUDF, "replay", STREAM, "--handler", "mirror", ">/dev/full"])
    result = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    problem = "stdout cannot be written: No space left on device"
    assert (result.returncode, result.stderr) == (1, f"Error: {problem}\n")


def test_a_snapshot_that_cannot_be_written() -> None:
    udf = ("--handler", "moving-average", "--options", ".field('usage_idle').size(2)")
    said = failure(STREAM, *udf, "--limit", "1", "--snapshot-to", "/dev/full")
    assert said == "/dev/full: the snapshot cannot be written: No space left on device"


def test_tags_to_group_by_may_have_blanks_between_them() -> None:
    shape = ("--limit", "1", "--format", "json")
    (shown,) = replayed(
        STREAM, "--handler", "mirror", *shape, "--group-by", "host, cpu"
    ).splitlines()
    assert json.loads(shown)["dimensions"] == ["cpu", "host"]


def test_a_pager_that_pauses_is_no_silence_of_the_udf(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f"m x=1 {number}\n" for number in range(60_000)))
    process = subprocess.Popen(
        [*KAPUDF, "replay", str(path), "--handler", "mirror", "--timeout", "1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        # This pause must be longer than the timeout.
        time.sleep(2.5)
        assert sum(1 for _ in process.stdout) == 59_999
        assert b"60,000 points came back, 0 errors" in process.stderr.read()
        assert process.wait(PATIENCE_S) == 0


# --- what does not fit ---


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((BATCH, "--handler", "mirror"), "the UDF wants a stream, and this is a batch recording"),
        (
            (STREAM, "--handler", "batch-mirror"),
            "the UDF wants batches, and this is a stream recording; split it with --window 10s",
        ),
        ((STREAM, "--handler", "mirror", "--window", "1m"), "the UDF wants a stream; leave --win"),
        ((BATCH, "--handler", "batch-mirror", "--by-name"), "this is a batch recording, which has"),
        ((BATCH, "--handler", "batch-mirror", "--group-by", "*"), "this is a batch recording, whi"),
        ((BATCH, "--handler", "batch-mirror", "--database", "d"), "this is a batch recording, whi"),
        (
            (STREAM, "--handler", "mirror", "--options", ".field('x', 42)"),
            "character 13 of the options: .field() expects a float as value 2, got 42, a whole",
        ),
        (
            (STREAM, "--handler", "mirror", "--options", ".feild('x', 42.0)"),
            "character 2 of the options: the UDF has no option .feild(); did you mean .field()?",
        ),
        (
            (STREAM, "--handler", "mirror", "--options", ".field(x)"),
            "character 8 of the options: .field(): 'x' is not a value; a string stands in single",
        ),
        (
            (STREAM, "--handler", "miror"),
            "no installed handler has the name 'miror'; did you mean 'mirror'?",
        ),
        ((STREAM,), "select a UDF: --socket PATH, --exec 'COMMAND …' or --handler NAME"),
        (("/nothing", "--handler", "mirror"), "Invalid value for 'FILE': File '/nothing' does not"),
        ((STREAM, "--handler", "mirror", "--speed", "nan"), "Invalid value for '--speed': nan is"),
        ((STREAM, "--handler", "mirror", "--timeout", "0"), "Invalid value for '--timeout': 0"),
        (
            (STREAM, "--handler", "mirror", "--window", "10"),
            "Invalid value for '--window': '10'",
        ),
        ((STREAM, "--handler", "mirror", "--window", "-1s"), "Invalid value for '--window': '-1s'"),
        (
            (STREAM, "--handler", "mirror", "--window", "1h5m"),
            "Invalid value for '--window': '1h5",
        ),
        (
            (STREAM, "--handler", "mirror", "--diff", "--format", "json"),
            "--diff has its own format",
        ),
        (
            (STREAM, "--handler", "mirror", "--snapshot-to", "/nothing/here"),
            "Invalid value for '--snapshot-to': there is no folder /nothing",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_init(arguments: tuple[str, ...], problem: str) -> None:
    assert failure(*arguments, status=2).startswith(problem)


def test_every_precision_can_be_named() -> None:
    (option,) = [each for each in command.params if each.name == "precision"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(PRECISIONS)


# --- ill-formed lines ---


ILL_FORMED = b"m x=1 1\nm x=\nm x=2u 2\nm x=3 3\n"


def test_an_ill_formed_line_ends_the_replay(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(ILL_FORMED)
    result = replay(str(path), "--handler", "mirror")
    assert (result.returncode, result.stdout) == (1, "m x=1.0 1\n")
    assert result.stderr.splitlines()[-1] == (f"Error: {path}: line 2: field 'x' has no value")
    assert "1 point sent, 1 point came back, 1 error;" in result.stderr


def test_ill_formed_lines_are_skipped_and_counted() -> None:
    unsigned = "field 'x': '2u': Kapacitor 1.5 refuses unsigned integers; write it with an i"
    result = replay("-", "--handler", "mirror", "--keep-going", stdin=ILL_FORMED)
    assert (result.returncode, result.stdout) == (1, "m x=1.0 1\nm x=3.0 3\n")
    assert result.stderr.splitlines()[:2] == [
        "skipped: standard input: line 2: field 'x' has no value",
        f"skipped: standard input: line 3: {unsigned}",
    ]
    assert "2 points sent, 2 points came back, 2 errors;" in result.stderr


def test_many_ill_formed_lines_do_not_fill_the_screen() -> None:
    result = replay("-", "--handler", "mirror", "--keep-going", stdin=b"m x=\n" * 1000)
    assert result.stderr.count("skipped: standard input: line") == 10
    assert "skipped: more lines, which are only counted" in result.stderr
    assert "0 points sent, 0 points came back, 1,000 errors;" in result.stderr


def test_a_recording_that_is_cut_off_is_told(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_bytes(recordings.STREAM.read_bytes()[:-100])
    problem = failure(str(path), "--handler", "mirror", "--keep-going")
    assert problem.startswith(f"{path}: the compressed data are damaged or cut off")


# --- UDFs that do wrong ---


@pytest.mark.parametrize(
    ("udf", "problem"),
    [
        (("--socket", "/nothing"), "/nothing: there is no such socket; is the UDF running?"),
        (("--exec", "no-such-program"), "no-such-program: there is no program 'no-such-program'"),
        (("--exec", "false"), "false: the UDF closed the connection without an answer; its log"),
        (("--exec", "sleep 60", "--timeout", "0.3"), "sleep 60: no answer to Info within 0.3 s"),
        (
            ("--handler", "moving-average"),
            "the UDF refused Init: .field() is missing; call .field(a string that is not empty);",
        ),
        (
            ("--handler", "moving-average", "--options", ".field('x').size(0)"),
            "the UDF refused Init: .size() expects a whole number, at least 1 and at most 1000000",
        ),
    ],
)
def test_a_udf_that_does_not_begin(udf: tuple[str, ...], problem: str) -> None:
    assert failure(STREAM, *udf).startswith(problem)


def test_a_snapshot_that_the_udf_refuses(handlers: str, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.write_bytes(b"foreign")
    udf = ("--handler", f"{handlers}:RefusesRestore")
    assert failure(STREAM, *udf, "--restore-from", str(snapshot)) == (
        "the UDF refused Restore: it gives no reason; set `error` in its answer"
    )
    snapshot.write_bytes(b"")
    assert replayed(STREAM, *udf, "--restore-from", str(snapshot))


HANDLERS = """
import os, sys
from kapudf_cli import Handler
from kapudf_cli.protocol import RestoreResponse

class RefusesRestore(Handler):
    def point(self, point):
        self.agent.write_point(point)

    def restore(self, request):
        return RestoreResponse(success=False)

class Raises(Handler):
    def point(self, point):
        if point.time == 3:
            raise LookupError("no model")
        self.agent.write_point(point)

class Exits(Handler):
    def point(self, point):
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(7)

class Swallows(Handler):
    points = 0

    def point(self, point):
        self.points += 1
        if self.points < 500:
            self.agent.write_point(point)

class CannotBeMade(Handler):
    def __init__(self, agent):
        raise LookupError("no model")

    def point(self, point):
        self.agent.write_point(point)
"""


@pytest.fixture
def handlers(tmp_path: Path) -> str:
    """Return a file with broken handlers."""
    path = tmp_path / "wrong.py"
    path.write_text(HANDLERS, encoding="utf-8")
    return str(path)


def test_a_handler_that_cannot_be_made(handlers: str) -> None:
    assert failure(STREAM, "--handler", f"{handlers}:CannotBeMade") == (
        f"{handlers}:CannotBeMade: the UDF answered with an error: "
        "CannotBeMade.__init__ raised LookupError: no model"
    )


def test_a_handler_that_raises(handlers: str) -> None:
    result = replay("-", "--handler", f"{handlers}:Raises", stdin=b"m x=1 1\nm x=1 2\nm x=1 3\n")
    assert (result.returncode, result.stdout) == (1, "m x=1.0 1\nm x=1.0 2\n")
    assert result.stderr.splitlines()[-1] == (
        "Error: the UDF failed the task: Raises.point raised LookupError: no model"
    )


def test_a_process_that_dies(handlers: str) -> None:
    command = " ".join([*KAPUDF, "exec", "--handler", f"{handlers}:Exits"])
    problem = failure(STREAM, "--exec", command, "--speed", "0.1")
    assert problem.startswith("the UDF closed the connection before the end of the data")
    # The print of the handler is an event in the log of `kapudf exec`.
    assert "; it exited with status 7, after saying: " in problem
    assert "out of memory" in problem
    assert problem.endswith("`kapacitor reload TASK` starts it again")


BROKEN = {
    "AbsurdSize": "the UDF sent a BeginBatch of size 1152921504606846976, not 0 (unknown) to "
    "16777216; kapacitord would crash, and every task with it",
    "AnnouncesTerabytes": ": the answer is not a UDF's: a frame's length takes more than 32 bits",
    "AnswersInitTwice": "the UDF sent an InitResponse that was not requested; Kapacitor drops it",
    "BatchesIntoAStream": "the UDF sent a BeginBatch, and provides a stream; the task's next",
    "BeginsWithoutEnd": "the UDF sent a BeginBatch inside a batch; Kapacitor would drop",
    "DiesAtSnapshot": "the UDF closed the connection instead of answering a snapshot",
    "EmptyResponse": "the UDF sent a Response in which no message is set; kapacitord would crash",
    "EndsWhatWasNotBegun": "the UDF sent an EndBatch without a BeginBatch before it; "
    "kapacitord would crash, and every task with it",
    "ExitsWith1": "the UDF ended badly, with 550 points back of 550 sent; it exited with",
    "FailsWithoutField": "the UDF failed the task: KeyError: 'value'",
    "Garbage": ": no whole answer came in time; 35 bytes came that are not a whole frame: b'This",
    "HangsAtInfo": ": no answer to Info within 3 s; is the UDF stuck?",
    "NegativeSize": "the UDF sent a BeginBatch of size -1, not 0 (unknown) to 16777216; kapac",
    "PointsWithoutBatch": "the UDF sent a Point outside a batch, and provides batches; the",
    "Prints": "the UDF sent bytes that are not frames: ",
    "RefusesInSilence": "the UDF refused Init: it gives no reason; set `error` in its answer",
    "StaysAtTheEnd": "the UDF did not close the connection within 3 s of the end of its inp",
}
STAY_SILENT = {"Garbage", "HangsAtInfo", "StaysAtTheEnd"}
WANT_BATCHES = {
    "AbsurdSize",
    "BeginsWithoutEnd",
    "EndsWhatWasNotBegun",
    "NegativeSize",
    "PointsWithoutBatch",
}


@pytest.mark.parametrize(("udf", "problem"), BROKEN.items())
def test_a_udf_that_does_wrong_is_told_what_to_mend(udf: str, problem: str, tmp_path: Path) -> None:
    name = f"{sys.executable} -m tests.peers.broken_udfs {udf}"
    windows = ("--window", "10s") if udf in WANT_BATCHES else ()
    # Python starts slowly on a loaded machine.
    timeout_s = "3" if udf in STAY_SILENT else str(PATIENCE_S)
    told = failure(
        *(STREAM, "--exec", name, "--group-by", "host", "--timeout", timeout_s, *windows),
        *("--snapshot-to", str(tmp_path / "snapshot")),
    )
    assert told.removeprefix(name).startswith(problem)


def test_a_udf_that_hangs_is_told_of() -> None:
    command = f"{sys.executable} -m tests.peers.hangs_at_a_point"
    slow = (STREAM, "--exec", command, "--timeout", "3", "--speed", "0.1")
    assert failure(*slow) == (
        "the UDF sent nothing for 3 s, not even an answer to a keepalive "
        "(1 point back of 1 sent). Is it stuck in a call, or does it not flush what it writes? "
        "Kapacitor aborts such a task"
    )
    # On a slow machine, all data is sent before it becomes clear that the UDF hangs.
    assert re.fullmatch(
        "the UDF (sent nothing for 3 s, not even an answer to a keepalive|gave no answer to a "
        r"keepalive behind the data within 3 s) \(1 point back of 550 sent\)\. Is it stuck in a "
        r"call, or does it not flush what it writes\?( Kapacitor aborts such a task)?",
        failure(STREAM, "--exec", command, "--timeout", "3"),
    )


def test_a_handler_that_hangs_is_told_of_with_the_line(tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(
        "import time\n"
        "from kapudf_cli import Handler\n"
        "class Hangs(Handler):\n"
        "    def point(self, point):\n"
        "        time.sleep(2)\n",
        encoding="utf-8",
    )
    told = failure(STREAM, "--handler", f"{script}:Hangs", "--timeout", "0.5", "--limit", "1")
    assert f"(0 points back of 1 sent); it is in point ({script}:5). " in told


RAISES = """
from kapudf_cli import Handler, decode_point

class Raises(Handler):
    def point(self, point):
        return fails(point)

def fails(point):
    return decode_point(None)
"""


@pytest.mark.parametrize("option", [(), ("--traceback",)])
def test_an_exception_is_shown_with_the_lines_of_the_handler(
    tmp_path: Path, option: tuple[str, ...]
) -> None:
    script = tmp_path / "raises.py"
    script.write_text(RAISES, encoding="utf-8")
    handler = ("--handler", f"{script}:Raises")
    ended = replay(STREAM, *handler, "--limit", "1", *option)
    frames = re.findall(r'^  File "(.+)", line (\d+), in', ended.stderr, re.MULTILINE)
    files = [(os.path.basename(file), int(line)) for file, line in frames]
    own = files.index(("raises.py", 6))
    assert files[own + 1] == ("raises.py", 9)
    # What the handler calls in kapudf is shown, what calls the handler only on request.
    assert (own > 0) == bool(option)
    assert "Error: the UDF failed the task: Raises.point raised " in ended.stderr


@pytest.mark.parametrize("says_so", [False, True])
def test_a_handler_that_writes_nothing_is_warned_of(tmp_path: Path, says_so: bool) -> None:  # noqa: FBT001 - a parameter of the test
    script = tmp_path / "silent.py"
    script.write_text(
        "from kapudf_cli import Handler\n"
        "class Silent(Handler):\n"
        f"    may_drop_all = {says_so}\n"
        "    def point(self, point): pass\n",
        encoding="utf-8",
    )
    ended = replay(STREAM, "--handler", f"{script}:Silent", "--limit", "1")
    assert ended.returncode == 0
    assert ("warning: the UDF wrote nothing" in ended.stderr) != says_so


@pytest.mark.parametrize("method", ["setup", "stop"])
def test_a_slow_handler_is_not_said_to_end_its_task(tmp_path: Path, method: str) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import threading\n"
        "from kapudf_cli import Handler\n"
        "class Slow(Handler):\n"
        "    def point(self, point): pass\n"
        f"    def {method}(self):\n"
        "        threading.Event().wait(30)\n",
        encoding="utf-8",
    )
    problem = failure(STREAM, "--handler", f"{script}:Slow", "--timeout", "0.5", "--limit", "1")
    assert " within 0.5 s" in problem
    assert problem.endswith(
        "When served, kapudf tells Kapacitor that the handler is busy, and the task goes on until "
        "busy_limit_s, five minutes by default. To wait longer here, raise --timeout"
    )


def test_keepalives_are_sent_while_the_output_is_not_read(socket_path: str) -> None:
    keepalive_came = threading.Event()

    def serve(listener: socket.socket) -> None:
        points = 0
        for _ in ("Info", "the task"):
            connection, _ = listener.accept()
            requests = FrameReader(REQUESTS.decode_in)
            with connection:
                while data := connection.recv(65536):
                    for request in requests.feed(data):
                        match request:
                            case InfoRequest():
                                answer: ResponseMessage = InfoResponse()
                            case InitRequest():
                                answer = InitResponse(success=True)
                            case Point():
                                points += 1
                                answer = request
                            case KeepaliveRequest():
                                answer = KeepaliveResponse(time=request.time)
                                if points == 200:
                                    keepalive_came.set()
                        connection.sendall(RESPONSES.encode(answer))

    # The output does not fit into the pipe, and the input does not end yet.
    data = "".join(f"m,host={'a' * 80} x=1.0 {number}\n" for number in range(200)).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(socket_path)
        listener.listen()
        served = in_thread(lambda: serve(listener))
        with subprocess.Popen(
            [*KAPUDF, "replay", "-", "--socket", socket_path, "--timeout", "4"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
            process.stdin.write(data)
            process.stdin.flush()
            assert keepalive_came.wait(PATIENCE_S)
            process.stdin.close()
            assert process.stdout.read() == data
        served.result(PATIENCE_S)
    assert process.returncode == 0


def test_a_udf_that_swallows_points_shows_in_the_diff(handlers: str) -> None:
    output = replayed(STREAM, "--handler", f"{handlers}:Swallows", "--diff")
    assert output.splitlines()[-1].endswith("did not come back")


def test_grouped_points_keep_their_groups() -> None:
    output = replayed(STREAM, "--handler", "mirror", "--group-by", "host,cpu", "--diff")
    assert output.splitlines()[-1] == "# 550 as they were"
    assert grouped(lines("m,host=a x=1 1"), "host")[0].group == "host=a"


# --- pictures ---


@pytest.mark.parametrize("diff", [[], ["--diff"]], ids=["output", "diff"])
def test_a_picture_shows_what_the_udf_changed(tmp_path: Path, diff: list[str]) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    result = replay(
        *(STREAM, "--handler", "moving-average", "--group-by", "host", "--limit", "60", *diff),
        *("--options", ".field('usage_idle').size(3)", "--plot", str(path)),
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 60 + len(diff)
    assert result.stderr.splitlines()[-1] == f"written: {path}"
    text = path.read_text()
    assert "60 points sent, 60 came back" in text
    assert "new: avg (20)" in text


def test_a_replay_that_fails_is_drawn_up_to_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    lines = "m v=1 1\nm v=2 2\nm v= 3\n"
    result = replay("-", "--handler", "mirror", "--plot", str(path), stdin=lines.encode())
    assert result.returncode == 1
    assert "input: v (2)" in path.read_text()


def test_a_picture_that_cannot_be_drawn_is_an_error_before_the_replay(tmp_path: Path) -> None:
    plot = str(tmp_path / "plot.pdf")
    assert "ends with .svg" in failure(STREAM, "--handler", "mirror", "--plot", plot)
    plot = str(tmp_path / "none" / "plot.svg")
    result = replay(STREAM, "--handler", "mirror", "--plot", plot)
    assert (result.returncode, result.stdout) == (2, "")
    assert "there is no folder" in result.stderr
