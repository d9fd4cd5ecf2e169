"""Every built-in handler in a task of a real kapacitord."""

from __future__ import annotations

import importlib
import re
import textwrap
from typing import TYPE_CHECKING

import pytest

from kapudf_cli import plugins
from tests.kapacitor.daemon import RefusedError
from tests.serve_process import ServeProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kapacitor.daemon import Binaries, KapacitorDaemon

    Kapacitor = Callable[..., KapacitorDaemon]

#: Each handler by its name, with the module whose docstring shows it.
MODULES = {
    "mirror": "kapudf_handlers.mirror",
    "default": "kapudf_handlers.default",
    "batch-mirror": "kapudf_handlers.mirror",
    "moving-average": "kapudf_handlers.moving_average",
    "outliers": "kapudf_handlers.outliers",
    "ttest": "kapudf_handlers.ttest",
    "rate": "kapudf_handlers.rate",
    "seasonal-baseline": "kapudf_handlers.seasonal_baseline",
    "enrich": "kapudf_handlers.enrich",
}

SECOND = 1_000_000_000
START_NS = 1_700_000_000 * SECOND


@pytest.fixture
def functions(binaries: Binaries, short_folder: Path) -> Iterator[str]:
    """Serve every handler, and give the section of kapacitor.conf with them as functions."""
    del binaries  # Without a kapacitord, the test is skipped before a server starts.
    section = "[udf]\n"
    config = "functions:\n"
    for name in MODULES:
        function, socket = name.replace("-", "_"), short_folder / f"{name}.sock"
        config += f"  {function}: {{handler: {name}, socket: {socket}}}\n"
        section += f'[udf.functions.{function}]\nsocket = "{socket}"\ntimeout = "60s"\n'
    path = short_folder / "kapudf.yaml"
    path.write_text(config, encoding="utf-8")
    with ServeProcess("--config", str(path)) as process:
        process.await_events("listening", len(MODULES))
        yield section
        assert list(process.matching("handler failed")) == []


@pytest.fixture
def daemon(functions: str, kapacitor: Kapacitor) -> KapacitorDaemon:
    """Start kapacitord with every handler as a function: the names have underscores there."""
    return kapacitor(udf_section=functions)


def line(second: int, fields: str, *, host: str = "a") -> str:
    """Return a point of some second."""
    return f"cpu,host={host} {fields} {START_NS + second * SECOND}"


def snippet(name: str) -> str:
    """Return the TICKscript in the docstring of a handler's module."""
    text = importlib.import_module(MODULES[name]).__doc__ or ""
    found = re.search(r"^ *stream\n(?: +\S.*\n)+", text, re.MULTILINE)
    assert found, f"{name}: no TICKscript in its docstring"
    script = textwrap.dedent(found[0])
    if name == "batch-mirror":
        # The docstring says what it takes to make one of the mirror's.
        window = re.search(r"`(\|window\(\)\S*)`", text)
        assert window
        assert "`@batch_mirror()`" in text
        script = script.replace("@mirror()", f"{window[1]}\n    @batch_mirror()")
    assert f"@{name.replace('-', '_')}()" in script
    return script


def test_every_handler_of_kapudf_is_tried_here() -> None:
    """One more is one more here."""
    own = {entry.name: entry for entry in plugins.discover() if entry.distribution == "kapudf"}
    targets = {name: entry.module for name, entry in own.items()}
    assert targets == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_kapacitor_takes_the_snippet_of_the_documentation(
    daemon: KapacitorDaemon, name: str
) -> None:
    """The task can be defined and enabled, and runs."""
    daemon.start_task("documented", snippet(name))
    daemon.wait_for(lambda: daemon.status("documented").executing, "the task to run")
    assert daemon.status("documented").error == ""
    daemon.disable("documented")


