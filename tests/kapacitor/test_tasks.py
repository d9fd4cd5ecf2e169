"""Tasks with a UDF, from their definition to what they give back, in a real kapacitord."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import plugin
from tests.kapacitor.daemon import RefusedError
from tests.kapacitor.lines import BY_HOST, line
from tests.serve_process import KAPUDF, PATIENCE_S, ServeProcess
from tests.tickscript.test_identifiers import CALLABLE, KEYWORDS, UNCALLABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kapacitor.daemon import KapacitorDaemon

    Kapacitor = Callable[..., KapacitorDaemon]
    Serve = Callable[..., ServeProcess]


def test_a_point_comes_back_with_fields_of_every_type(serve: Serve, kapacitor: Kapacitor) -> None:
    """Float, integer, string and boolean are what they were, and so are the time and the name."""
    serve("mirror")
    daemon = kapacitor()
    daemon.start_task("all-types", "stream|from()@udf()|httpOut('out')")
    # No float can hold this integer.
    daemon.write('cpu f=0.25,i=9007199254740993i,s="ä \\"b\\", c",t=true 1700000000000000000')
    (group,) = daemon.await_groups("all-types", 1)
    assert group.name == "cpu"
    assert group.rows == [
        {
            "time": "2023-11-14T22:13:20Z",
            "f": 0.25,
            "i": 9007199254740993,
            "s": 'ä "b", c',
            "t": True,
        }
    ]


def test_the_option_field_arrives_whatever_had_its_name(serve: Serve, kapacitor: Kapacitor) -> None:
    """The field that the task asks for is a float, also where it was of another type before."""
    serve("mirror")
    daemon = kapacitor()
    daemon.start_task(
        "option",
        # An integer divided by a float would be an error of the lambda.
        """
        stream
            |from()
                .groupBy('host')
            @udf()
                .field('mycustom_field', 42.0)
                .field('other', -0.5)
            |eval(lambda: "mycustom_field" / 4.0)
                .as('quarter')
                .keep()
            |httpOut('out')
        """,
    )
    values = {"integer": "7i", "string": '"x"', "boolean": "true", "float": "7.5"}
    daemon.write("cpu,host=without n=1i")
    daemon.write(*(f"cpu,host={name} n=1i,mycustom_field={v}" for name, v in values.items()))
    for host in ("without", *values):
        assert daemon.await_point("option", host=host).last == {
            "n": 1,
            "mycustom_field": 42,
            "other": -0.5,
            "quarter": 10.5,
        }


def test_groups_survive(serve: Serve, kapacitor: Kapacitor) -> None:
    """Behind the UDF points are in the groups that they were in, with all their tags."""
    serve("mirror")
    daemon = kapacitor()
    daemon.start_task(
        "groups",
        """
        var points = stream
            |from()
                .groupBy('host', 'dc')
                .groupByMeasurement()
        points
            |httpOut('sent')
        points
            @udf()
            |httpOut('out')
        """,
    )
    daemon.write(
        "cpu,host=a,dc=x,rack=0 n=0i",
        "cpu,host=a,dc=x,rack=1 n=1i",
        "cpu,host=a,dc=y,rack=2 n=2i",
        "cpu,host=b\\ c,dc=x,rack=3 n=3i",
        "mem,host=a,dc=x,rack=4 n=4i",
        "mem,host=a n=5i",
    )
    daemon.await_point("groups", n=5)
    # Of each group httpOut has the last point: the second has taken the first one's place.
    groups = daemon.http_out("groups")
    assert sorted(group.last["n"] for group in groups) == [1, 2, 3, 4, 5]
    assert {group.tags.get("rack") for group in groups} == {"1", "2", "3", "4", None}
    sent = daemon.http_out("groups", "sent")
    assert sorted(groups, key=str) == sorted(sent, key=str)


def test_windows_come_back_whole(serve: Serve, kapacitor: Kapacitor) -> None:
    """Each window of each group, sent as a batch, is the same batch behind the UDF."""
    process = serve(plugin("captured.py:BatchMirror"))
    daemon = kapacitor()
    daemon.start_task(
        "windows",
        """
        var windows = stream
            |from()
                .groupBy('host')
            |window()
                .period(10s)
                .every(10s)
        windows
            |httpOut('sent')
        windows
            @udf()
            |httpOut('out')
        """,
    )
    for start in (0, 10):
        daemon.write(*(line(start + n, host=host) for n in range(11) for host in "ab"))
        for host in "ab":
            group = daemon.await_point("windows", host=host, n=start + 9)
            # The point that closes the window belongs to the next one.
            assert [row["n"] for row in group.rows][-10:] == list(range(start, start + 10))
        assert sorted(daemon.http_out("windows"), key=str) == sorted(
            daemon.http_out("windows", "sent"), key=str
        )
    daemon.disable("windows")
    finished = process.event("connection finished", task_id="windows")
    assert finished["batches_in"] == finished["batches_out"] == 4
    assert finished["points_in"] == finished["points_out"]


def test_a_window_that_becomes_several_batches_is_several_groups(
    serve: Serve, kapacitor: Kapacitor
) -> None:
    """Each has its tags and all of its points, though the window was of no group."""
    serve(plugin("against_kapacitor.py:ByHost"))
    daemon = kapacitor()
    daemon.start_task(
        "split",
        """
        stream
            |from()
                .measurement('cpu')
            |window()
                .period(3s)
                .every(3s)
            @udf()
            |mean('usage')
            |httpOut('out')
        """,
    )
    for second in range(4):
        daemon.write(
            f"cpu,host=a usage={second}.0 {second}000000000",
            f"cpu,host=b usage={second * 10}.0 {second}000000000",
        )
    groups = daemon.await_groups("split", 2)
    assert {group.tags["host"]: group.last for group in groups} == {
        "a": {"mean": 1.0},
        "b": {"mean": 10.0},
    }
    daemon.disable("split")


def test_kapacitor_reads_the_same_words_as_names(
    serve: Serve, kapacitor: Kapacitor, record: Path
) -> None:
    record.write_text(" ".join([*CALLABLE, *KEYWORDS]), encoding="utf-8")
    serve(plugin("against_kapacitor.py:DeclaresNames"))
    daemon = kapacitor()
    calls = "".join(f".{name}(1)" for name in CALLABLE)
    daemon.define("all-names", f"stream|from()@udf(){calls}|log()")
    for number, name in enumerate([*KEYWORDS, *UNCALLABLE]):
        with pytest.raises(RefusedError, match=r"invalid TICKscript: (parser|line)"):
            daemon.define(f"name-{number}", f"stream|from()@udf().{name}(1)|log()")


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("@udf().feild('x', 1.0)", 'no method or property "feild"'),
        ("@udf().field('x', 1)", "unexpected arg to field, got INT expected DOUBLE"),
        ("@udf().field('x')", "unexpected number of args to field, got 1 expected 2"),
        ("@other()", 'no method or property "other"'),
    ],
)
def test_kapacitor_refuses_a_script_that_does_not_fit_the_options(
    serve: Serve, kapacitor: Kapacitor, call: str, complaint: str
) -> None:
    """It learnt the options at its start, and so names the fault when a task is defined."""
    process = serve("mirror")
    daemon = kapacitor()
    with pytest.raises(RefusedError, match=complaint):
        daemon.define("misfit", f"stream|from(){call}|httpOut('out')")
    with pytest.raises(RefusedError, match="no task exists"):
        daemon.status("misfit")
    assert len(list(process.matching("connection started"))) == 1


def test_a_probe_looks_like_kapacitors_start(
    serve: Serve, kapacitor: Kapacitor, socket_path: str
) -> None:
    """The connection that kapacitord makes at its start and that of `kapudf probe` log alike."""
    process = serve("mirror")
    daemon = kapacitor()
    process.event("connection finished", peer_pid=daemon.pid)
    subprocess.run(
        [*KAPUDF, "probe", "--socket", socket_path],
        check=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    process.await_events("connection finished", 2)

    varying = {"connection", "peer_pid", "duration_s", "timestamp"}
    logged: dict[int, list[dict[str, object]]] = {1: [], 2: []}
    for event in process.events[1:]:
        facts = {name: value for name, value in event.items() if name not in varying}
        logged[event["connection"]].append(facts)
    assert logged[1] == logged[2]
    assert [facts["event"] for facts in logged[1]] == ["connection started", "connection finished"]
    assert (logged[1][1]["reason"], logged[1][1]["level"]) == ("closed", "info")


@pytest.mark.parametrize("folder_name", ["plain", 'quoted "ü" \\', "😀"])
def test_kapacitor_takes_the_section_that_check_config_prints(
    kapacitor: Kapacitor, short_folder: Path, folder_name: str
) -> None:
    """Pasted into kapacitor.conf, it makes every function callable, whatever the socket's path."""
    folder = short_folder / folder_name
    folder.mkdir()
    config = short_folder / "kapudf.yaml"
    config.write_text(
        f"functions:\n"
        f"  first: {{handler: mirror, socket: '{folder}/1.sock'}}\n"
        f"  second: {{handler: mirror, socket: '{folder}/2.sock'}}\n",
        encoding="utf-8",
    )
    section = subprocess.run(
        [*KAPUDF, "check-config", str(config), "--kapacitor"],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    ).stdout
    with ServeProcess("--config", str(config)) as process:
        process.await_events("listening", 2)
        daemon = kapacitor(udf_section=section)
        daemon.start_task(
            "chain", "stream|from()@first().field('x', 0.5)@second().field('y', 1.5)|httpOut('out')"
        )
        daemon.write(line(1))
        assert daemon.await_point("chain", n=1).last == {"n": 1, "x": 0.5, "y": 1.5}
        daemon.disable("chain")


