"""What Kapacitor prints in each case of docs/troubleshooting.md."""

from __future__ import annotations

import re
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import plugin
from tests.kapacitor.daemon import RefusedError
from tests.kapacitor.lines import line

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kapacitor.daemon import KapacitorDaemon
    from tests.serve_process import ServeProcess

    Kapacitor = Callable[..., KapacitorDaemon]
    Serve = Callable[..., ServeProcess]
    Start = Callable[..., KapacitorDaemon]

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
SCRIPT = "stream|from()@surge().field('n')|httpOut('out')"
SURGE = plugin("troubled.py:Surge")


@pytest.fixture
def start(kapacitor: Kapacitor, socket_path: str) -> Callable[..., KapacitorDaemon]:
    """Start kapacitord with the function `surge`, which must be served."""
    section = f'[udf]\n[udf.functions.surge]\nsocket = "{socket_path}"\ntimeout = "60s"\n'
    return partial(kapacitor, udf_section=section)


def run_task(daemon: KapacitorDaemon) -> None:
    """Start the task `cpu`, and wait until it has answered a point."""
    daemon.start_task("cpu", SCRIPT)
    daemon.write(line(1))
    daemon.await_point("cpu", n=1)


def assert_shown(error: str) -> None:
    """Assert that the page shows an error, up to numbers and paths of the place."""
    blocks = re.findall(r"^```text\n(.*?)\n```$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert general(error) in map(general, blocks)


def general(error: str) -> str:
    """Return an error without what differs from machine to machine."""
    error = re.sub(r"/[\w/.-]+\.(py|sock)", r"x.\1", error)
    error = re.sub(r"( < )[^;]+", r"\1…", error)
    error = re.sub(r"(byte|hung for|char|x.py:) ?\d+", r"\1 0", error)
    return re.sub(r"^\d+ bytes|: \d+ bytes", ": 0 bytes", error)


@pytest.mark.parametrize(
    ("trouble", "arguments"),
    [
        ("raises", []),
        ("crashes", []),
        ("hangs", ["--busy-limit", "1"]),
        ("invalid", []),
        ("caf\udce9", []),
    ],
)
def test_a_task_fails_at_a_point(
    serve: Serve, start: Start, trouble: str, arguments: list[str]
) -> None:
    serve(SURGE, *arguments)
    daemon = start()
    run_task(daemon)
    daemon.write(line(2, name=trouble))
    assert_shown(daemon.await_failure("cpu", line(3)))


def test_options_are_refused(serve: Serve, start: Start) -> None:
    serve(SURGE)
    daemon = start()
    daemon.start_task("cpu", "stream|from()@surge().windowSize(10)|httpOut('out')")
    assert_shown(daemon.await_failure("cpu"))


def test_edges_do_not_fit(serve: Serve, start: Start) -> None:
    serve(SURGE)
    daemon = start()
    daemon.define("cpu", "stream|from()|window().period(1s).every(1s)@surge().field('n')")
    with pytest.raises(RefusedError):
        daemon.enable("cpu")
    assert_shown(daemon.status("cpu").error)


def test_a_snapshot_is_refused(serve: Serve, start: Start, record: Path) -> None:
    serve(plugin("against_kapacitor.py:Forgetful"))
    daemon = start(snapshot_interval="100ms")
    daemon.start_task("cpu", "stream|from()@surge()|httpOut('out')")
    daemon.await_snapshot(record, "snapshot")
    daemon.shell("kapacitor reload cpu")
    assert_shown(daemon.await_failure("cpu"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_kapudf_ends(serve: Serve, start: Start, number: signal.Signals) -> None:
    process = serve(SURGE, "--workers", "0")
    daemon = start()
    run_task(daemon)
    process.signal(number)
    process.wait()
    assert_shown(daemon.await_failure("cpu", line(2)))
    # Nothing serves the socket. The task starts all the same, and Kapacitor tries to connect.
    daemon.shell("kapacitor reload cpu")
    daemon.wait_for(lambda: daemon.status("cpu").executing, "the task to start")
    daemon.write(line(3))
    assert daemon.status("cpu").error == ""
    serve(SURGE, "--remove-stale")
    daemon.await_point("cpu", n=3)


@pytest.mark.parametrize(
    "calls",
    [
        "@surges().field('n')",
        "@surge().window_size(10)",
        "@surge().field('n').windowSize(10.0)",
        "@surge().field('n', 2)",
    ],
)
def test_a_task_cannot_be_defined(serve: Serve, start: Start, calls: str) -> None:
    serve(SURGE)
    with pytest.raises(RefusedError) as refused:
        start().define("cpu", f"stream|from(){calls}")
    assert_shown(str(refused.value))


def test_a_disabled_task_has_an_error(serve: Serve, start: Start) -> None:
    serve(SURGE)
    daemon = start()
    run_task(daemon)
    daemon.disable("cpu")
    assert_shown(daemon.wait_for(lambda: daemon.status("cpu").error, "the error"))
