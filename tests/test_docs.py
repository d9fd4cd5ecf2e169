"""The snippets in the README and the docs work as described."""

from __future__ import annotations

import datetime as dt
import http.server
import importlib
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from kapudf_cli import Batch, Handler, Point, get_field, get_fields, plugins, scaffold, set_field
from kapudf_cli.client.target import describe
from kapudf_cli.commands import main
from kapudf_cli.config import check
from kapudf_cli.handler import FieldValueError
from kapudf_cli.handler.declared import options_class
from kapudf_cli.handler.options import declare
from kapudf_cli.protocol import (
    BOOL,
    DOUBLE,
    DURATION,
    INT,
    STRING,
    InitRequest,
    Option,
    OptionValue,
)
from kapudf_cli.testing import StartTask, Task, TaskFailedError, grouped, lines
from kapudf_cli.tickscript.snippets import edge_name, signatures
from kapudf_cli.tools.check import CHECKS
from tests.peers import in_thread
from tests.run_kapudf import PYTEST, run_kapudf
from tests.serve_process import KAPUDF

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from kapudf_cli.handler import FieldValue
    from tests.serve_process import ServeProcess

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
INDEX, TUTORIAL, GUIDE, REFERENCE, ASYNC, MODELS, MIGRATION, SCALING = (
    ROOT / "docs" / f"{name}.md"
    for name in (
        "index", "tutorial", "writing-handlers", "handler-reference", "async-handlers", "models",
        "migration", "scaling",
    )
)  # fmt: skip
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def named_snippets(page: Path) -> dict[str, str]:
    """Return the Python blocks of a page by the file name that stands before each."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^`(\w+)\.py`:\n\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(dict(found)) == len(found), "two snippets have one name"
    return dict(found)


def write_snippets(page: Path, folder: Path) -> list[Path]:
    """Write each Python block of a page to a file of its name."""
    files = []
    for name, code in named_snippets(page).items():
        files.append(folder / f"{name}.py")
        files[-1].write_text(code, encoding="utf-8")
    return files


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Import a snippet from its file, as `--handler file.py:Class` would."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def imported(name: str, page: Path | None = None) -> ModuleType:
        if page is None:
            pages = (GUIDE, REFERENCE, ASYNC, MODELS)
            page = next(each for each in pages if name in named_snippets(each))
        write_snippets(page, tmp_path)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield imported
    for module in set(sys.modules) - before:
        if getattr(sys.modules[module], "__file__", None) == str(tmp_path / f"{module}.py"):
            del sys.modules[module]


def values(points: Sequence[Point], field: str) -> list[FieldValue | None]:
    """Return a field of each point."""
    return [get_field(point, field) for point in points]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_snippet_has_a_file_name_and_can_be_imported(
    page: Path, load: Callable[..., ModuleType]
) -> None:
    names = named_snippets(page)
    assert list(names.values()) == snippets(page, "python")
    tests = Path(__file__).read_text(encoding="utf-8")
    for name in names:
        # A test, what the sessions of their page run, and scripts for InfluxData's agent.
        if name in {"twice", "counter"} or name.startswith(("old_", "test_")):
            continue
        module = load(name, page)
        handlers = [each for each in vars(module).values() if _is_own_handler(each, module)]
        assert handlers or name == "calls"
        for handler in handlers:
            assert describe(handler).wants == handler.wants
        assert f'load("{name}"' in tests


def _is_own_handler(value: object, module: ModuleType) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, Handler)
        and value.__module__ == module.__name__
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "page",
    [README, TUTORIAL, GUIDE, REFERENCE, ASYNC, MODELS, MIGRATION],
    ids=lambda page: page.stem,
)
def test_every_python_snippet_is_accepted_by_mypy(page: Path, tmp_path: Path) -> None:
    files = write_snippets(page, tmp_path)
    options = ["--strict", "--config-file=", "--cache-dir", str(ROOT / ".mypy_cache")]
    command = [
        KAPUDF[0],
        "-m",
        "mypy",
        *options,
        *(name for file in files if not (name := file.name).startswith("old_")),
    ]
    verdict = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert verdict.returncode == 0, verdict.stdout


def test_the_handler_of_the_readme_is_short_and_scales(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    assert len(named_snippets(README)["scale"].splitlines()) <= 15
    module = load("scale", README)
    points = lines("m value=2.5 1", "m value=4i 2", "m other=1i 3", 'm value="text" 4')
    out = udf(module.Scale, module.ScaleOptions(factor=2.5)).send(*points)
    assert values(out.points, "value") == [6.25, 10.0, None, "text"]
    assert out.points[2:] == points[2:]
    assert values(udf(module.Scale).send(points[0]).points, "value") == [5.0]


def test_the_handler_of_the_tutorial_notices_a_surge(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("surge", TUTORIAL)
    points = lines("m count=100 1", "m count=0 2", "m other=1 3", "m count=450 4")
    out = udf(module.Surge, module.SurgeOptions(field="count")).send(*points).points
    assert values(out, "times") == [1.0, 0.0, None, 5.0]


def test_the_smallest_handler_doubles(load: Callable[..., ModuleType], udf: StartTask) -> None:
    out = udf(load("double").Double).send(*lines("m value=2.5 1", "m value=2i 2", "m x=1 3"))
    assert values(out.points, "value") == [5.0, 4.0, None]


def test_the_handler_with_options_scales_and_says_what_is_wrong(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("scale")
    task = udf(module.Scale, module.ScaleOptions(field="usage", factor=2.5, as_="scaled"))
    (point,) = task.send(*lines("m usage=2.0 1")).points
    assert get_fields(point) == {"usage": 2.0, "scaled": 5.0}
    task = udf(module.Scale, module.ScaleOptions(field="usage"))
    assert values(task.send(*lines("m usage=2i 1")).points, "usage") == [4.0]
    factor = Option(name="factor", values=[OptionValue(type=DOUBLE, doubleValue=-1.0)])
    with Task.of(module.Scale) as task, pytest.raises(TaskFailedError) as failed:
        task.init_raw(InitRequest(options=[factor]))
    assert f"{failed.value}\n" in snippets(GUIDE, "text")


def test_each_kind_of_option_is_called_as_its_comment_says(
    load: Callable[..., ModuleType],
) -> None:
    declared = declare(load("calls").CallsOptions)
    comments = re.findall(r"# \.(\w+)\((.*?)\)", named_snippets(GUIDE)["calls"])
    kinds = {"'": STRING, "T": BOOL, "F": BOOL}
    told = {}
    for name, arguments in comments:
        told[name] = [
            kinds.get(each[0], DURATION if each.endswith("s") else DOUBLE if "." in each else INT)
            for each in filter(None, arguments.split(", "))
        ]
    assert told == {name: list(option.valueTypes) for name, option in declared.items()}
    assert len(told) == 10


def test_a_field_changes_its_type_and_a_time_is_cut(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    out = udf(load("status").Status).send(
        *lines("m,host=a status=200i 3661000000001", "m x=1.0 1000000000")
    )
    first, second = out.points
    assert (dict(first.fieldsInt), dict(first.fieldsString)) == ({}, {"status": "200"})
    assert (first.tags["seen"], first.time) == ("a 01:01", 3_661_000_000_000)
    assert (second.tags["seen"], get_fields(second)) == ("nowhere 00:00", {"x": 1.0})


def test_a_point_is_made_like_another(load: Callable[..., ModuleType], udf: StartTask) -> None:
    points = grouped(lines('m,host=a x=1.5,up=true,n=2i,s="text" 7'), "host")
    out = udf(load("unpivot").Unpivot).send(*points)
    assert {get_field(p, "field"): get_field(p, "value") for p in out.points} == {
        "x": 1.5,
        "up": True,
        "n": 2,
        "s": "text",
    }
    envelopes = {(p.name, p.time, p.group, p.tags["host"], *p.dimensions) for p in out.points}
    assert envelopes == {("m", 7, "host=a", "a", "host")}


def test_what_no_field_can_hold_is_refused_in_the_words_of_the_page() -> None:
    with pytest.raises(FieldValueError) as refused:
        set_field(Point(), "avg", float("nan"))
    assert f"{refused.value}\n" in snippets(GUIDE, "text")


def test_a_point_that_comes_with_nan_may_be_passed_on(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("scale")
    task = udf(module.Scale, module.ScaleOptions(field="usage"))
    (point,) = task.send(Point(fieldsDouble={"other": float("inf")})).points
    assert point.fieldsDouble["other"] == float("inf")


def test_the_handler_with_state_counts_across_a_restart(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    count = load("count").Count
    before = udf(count)
    before.send(*lines("m x=1 1", "m x=1 2", "m x=1 3"))
    assert f"{before.snapshot().decode()}\n" in snippets(GUIDE, "json")
    after = udf(count)
    after.restore(before.snapshot())
    assert values(after.send(*lines("m x=1 4")).points, "count") == [4]


def test_a_handler_without_state_has_an_empty_snapshot(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    assert udf(load("double").Double).snapshot() == b""


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_state_of_the_handlers_own_is_joined_and_split(
    load: Callable[..., ModuleType], udf: StartTask, partitions: int
) -> None:
    handler = load("divided", SCALING).Divided
    sent = [Point(time=number, group=f"g{number % 4}") for number in range(8)]
    before = udf(handler, partitions=2)
    assert values(before.send(*sent).points, "count") == [1] * 4 + [2] * 4
    after = udf(handler, partitions=partitions)
    after.restore(before.snapshot())
    assert values(after.send(*sent[:4]).points, "count") == [3] * 4


def test_the_rate_goes_by_group_unit_and_time(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("rate")
    call = module.RateOptions(field="value", unit=dt.timedelta(minutes=1), as_="per_minute")
    points = lines(
        "m,host=a value=1.0 1000000000",
        "m,host=b value=1i 1000000000",
        "m,host=a value=3.0 3000000000",
        "m,host=a value=3.0 3000000000",
        "m,host=b value=1.0 2000000000000",
        "m,host=b value=1.0 3700000000000",
        "m,host=a value=9.0 3701000000000",
    )
    out = udf(module.Rate, call).send(*grouped(points, "host"))
    assert values(out.points, "per_minute") == [None, None, 60.0, None, 0.0, 0.0, None]
    with pytest.raises(TaskFailedError, match="expects a duration above 0s"):
        udf(module.Rate, module.RateOptions(field="value", unit=dt.timedelta(0)))


def test_a_snapshot_of_the_first_version_is_migrated(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    first = udf(load("count").Count)
    first.send(*lines("m x=1 1", "m x=1 2"))
    second = udf(load("count2").Count)
    second.restore(first.snapshot())
    assert values(second.send(*lines("m x=1 9")).points, "count") == [3]
    assert json.loads(second.snapshot()) == {
        "handler": "Count",
        "version": 2,
        "state": {"points": 3, "latest_ns": 9},
    }
    of_another_program = udf(load("count2").Count)
    of_another_program.restore(b"41")
    assert values(of_another_program.send(*lines("m x=1 9")).points, "count") == [42]
    for foreign in (b'{"handler":"Other","version":1,"state":{}}', b"damaged"):
        with pytest.raises(TaskFailedError, match="the snapshot is"):
            udf(load("count2").Count).restore(foreign)
        udf(load("count").Count).restore(foreign)


def test_the_state_of_groups_is_kept_as_the_page_says(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("rate")
    task = udf(module.Rate, module.RateOptions(field="value"))
    task.send(*grouped(lines("m,host=a value=1.5 7"), "host"))
    assert json.loads(task.snapshot())["state"] == {
        "newest_ns": 7,
        "groups": [["host=a", 7, {"value": 1.5, "time": 7}]],
    }


def test_the_largest_of_a_batch_come_first(load: Callable[..., ModuleType], udf: StartTask) -> None:
    module = load("largest")
    task = udf(module.Largest, module.LargestOptions(field="value", count=2))
    points = lines("cpu value=1.0 1", "cpu value=3i 2", 'cpu value="text" 3', "cpu value=2.0 4")
    out = task.send(Batch("cpu", points, {"host": "a"}, "host=a", 9), Batch("cpu", tmax_ns=10))
    full, empty = out.batches
    assert values(full.points, "value") == [3, 2.0]
    assert (full.name, full.tags, full.group, full.tmax_ns) == ("cpu", {"host": "a"}, "host=a", 9)
    assert (empty.points, empty.tmax_ns) == ([], 10)


def test_the_handler_that_keeps_what_is_large_passes_begin_and_end_on(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    points = lines("cpu value=1.0 1", "cpu value=91.0 2", "cpu x=99.0 3")
    (batch,) = udf(load("only_large").OnlyLarge).send(Batch("cpu", points, tmax_ns=9)).batches
    assert (batch.points, batch.name, batch.tmax_ns) == ([points[1]], "cpu", 9)


def test_a_batch_becomes_a_point_of_a_stream(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    points = [Point(fieldsDouble={"value": 1.0}), Point(fieldsInt={"value": 4})]
    full = Batch("cpu", points, {"host": "a", "core": "1"}, "core=1,host=a", 9)
    (point,) = udf(load("mean").Mean).send(full, Batch("cpu", tmax_ns=10)).points
    assert (point.name, point.time, get_fields(point)) == ("cpu", 9, {"mean": 2.5})
    assert dict(point.tags) == {"host": "a", "core": "1"}
    assert list(point.dimensions) == ["core", "host"]
    assert (point.database, point.retentionPolicy) == ("", "")


def test_points_are_collected_into_batches(load: Callable[..., ModuleType], udf: StartTask) -> None:
    module = load("collect")
    task = udf(module.Collect, module.CollectOptions(size=2))
    points = lines("m,host=a x=1.0 1", "m,host=b x=2.0 2", "m,host=a x=3.0 3")
    (batch,) = task.send(*grouped(points, "host")).batches
    assert (batch.name, batch.tags, batch.tmax_ns) == ("m", {"host": "a"}, 3)
    assert values(batch.points, "x") == [1.0, 3.0]
    (rest,) = task.finish().batches
    assert (rest.tags, values(rest.points, "x")) == ({"host": "b"}, [2.0])


def test_the_collector_survives_options_that_are_refused(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("collect")
    with pytest.raises(TaskFailedError, match="at least 1"):
        udf(module.Collect, module.CollectOptions(size=0))


def test_columns_give_scores(load: Callable[..., ModuleType], udf: StartTask) -> None:
    pytest.importorskip("numpy")
    task = udf(load("zscore").ZScore)
    points = lines("m value=1.0 1", "m value=3i 2", "m x=1.0 3")
    (batch, even, empty) = task.send(
        Batch("m", points), Batch("m", lines("m value=1.0 1")), Batch("m")
    ).batches
    assert values(batch.points, "z") == [-1.0, 1.0, None]
    assert values(even.points, "z") == [None]
    assert empty.points == []


@pytest.mark.parametrize(
    ("page", "file", "count"), [(GUIDE, "test_rate.py", 3), (TUTORIAL, "test_surge.py", 2)]
)
def test_the_tests_of_a_page_pass(page: Path, file: str, count: int, tmp_path: Path) -> None:
    write_snippets(page, tmp_path)
    command = [*PYTEST, file]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert f"{count} passed" in result.stdout


def test_points_are_passed_on_with_a_mark_or_as_they_came(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("pass_on")
    points = lines("m x=1.5 1", "m,mark=b x=2i 2")
    assert udf(module.PassOn).send(*points).points == points
    out = udf(module.PassOn, module.PassOnOptions(mark="a")).send(*points).points
    assert [point.tags["mark"] for point in out] == ["a", "a"]


def test_every_tenth_point_is_marked(load: Callable[..., ModuleType], udf: StartTask) -> None:
    points = [point for number in range(20) for point in lines(f"m x={number}.0 {number}")]
    out = udf(load("every_tenth").EveryTenth).send(*points).points
    marked = [number for number, mark in enumerate(values(out, "tenth")) if mark]
    assert marked == [9, 19]
    assert out[:9] == points[:9]
    assert out[9].tags["marked_by"] == "every_tenth"


def test_the_total_goes_up_and_everything_else_stays(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    points = lines("m value=1.5 1", "m other=1i 2", "m value=2i 3")
    out = udf(load("total").Total).send(*points).points
    assert values(out, "total") == [1.5, 1.5, 3.5]
    assert get_field(out[1], "other") == 1


def test_the_model_is_loaded_once_and_scores(
    load: Callable[..., ModuleType],
    udf: StartTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "model.json"
    file.write_text('{"fields": ["a", "b"], "weights": [2.0, 0.5]}')
    monkeypatch.setenv("SCORE_MODEL", str(file))
    module = load("score")
    first = udf(module.Score).send(*lines("m a=1.0,b=2i 10"))
    file.unlink()
    second = udf(module.Score).send(*lines("m a=1.0 20", "m a=0.0,b=4.0 30"))
    assert values([*first.points, *second.points], "score") == [3.0, None, 2.0]


def test_the_owners_of_hosts_are_asked_for_once(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("owner")
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.path.removeprefix("/")
            asked.append(host)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"owner": f"owner of {host}"}).encode())

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        in_thread(server.serve_forever)
        options = module.OwnerOptions(url=f"http://127.0.0.1:{server.server_port}")
        sent = lines(*(f"cpu,host={host} usage=1" for host in ("a", "b", "a", "c", "b")))
        out = udf(module.Owner, options).send(*sent).points
        server.shutdown()
    assert [point.tags["owner"] for point in out] == [f"owner of {host}" for host in "abacb"]
    assert sorted(asked) == ["a", "b", "c"]


def test_the_handler_by_hand_scales_counts_and_insists_on_its_option(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    handler = load("by_hand").ByHand
    factor = Option(name="factor", values=[OptionValue(type=DOUBLE, doubleValue=3.0)])
    with Task.of(handler) as task:
        assert list(task.info().options) == ["factor"]
        task.init_raw(InitRequest(options=[factor]))
        task.restore(b"4")
        (point,) = task.send(*lines("m value=2.0 1")).points
        assert get_fields(point) == {"value": 6.0, "count": 5}
        assert task.snapshot() == b"5"
    with pytest.raises(TaskFailedError, match=re.escape("call .factor(2.0) once")):
        udf(handler)


def test_what_is_served_from_a_file_is_on_its_page() -> None:
    for page in (README, INDEX, TUTORIAL, GUIDE):
        served = re.findall(r"--handler (\w+)\.py:(\w+)", page.read_text(encoding="utf-8"))
        assert served
        for name, handler in served:
            assert f"class {handler}(Handler)" in named_snippets(page)[name]


def test_the_project_of_the_page_is_what_kapudf_new_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = scaffold.names_of("my-rate")
    shown = [tomllib.loads(text) for text in snippets(GUIDE, "toml")]
    target = f"{names.package}.handler:{names.class_name}"
    assert {"project": {"entry-points": {"kapudf.handlers": {"my-rate": target}}}} in shown
    monkeypatch.chdir(tmp_path)
    printed = CliRunner().invoke(main, ["new", "my-rate"]).stdout
    commands = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    console = "".join(f"$ {line}\n" for line in ["kapudf new my-rate", *commands])
    assert console in snippets(GUIDE, "console")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_toml_and_yaml_of_a_page_are_valid(page: Path) -> None:
    for text in snippets(page, "toml"):
        assert tomllib.loads(text)
    for text in snippets(page, "yaml"):
        assert check(yaml.safe_load(text), source=page.name).functions


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_kapudf_command_of_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^\$ (kapudf .+)$", text, re.MULTILINE)
    for line in [*lines, *re.findall(r"`(kapudf [a-z-]+(?: [^`…]+)?)`", text)]:
        _, command, *words = line.split()
        found = main.get_command(main.make_context("kapudf", [command]), command)
        assert found is not None, line
        known = {flag for option in found.params for flag in (*option.opts, *option.secondary_opts)}
        used = {word for word in words if word.startswith("--")} - {"--help"}
        assert used <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        if not name.startswith("https://"):
            file = page.parent / name if name else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Return the anchors that a code host gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = re.findall(r"^- \[.+?\]\((.+?)\): ", INDEX.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(["index.md", *listed]) == sorted(page.name for page in PAGES[2:])


def own_handlers() -> dict[str, type[Handler]]:
    """Return the handlers that come with kapudf, by name."""
    return {each.name: each.load() for each in plugins.discover() if each.distribution == "kapudf"}


@pytest.mark.parametrize("name", own_handlers())
def test_the_page_of_the_handlers_has_each_with_its_options_and_its_snippet(name: str) -> None:
    handler = own_handlers()[name]
    info = describe(handler)
    sections = (ROOT / "docs" / "handlers.md").read_text(encoding="utf-8").split("\n## ")
    (section,) = [each for each in sections if each.startswith(f"{name}\n")]
    edges = f"a {edge_name(info.wants)} | a {edge_name(info.provides)} |"
    assert f"| [{name}](#{name}) | {edges}" in sections[0]
    rows = re.findall(r"^\| `(.+?)` \| (.*?) ?\|", section, re.MULTILINE)
    assert sorted(call for call, _ in rows) == signatures(info)
    options = options_class(handler)
    assert options is not None
    declared = {field.encode_name: field for field in msgspec.structs.fields(options)}
    for call, default in rows:
        field = declared[call.partition("(")[0]]
        if field.required:
            assert default == ""
        elif field.default is msgspec.NODEFAULT:
            assert default == "none are set"
        elif field.default is False:
            assert default == "not called"
        elif isinstance(field.default, dt.timedelta):
            assert default == f"`{field.default.total_seconds():g}s`"
        else:
            assert default == f"`{field.default!r}`"
    docstring = textwrap.dedent(sys.modules[handler.__module__].__doc__ or "")
    script = re.findall(r"^```javascript\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[0]
    if name == "batch-mirror":
        # The docstring says what it takes to make one of the mirror's.
        window = "    |window()\n        .period(10s)\n        .every(10s)\n    @batch_mirror()"
        assert window in script
        script = script.replace(window, "    @mirror()")
    assert script in docstring or textwrap.indent(script, "    ") in docstring


def test_probe_prints_what_the_readme_shows(
    serve: Callable[..., ServeProcess], short_folder: Path
) -> None:
    (shown,) = re.findall(
        r"\$ kapudf probe .*\n((?:.+\n)+?)```", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    serve("mirror")
    path = short_folder / "mirror.sock"
    path.symlink_to(short_folder / "udf.sock")
    command = [*KAPUDF, "probe", "--socket", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[:-1] == shown.splitlines()[:-1]
    assert printed.splitlines()[-1].startswith("round trip  ")


def sessions(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each command of a page's console blocks that has output, and that."""
    yield from ((command, output) for command, output in commands(page) if output)


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each command of a page's console blocks, and its output."""
    for text in snippets(page, "console"):
        yield from re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)


