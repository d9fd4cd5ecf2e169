"""Handlers that fail, each in its own way: the task is told, kapacitord lives on."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import plugin
from tests.kapacitor.lines import BY_HOST, line

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kapacitor.daemon import KapacitorDaemon
    from tests.serve_process import ServeProcess

    Kapacitor = Callable[..., KapacitorDaemon]
    Serve = Callable[..., ServeProcess]

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_an_exception_fails_its_task_and_no_other(serve: Serve, kapacitor: Kapacitor) -> None:
    """The task's error names method and cause; kapacitord and the other task go on."""
    process = serve(plugin("lifecycle.py:Fragile"))
    daemon = kapacitor()
    daemon.start_task("all", BY_HOST)
    daemon.start_task("cpu", BY_HOST.replace("from()", "from().measurement('cpu')"))
    daemon.write(line(1))
    daemon.await_point("all", n=1)
    daemon.await_point("cpu", n=1)

    daemon.write(line(2, name="bad"))
    error = daemon.await_failure("all", line(3))
    assert error.endswith(": Fragile.point raised ValueError: this point is bad")
    assert process.event("connection finished", task_id="all")["reason"] == "handler_error"

    assert daemon.alive
    assert daemon.status("cpu").executing
    daemon.write(line(4))
    daemon.await_point("cpu", n=4)


def test_the_cause_is_told_while_points_are_in_flight(serve: Serve, kapacitor: Kapacitor) -> None:
    """Kapacitor, busy sending, gets the handler's error and not a broken pipe of its own."""
    serve(plugin("lifecycle.py:Fragile"))
    daemon = kapacitor()
    daemon.start_task("busy", BY_HOST)
    daemon.write(line(1))
    daemon.await_point("busy", n=1)
    daemon.write(line(2, name="bad"), *(line(n) for n in range(3, 3000)))
    error = daemon.await_failure("busy", line(3000))
    assert error.endswith(": Fragile.point raised ValueError: this point is bad")
    assert daemon.alive


def test_a_refused_init_fails_the_task_with_its_text(serve: Serve, kapacitor: Kapacitor) -> None:
    """The task ends by itself, with the reason that the handler gave; kapacitord lives."""
    serve(plugin("against_kapacitor.py:Refuser"))
    daemon = kapacitor()
    daemon.start_task("refused", BY_HOST)
    error = daemon.await_failure("refused")
    assert error.endswith("failed to initialize processes no licence for the task refused")
    assert daemon.alive


LATIN_1 = ("cpu,host=caf\udce9 n=1i 1", 'cpu,host=a s="caf\udce9" 2', "caf\udce9,host=a n=1i 3")


def test_points_that_are_not_utf8_are_dropped_and_the_task_goes_on(
    serve: Serve, kapacitor: Kapacitor
) -> None:
    process = serve(plugin("lifecycle.py:Fragile"), "--on-error", "skip")
    daemon = kapacitor()
    daemon.start_task("all", BY_HOST)
    daemon.write(line(1), *LATIN_1, line(2))
    daemon.await_point("all", n=2)
    problem = "67 bytes are not a Request: Request.point.group is not valid UTF-8: b'host=caf\\xe9'"
    assert process.event(f"point dropped: {problem}", task_id="all")["offset"] > 0
    assert daemon.status("all").executing


def test_a_handler_of_raw_points_sends_text_that_is_not_utf8_back_to_kapacitor(
    serve: Serve, kapacitor: Kapacitor
) -> None:
    serve("mirror")
    daemon = kapacitor()
    daemon.start_task("all", BY_HOST)
    daemon.write(line(1), *LATIN_1, line(2))
    daemon.await_point("all", n=2)
    daemon.await_point("all", host="caf\ufffd", n=1)
    assert daemon.status("all").executing


@pytest.mark.parametrize("value", ['"TRUE"', "lambda: TRUE", "*", "/TRUE/"])
def test_a_bool_option_that_is_no_plain_literal_fails_the_task(
    serve: Serve, kapacitor: Kapacitor, value: str
) -> None:
    serve("default")
    daemon = kapacitor()
    daemon.start_task("text", f"stream|from()@udf().fieldBool('up', {value})|httpOut('out')")
    error = daemon.await_failure("text")
    assert "fieldBool() expects TRUE or FALSE as value 2, got nothing; write TRUE or" in error