def test_the_mirror_sets_fields_and_tags(daemon: KapacitorDaemon) -> None:
    """Both arrive, over what was there, and a tag that the task groups by is no exception."""
    daemon.start_task(
        "mirrored",
        """
        stream
            |from()
                .groupBy('host')
            @mirror()
                .field('n', 0.5)
                .field('m', 1.5)
                .tag('checked', 'yes')
                .tag('host', 'everywhere')
            |httpOut('out')
        """,
    )
    daemon.write(line(1, "n=1i,other=2i"))
    group = daemon.await_point("mirrored", n=0.5)
    assert group.last == {"n": 0.5, "m": 1.5, "other": 2}
    assert group.tags == {"host": "everywhere", "checked": "yes"}


def test_the_batch_mirror_gives_windows_back(daemon: KapacitorDaemon) -> None:
    """Each group's window is whole, with the field and the tag on each point."""
    daemon.start_task(
        "batches",
        """
        stream
            |from()
                .groupBy('host')
            |window()
                .period(10s)
                .every(10s)
            @batch_mirror()
                .field('x', 0.5)
                .tag('checked', 'yes')
            |httpOut('out')
        """,
    )
    daemon.write(*(line(n, f"n={n}i", host=host) for n in range(11) for host in "ab"))
    for host in "ab":
        group = daemon.await_point("batches", host=host, n=9)
        assert [row["n"] for row in group.rows] == list(range(10))
        assert {(row["x"], row["checked"]) for row in group.rows} == {(0.5, "yes")}
        assert group.name == "cpu"


#: The fields that a point has, and its tags.
POINTS = {
    "without": ("", "y=1i"),
    "float": (",host=a", "y=2i,x=2.5"),
    "integer": (",host=b", "y=3i,x=3i"),
    "string": (",host=c,dc=east", 'y=4i,x=""'),
    "boolean": (",host=d", "y=5i,x=false"),
    "neither": (",host=e", "y=6i"),
}


def compared_with_default_node(
    daemon: KapacitorDaemon, udf_calls: str, node_calls: str, *points: str
) -> tuple[list[str], list[str]]:
    """Return what points become behind the UDF, and behind Kapacitor's own node."""
    script = f"""
        var points = stream
            |from()
                .groupBy('host', 'dc')
        points
            |default(){node_calls}
            |httpOut('node')
        points
            @default(){udf_calls}
            |httpOut('out')
    """
    daemon.start_task("compared", script)
    daemon.write(*points)

    def both() -> tuple[list[str], list[str]] | None:
        out, node = (daemon.http_out("compared", endpoint) for endpoint in ("out", "node"))
        if len(out) < len(points) or len(node) < len(points):
            return None
        return sorted(map(repr, out)), sorted(map(repr, node))

    return daemon.wait_for(both, "every point at both nodes")


@pytest.mark.parametrize(
    ("udf_call", "node_call"),
    [
        (".field('x', 0.5)", ".field('x', 0.5)"),
        (".fieldInt('x', 7)", ".field('x', 7)"),
        (".fieldString('x', 'seven')", ".field('x', 'seven')"),
        (".fieldBool('x', TRUE)", ".field('x', TRUE)"),
        (
            ".field('u', 0.5).fieldInt('v', 7).fieldString('w', '').fieldBool('x', FALSE)",
            ".field('u', 0.5).field('v', 7).field('w', '').field('x', FALSE)",
        ),
    ],
    ids=["float", "int", "string", "bool", "all"],
)
def test_default_does_what_kapacitor_s_own_node_does(
    daemon: KapacitorDaemon, udf_call: str, node_call: str
) -> None:
    """Fields of all types, tags, and the groups that come of the tags are the same."""
    tags = ".tag('host', 'none').tag('dc', 'nowhere')"
    points = [f"cpu{tags} {fields} {START_NS}" for tags, fields in POINTS.values()]
    out, node = compared_with_default_node(daemon, udf_call + tags, node_call + tags, *points)
    assert out == node


def test_of_two_defaults_for_one_name_the_same_counts_as_with_kapacitor_s_own_node(
    daemon: KapacitorDaemon,
) -> None:
    """A call made again is the one that counts, for fields as for tags."""
    calls = ".field('x', 1.0).field('x', 2.0).tag('host', 'first').tag('host', 'last')"
    out, node = compared_with_default_node(daemon, calls, calls, f"cpu y=1i {START_NS}")
    assert out == node