def write_files(page: Path, folder: Path) -> None:
    """Write each text and Python block of a page that has a file name to that file."""
    text = page.read_text(encoding="utf-8")
    for name, content in re.findall(
        r"`([\w.]+)`:\n\n```(?:text|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        (folder / name).write_text(content, encoding="utf-8")


def timeless(output: str) -> str:
    """Return the output of a replay without its time and rate."""
    return re.sub(r"; [\d.]+ s, [\d,]+ points/s", "", output)


def test_the_demo_of_the_readme_shows_what_three_handlers_change() -> None:
    """`-o` keeps make from installing into a .venv that there may not be."""
    command = ["make", "-o", ".venv/installed", "demo", f"BIN={Path(sys.executable).parent}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("  +mycustom_field=42.0\n") == 5
    assert ran.stdout.count("  +avg=") == 5
    assert "end   cpu,host=server01 tmax=2020-09-13T12:27:40Z 1 point\n" in ran.stdout


@pytest.mark.parametrize(("name", "count"), [("testing-udfs", 8), ("tutorial", 1)])
def test_replay_prints_what_a_page_shows(name: str, count: int, tmp_path: Path) -> None:
    page = ROOT / "docs" / f"{name}.md"
    write_files(page, tmp_path)
    shown = [(command, output) for command, output in sessions(page) if "kapudf replay" in command]
    assert len(shown) == count
    for command, output in shown:
        result = subprocess.run(
            # A process of its own takes a while to start, so a shell is used only where needed.
            ["/bin/sh", "-c", command] if "|" in command else [*KAPUDF, *shlex.split(command)[1:]],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            check=False,
        )
        assert timeless(result.stdout + result.stderr) == timeless(output), command


def test_the_picture_of_replay_shows_its_output(tmp_path: Path) -> None:
    """If not: make pictures."""
    picture = ROOT / "docs" / "images" / "replay-diff.svg"
    program = ROOT / "docs" / "site" / "terminal_picture.py"
    subprocess.run([sys.executable, str(program), str(tmp_path / "new.svg")], check=True)
    assert (tmp_path / "new.svg").read_text("utf-8") == picture.read_text("utf-8")


def test_the_handlers_of_the_page_on_migration_do_what_the_scripts_do(tmp_path: Path) -> None:
    write_files(MIGRATION, tmp_path)
    compared = 0
    for command, output in commands(MIGRATION):
        words, _, file = command.partition(" > ")
        if words.startswith("kapudf replay"):
            result = run_kapudf(*shlex.split(words)[1:], cwd=tmp_path)
            assert result.returncode == 0, result.stderr
            if file:
                (tmp_path / file).write_text(result.stdout, encoding="utf-8")
            shown = result.stderr if file else result.stdout + result.stderr
            assert timeless(shown) == timeless(output), command
        elif words.startswith("diff "):
            new = (tmp_path / "new.txt").read_text(encoding="utf-8")
            assert (tmp_path / "old.txt").read_text(encoding="utf-8") == new
            assert output in new
            compared += 1
        elif words.startswith("cat "):
            assert (tmp_path / "old.snapshot").read_text(encoding="utf-8") == output.strip()
    assert compared == 3


def test_the_average_of_the_page_on_migration_goes_on_after_either_script(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("average", MIGRATION)
    for kept in ({"window": [2.0, 4.0]}, {"size": 2, "window": [2.0, 4.0], "avg": 3.0}):
        average = udf(module.Average, module.AverageOptions(field="x", size=2))
        average.restore(json.dumps({"": kept}).encode())
        assert values(average.send(*lines("m x=6 1")).points, "avg") == [5.0]
    mirror = udf(load("mirror", MIGRATION).Mirror)
    assert mirror.send(*lines("m x=6 1")).points == lines("m x=6 1")
    module = load("outliers", MIGRATION)
    outliers = udf(module.Outliers, module.OutliersOptions(field="x"))
    small = Batch("m", points=lines("m x=1 1"))
    assert outliers.send(small).batches[0].points == []


def test_a_pickle_of_a_class_of_the_script_is_migrated(
    load: Callable[..., ModuleType], udf: StartTask
) -> None:
    module = load("pickled", MIGRATION)
    entry = module.Entry()
    entry.time = 1
    snapshot = pickle.dumps([entry, entry], protocol=0)
    numbered = udf(module.Numbered)
    numbered.restore(snapshot.replace(module.__name__.encode(), b"__main__"))
    assert values(numbered.send(*lines("m x=6 1")).points, "seen") == [3]


def test_check_prints_what_the_page_on_testing_shows(tmp_path: Path) -> None:
    page = ROOT / "docs" / "testing-udfs.md"
    (tmp_path / "counter.py").write_text(named_snippets(page)["counter"], encoding="utf-8")
    ((command, output),) = [shown for shown in sessions(page) if "kapudf check" in shown[0]]
    result = subprocess.run(
        [sys.executable, "-m", "kapudf_cli", *command.split()[1:]],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout + result.stderr == output


def test_the_page_on_checks_has_every_check() -> None:
    page = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    rows = [f"| `{check.name}` | {check.rule} | {check.source} |" for check in CHECKS]
    shown = re.findall(r"^\| `[\w-]+` \| .+ \| .+ \|$", page, re.MULTILINE)
    assert shown[-len(rows) :] == rows


def test_load_prints_the_rows_that_the_page_on_testing_shows() -> None:
    page = ROOT / "docs" / "testing-udfs.md"
    shown = [output for command, output in sessions(page) if "kapudf load" in command]
    assert len(shown) == 2
    command = ["load", "--handler", "mirror", "--points", "1000"]
    result = subprocess.run(
        [sys.executable, "-m", "kapudf_cli", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    for output in (*shown, result.stdout):
        assert [line[:13].rstrip() for line in output.splitlines()] == [
            "points", "time", "throughput", "latency p50", "latency p90", "latency p99",
            "latency p99.9", "latency max", "CPU", "memory",
        ]  # fmt: skip


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")
def test_the_recipe_for_jq_shows_warnings_and_errors() -> None:
    (recipe,) = [each for each in snippets(ROOT / "docs" / "log.md", "sh") if "| jq " in each]
    options, text, _ = re.split(r"'", recipe.partition("| jq ")[2])
    log = [
        "Started kapudf.service",
        json.dumps(
            {"timestamp": "2026-11-28T04:44:00.123Z", "level": "info", "event": "listening"}
        ),
        json.dumps(
            {
                "timestamp": "2026-11-28T04:44:01.123Z",
                "level": "error",
                "event": "connection finished",
                "reason": "handler_error",
                "error": "it raised",
                "function": "f",
                "task_id": "cpu",
                "points_in": 3,
            }
        ),
    ]
    shown = subprocess.run(
        ["jq", *options.split(), text],
        input="\n".join(log),
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == ("2026-11-28T04:44:01  error  f  cpu  connection finished  it raised\n")


def events_in_source() -> set[str]:
    """Return the names of the events that `kapudf serve` may log."""
    parts = (
        *("agent/*", "handler/handler", "influx_scripts/*"),
        *("journal/*", "supervisor/*", "system/*", "worker/*"),
    )
    files = [file for part in parts for file in (ROOT / "kapudf_cli").glob(f"{part}.py")]
    found: set[str] = set()
    for file in files:
        text = file.read_text(encoding="utf-8")
        calls = re.findall(r'\.(?:info|warning|error|exception)[(,]\s*"([^"]+)"', text)
        found |= {call.replace(": %s", ": …") for call in calls}
        for either in re.findall(r'\bevent = "([^"]+)" if \w+ else "([^"]+)"', text):
            found |= set(either)
    return found - {"%s dropped: …"} | {
        f"{what} dropped: …" for what in ("point", "batch", "request", "snapshot")
    }


def test_every_event_is_in_the_docs_and_the_docs_have_no_other() -> None:
    text = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| event \| level \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()[1:]]
    documented = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert documented == events_in_source()