def test_a_refused_init_leaves_no_connection_behind(serve: Serve, kapacitor: Kapacitor) -> None:
    """Kapacitord would keep it open, and ask for keepalives, for as long as it lives."""
    process = serve(plugin("against_kapacitor.py:Refuser"))
    daemon = kapacitor()
    daemon.start_task("refused", BY_HOST)
    daemon.await_failure("refused")
    finished = process.event("connection finished", task_id="refused")
    assert (finished["reason"], finished["level"]) == ("closed", "warning")
    assert finished["refusal"] == "init was refused: no licence for the task refused"


def test_a_refused_restore_fails_the_task_with_its_text(
    serve: Serve, kapacitor: Kapacitor, record: Path
) -> None:
    """The task that was restarted with its daemon ends with the reason, and so its connection."""
    process = serve(plugin("against_kapacitor.py:Forgetful"))
    daemon = kapacitor(snapshot_interval="100ms")
    daemon.start_task("forgotten", BY_HOST)
    daemon.await_snapshot(record, "snapshot")

    daemon.restart()
    error = daemon.await_failure("forgotten")
    assert error.endswith("this snapshot is of another version")
    process.event(
        "connection finished", refusal="restore was refused: this snapshot is of another version"
    )
    assert daemon.alive


@pytest.mark.parametrize(
    ("misdeed", "reason"),
    [
        ("end_alone", "an EndBatch without a BeginBatch before it"),
        ("nested_begin", "a BeginBatch inside a batch"),
        ("negative_size", "a BeginBatch of size -1"),
        ("absurd_size", "a BeginBatch of size 1152921504606846976"),
        ("long_frame", "the limit max_frame_bytes is 65536"),
        ("point_outside", "a Point outside a batch"),
        ("no_message", "a NoneType instead of a Point"),
    ],
)
def test_what_would_crash_kapacitor_fails_the_task(
    serve: Serve, kapacitor: Kapacitor, misdeed: str, reason: str
) -> None:
    """The message never leaves: the task fails with the reason, and kapacitord lives."""
    serve(plugin("against_kapacitor.py:Reckless"), "--max-frame-bytes", "65536")
    daemon = kapacitor()
    daemon.start_task("reckless", BY_HOST)
    daemon.write(line(1))
    daemon.await_point("reckless", n=1)

    daemon.write(line(2, name=misdeed))
    error = daemon.await_failure("reckless", line(3))
    assert "Reckless.point raised InvalidWriteError: " in error
    assert reason in error
    assert daemon.alive


def test_nothing_that_was_sent_before_sigterm_is_lost(
    serve: Serve, kapacitor: Kapacitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points still unread at SIGTERM come back; the task fails later, and a new kapudf heals it."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("GATE", str(gate))
    process = serve(plugin("lifecycle.py:Gated"))
    daemon = kapacitor()
    daemon.start_task("drained", BY_HOST)
    daemon.write(line(0, host="first"))
    hosts = [f"h{number}" for number in range(50)]
    with gate.open("wb"):
        # The handler waits in its first point. Two points more than are asked for in the
        # end: when the node takes one, the one before the one before has been sent.
        daemon.write(*(line(1, host=host) for host in [*hosts, "last", "later"]))
        daemon.wait_for(lambda: daemon.taken("drained", "udf2") == 53, "the points to be sent")
        process.signal(signal.SIGTERM)
        process.event("stopping")
    assert process.wait() == 0
    finished = process.event("connection finished", task_id="drained")
    assert finished["reason"] == "stopped"
    assert finished["points_in"] == finished["points_out"] > len(hosts)
    groups = daemon.await_groups("drained", finished["points_out"])
    assert {group.tags["host"] for group in groups} >= set(hosts)
    assert daemon.alive

    assert daemon.await_failure("drained", line(2)) == (
        "udf2: stopping UDF server: kapudf stopped serving this task; "
        "start it, then run: kapacitor reload drained"
    )
    assert daemon.alive

    serve("mirror")
    daemon.start_task("other", BY_HOST)
    # As the docs say: all tasks that have failed.
    page = OPERATIONS.read_text("utf-8")
    (recover,) = re.findall(r"^\$ (kapacitor list tasks .*)$", page, re.MULTILINE)
    assert daemon.shell(recover) == ""
    daemon.wait_for(lambda: daemon.status("drained").executing, "the task to run")
    daemon.write(line(3))
    daemon.await_point("drained", n=3)