def test_the_moving_average_is_per_group(daemon: KapacitorDaemon) -> None:
    """Each host has its own, of the last three, and a point without the field passes."""
    daemon.start_task(
        "averaged",
        """
        stream
            |from()
                .groupBy('host')
            @moving_average()
                .field('usage')
                .size(3)
                .as('mean')
            |httpOut('out')
        """,
    )
    for host, factor in (("a", 1), ("b", 100)):
        values = ((n, f"usage={n * factor}i,n={n}i") for n in range(1, 6))
        daemon.write(*(line(n, fields, host=host) for n, fields in values))
        group = daemon.await_point("averaged", host=host, n=5)
        assert group.last == {"usage": 5 * factor, "n": 5, "mean": 4 * factor}
    daemon.write(line(6, "n=6i"), line(7, "n=7i,other=1.5"))
    assert daemon.await_point("averaged", host="a", n=7).last == {"n": 7, "other": 1.5}
    daemon.write(line(8, "n=8i,usage=6.5"))
    assert daemon.await_point("averaged", host="a", n=8).last["mean"] == pytest.approx(15.5 / 3)


def test_an_option_out_of_range_is_the_task_s_error(daemon: KapacitorDaemon) -> None:
    """Kapacitor shows the sentence, as it cannot check ranges itself."""
    daemon.define("wrong", "stream|from()@moving_average().field('usage').size(0)|httpOut('out')")
    try:
        daemon.enable("wrong")
    except RefusedError as error:
        said = str(error)
    else:
        said = daemon.await_failure("wrong", line(1, "usage=1.0"))
    assert ".size() expects a whole number, at least 1 and at most 1000000, got 0" in said


def test_outliers_are_left_of_each_window(daemon: KapacitorDaemon) -> None:
    """They come in a batch of their own group, with their own times and fields."""
    daemon.start_task(
        "outlying",
        """
        stream
            |from()
                .groupBy('host')
            |window()
                .period(10s)
                .every(10s)
            @outliers()
                .field('usage')
                .scale(2.0)
            |httpOut('out')
        """,
    )
    odd = {("a", 3): 90.5, ("a", 7): -90.5, ("b", 5): 70.5}
    daemon.write(
        *(
            line(n, f"usage={odd.get((host, n), 20 + n % 3 / 2)},n={n}i", host=host)
            for n in range(11)
            for host in "ab"
        )
    )
    of_a = daemon.await_point("outlying", host="a", n=7)
    assert of_a.rows == [
        {"time": "2023-11-14T22:13:23Z", "usage": 90.5, "n": 3},
        {"time": "2023-11-14T22:13:27Z", "usage": -90.5, "n": 7},
    ]
    assert of_a.name == "cpu"
    assert [row["usage"] for row in daemon.await_point("outlying", host="b", n=5).rows] == [70.5]


def test_the_t_test_gives_a_point_for_a_window_that_differs(daemon: KapacitorDaemon) -> None:
    """It is a point of the window's group, at the window's end, on which an alert can be made."""
    daemon.start_task(
        "tested",
        """
        stream
            |from()
                .groupBy('host')
            |window()
                .period(10s)
                .every(10s)
            @ttest()
                .field('usage')
                .size(100)
                .alpha(0.001)
            |eval(lambda: "p" < 0.001)
                .as('sure')
                .keep()
            |httpOut('out')
        """,
    )

    def usage(host: str, second: int) -> float:
        strange = 50 if (host, second // 10) == ("b", 2) else 0
        return 20 + strange + second % 7 / 2

    daemon.write(
        *(line(n, f"usage={usage(host, n)}", host=host) for n in range(41) for host in "ab")
    )
    group = daemon.await_point("tested", host="b", sure=True)
    assert group.name == "cpu"
    assert group.tags == {"host": "b"}
    assert sorted(group.last) == ["df", "p", "sure", "t"]
    assert group.last["t"] < -10
    assert 0 < group.last["p"] < 0.001
    # The windows end with the seconds 10, 20, 30 and 40; the third differs.
    assert group.rows[0]["time"] == "2023-11-14T22:13:50Z"
    assert len(daemon.http_out("tested")) == 1