def test_a_task_can_be_disabled_and_enabled_again_and_again(
    serve: Serve, kapacitor: Kapacitor
) -> None:
    """Ten times over: points flow each time, and each connection is logged as ordinary."""
    process = serve("mirror")
    daemon = kapacitor()
    daemon.define("often", BY_HOST)
    for number in range(10):
        daemon.enable("often")
        process.await_events("task connected", number + 1, task_id="often")
        daemon.write(line(number))
        daemon.await_point("often", n=number)
        daemon.disable("often")
        process.await_events("connection finished", number + 1, task_id="often")
    finished = list(process.matching("connection finished", task_id="often"))
    assert [(event["reason"], event["level"]) for event in finished] == [("closed", "info")] * 10
    assert [(event["points_in"], event["points_out"]) for event in finished] == [(1, 1)] * 10


def test_an_idle_task_is_kept_alive(kapacitor: Kapacitor, short_folder: Path) -> None:
    """It outlives a task, started later, whose handler hangs; that one fails, and is told why."""
    stuck = plugin("lifecycle.py:Stuck")
    config = short_folder / "kapudf.yaml"
    config.write_text(
        f"functions:\n"
        f"  mirror: {{handler: mirror, socket: {short_folder}/1.sock}}\n"
        f"  stuck: {{handler: '{stuck}', socket: {short_folder}/2.sock, busy_limit_s: 1}}\n",
        encoding="utf-8",
    )
    section = (
        f'[udf]\n[udf.functions.mirror]\nsocket = "{short_folder}/1.sock"\ntimeout = "1s"\n'
        f'[udf.functions.stuck]\nsocket = "{short_folder}/2.sock"\ntimeout = "1s"\n'
    )
    with ServeProcess("--config", str(config)) as process:
        process.await_events("listening", 2)
        daemon = kapacitor(udf_section=section)
        daemon.start_task("idle", "stream|from().measurement('cpu')@mirror()|httpOut('out')")
        process.event("task connected", task_id="idle")
        daemon.start_task("hung", "stream|from().measurement('mem')@stuck()|httpOut('out')")
        process.event("task connected", task_id="hung")
        daemon.write(line(1, name="mem"))
        # Past busy_limit_s, its worker is replaced; the second one hangs at the same point.
        error = daemon.await_failure("hung", line(2, name="mem"))
        assert "on_error: skip would drop it" in error
        assert process.event("handler hangs, its worker is replaced")["task_id"] == "hung"

        assert daemon.status("idle").executing
        daemon.write(line(2))
        daemon.await_point("idle", n=2)
        daemon.disable("idle")
