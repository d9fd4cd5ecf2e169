"""`kapudf load`: its table, JSON and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.run_kapudf import run_kapudf
from tests.serve_process import KAPUDF, PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serve_process import ServeProcess

RECORDINGS = Path(__file__).parent.parent / "recordings"


def load(*arguments: str) -> tuple[int, str, str]:
    """Run the command and return its exit status, stdout and stderr."""
    result = run_kapudf("load", *arguments, patience_s=2 * PATIENCE_S)
    return result.returncode, result.stdout, result.stderr


def facts(*arguments: str) -> dict[str, object]:
    status, output, errors = load(*arguments, "--json")
    assert (status, errors) == (0, "")
    found: dict[str, object] = json.loads(output)
    return found


def test_a_table_has_throughput_latency_and_cost(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    serve("mirror")
    status, output, errors = load("--socket", socket_path, "--points", "5000")
    assert (status, errors) == (0, "")
    names = [line[:13].strip() for line in output.splitlines()]
    assert names == [
        "points", "time", "throughput", "latency p50", "latency p90", "latency p99",
        "latency p99.9", "latency max", "CPU", "memory",
    ]  # fmt: skip
    assert "5,000 sent, 5,000 came back" in output


def test_a_run_for_machines_has_everything(
    serve: Callable[..., ServeProcess], socket_path: str
) -> None:
    process = serve("mirror")
    found = facts("--socket", socket_path, "--points", "2000", "--connections", "4", "--bulk")
    assert found["target"] == socket_path
    assert found["points_returned"] == found["points_sent"]
    assert found["timed"] == "points"
    assert found["pids"] == [process.pid]
    assert list(found["latency_ms"]) == ["p50", "p90", "p99", "p99.9", "max"]  # type: ignore[call-overload]
    values = list(found["latency_ms"].values())  # type: ignore[attr-defined]
    assert values == sorted(values)
    assert found["rss_mb"] > 5  # type: ignore[operator]


def test_a_command_is_loaded_with_options() -> None:
    handler = " ".join([*KAPUDF, "exec", "--handler", "moving-average", "--log-level", "error"])
    options = ".field('usage_idle').size(10)"
    found = facts("--exec", handler, "--options", options, "--points", "1000", "--rate", "5000")
    assert found["points_returned"] == 1000
    assert found["rate"] == 5000


@pytest.mark.parametrize(
    ("handler", "file"), [("mirror", "stream.srpl"), ("batch-mirror", "batch.brpl")]
)
def test_a_recording_is_sent_over_and_over(handler: str, file: str) -> None:
    path = str(RECORDINGS / file)
    found = facts("--handler", handler, "--recording", path, "--points", "20000")
    assert found["points_returned"] == found["points_sent"]
    assert found["points_sent"] >= 20_000  # type: ignore[operator]


def test_batches_are_made_for_a_udf_that_wants_them() -> None:
    found = facts("--handler", "batch-mirror", "--batch-size", "7", "--points", "700")
    assert found["timed"] == "batches"
    assert found["points_returned"] == found["points_sent"] == 700


@pytest.mark.parametrize(
    ("arguments", "told", "status"),
    [
        ([], "select a UDF: --socket PATH", 2),
        (["--handler", "mirror", "--rate", "0"], "--rate", 2),
        (["--handler", "mirror", "--rate", "nan"], "nan is not a number", 2),
        (["--handler", "mirror", "--points", "0"], "--points", 2),
        (["--handler", "mirror", "--connections", "0"], "--connections", 2),
        (["--handler", "mirror", "--fields", "0"], "--fields", 2),
        (["--handler", "mirror", "--recording", "/nowhere.srpl"], "does not exist", 2),
        (["--handler", "mirror", "--input-format", "lines"], "which is missing", 2),
        (
            [
                "--handler",
                "mirror",
                "--recording",
                str(RECORDINGS / "stream.srpl"),
                "--input-format",
                "lines",
            ],
            "line 1: ",
            1,
        ),
        (["--handler", "mirror", "--options", ".nothing()"], "no option .nothing()", 2),
        (["--handler", "moving-average", "--options", ""], "refused Init: .field() is missing", 1),
        (["--socket", "/nowhere.sock"], "there is no such socket; is the UDF running?", 1),
        (["--exec", "true"], "", 1),
        (["--handler", "mirror", "--recording", str(RECORDINGS / "batch.brpl")], "", 2),
    ],
)
def test_a_wrong_call_is_told(arguments: list[str], told: str, status: int) -> None:
    found, output, errors = load(*arguments)
    assert (found, output) == (status, "")
    assert told in errors
    assert errors.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("handler", "arguments", "options"),
    [
        ("mirror", [], ""),
        ("moving-average", [], ".as('usage_guest').field('usage_guest').size(10)"),
        # An option that no generated call fits has a default.
        ("seasonal-baseline", [], ".field('usage_guest')"),
        (
            "moving-average",
            ["--recording", str(RECORDINGS / "stream.srpl")],
            ".as('usage_idle').field('usage_idle').size(10)",
        ),
        ("moving-average", ["--options", ".field('x').size(3)"], ".field('x').size(3)"),
    ],
)
def test_options_are_made_where_the_udf_needs_them(
    handler: str, arguments: list[str], options: str
) -> None:
    found = facts("--handler", handler, "--points", "100", *arguments)
    assert found["options"] == options


def test_the_table_fits_into_80_columns() -> None:
    calls = f".field('{'long name of a field, ' * 8}').size(10)"
    status, output, _ = load("--handler", "moving-average", "--points", "100", "--options", calls)
    assert status == 0
    first, second, *_ = output.splitlines()
    assert first.startswith("options        .field('long name of a field,")
    assert second.startswith(" " * 15)
    assert max(map(len, output.splitlines())) <= 80


def test_an_empty_recording_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty.lp"
    empty.write_text("# nothing but a comment\n", encoding="utf-8")
    found, output, errors = load("--handler", "mirror", "--recording", str(empty))
    assert (found, output) == (2, "")
    assert "has no points to send" in errors


def test_a_picture_has_throughput_and_latency(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "load.svg"
    status, _, errors = load("--handler", "mirror", "--points", "500", "--plot", str(plot))
    # Before this line, matplotlib may say that it builds its list of fonts.
    assert (status, errors.splitlines()[-1]) == (0, f"written: {plot}")
    drawn = plot.read_text()
    for shown in ("mirror: ", "came back", "seconds", "latency of points, ms", "p99.9"):
        assert shown in drawn
