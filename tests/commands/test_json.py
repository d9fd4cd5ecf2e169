"""What commands print with --json is valid, and as `kapudf schema` says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import jsonschema
import pytest
from click.testing import CliRunner

from kapudf_cli.client.driver import KapacitorSide
from kapudf_cli.commands import main, schemas
from kapudf_cli.protocol.udf_pb2 import InitRequest, Point
from tests.conftest import plugin
from tests.run_kapudf import run_kapudf
from tests.serve_process import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serve_process import ServeProcess

ROOT = Path(__file__).parent.parent.parent
RECORDINGS = ROOT / "tests" / "recordings"


def strict(schema: Any) -> Any:
    """Return a schema that refuses properties without a description."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return {**closed, **{key: strict(value) for key, value in schema.items()}}


def check(command: str, content: Any) -> None:
    """Fail unless a value is as the schema of a command says, and has nothing else."""
    result = CliRunner().invoke(main, ["schema", command])
    schema = json.loads(result.stdout)
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    validator(strict(schema)).validate(content)


def found(*arguments: str, status: int = 0) -> Any:
    """Run a command and return the JSON that it prints."""
    result = run_kapudf(*arguments, "--json", cwd=ROOT, patience_s=3 * PATIENCE_S)
    assert result.returncode == status, result.stderr
    content = json.loads(result.stdout)
    check(arguments[0], content)
    return content


def test_each_command_with_json_has_a_schema() -> None:
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    has_json = {
        name
        for name, command in commands.items()
        if command is not None and any(each.name == "as_json" for each in command.params)
    }
    # `dev` takes the options of `replay`, except those for its output.
    assert has_json == set(schemas.COMMANDS)


def test_a_served_function_is_described(
    serve: Callable[..., ServeProcess], socket_path: str, tmp_path: Path
) -> None:
    serve("mirror")
    config = tmp_path / "kapudf.yaml"
    gone = f"{socket_path}.gone"
    config.write_text(
        f"functions: {{udf: {{handler: mirror, socket: {socket_path}}},"
        f" gone: {{handler: mirror, socket: {gone}}}}}",
        encoding="utf-8",
    )
    with KapacitorSide.connect(socket_path, timeout_s=PATIENCE_S) as side:
        side.send(InitRequest(taskID="t", nodeID="n"))
        side.receive()
        side.send(Point(time=1))
        assert found("status", "--socket", socket_path)["connections"][0]["task_id"] == "t"
        assert found("reload", "--socket", socket_path)["connections"] == 1
        (function,) = found("status", "--config", str(config), status=1)
        assert function["connections"][0]["handovers"] == 1
    assert found("reload", "--config", str(config), status=1)[0]["stay"] == 0
    assert found("probe", "--socket", socket_path)["socket"] == socket_path
    config.write_text(f"functions: {{udf: {{handler: mirror, socket: {socket_path}}}}}")
    (answer,) = found("probe", "--config", str(config))
    assert answer["wants"] == "stream"


def test_options_are_objects() -> None:
    (row,) = found("list-handlers", plugin("optional.py:Optional"))
    assert row["options"] == [
        {
            "name": name,
            "types": types,
            "required": required,
            "repeated": repeated,
            "default": default,
            "doc": doc,
        }
        for name, types, required, repeated, default, doc in [
            ("field", ["STRING", "DOUBLE"], False, True, [], "fields to set"),
            ("flag", [], False, False, False, None),
            ("size", ["INT"], True, False, None, "how many"),
            ("window", ["DURATION"], False, False, "90s", "for how long"),
            ("zone", ["STRING"], False, False, None, None),
        ]
    ]


def test_the_built_in_handlers_describe_their_options_as_their_page_does() -> None:
    page = (ROOT / "docs" / "handlers.md").read_text(encoding="utf-8")
    means = [
        (name, text.replace("`", ""))
        for name, text in re.findall(r"^\| `(\w+)\(.*?\)` \| .*?\| (.+) \|$", page, re.MULTILINE)
    ]
    assert means
    for row in found("list-handlers"):
        assert row["error"] is None or "another distribution" in row["error"]
        for option in row["options"]:
            described = [text for name, text in means if name == option["name"]]
            assert any(text.startswith(option["doc"]) for text in described), option


def test_a_handler_that_is_broken_is_described(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("class Broken: pass\n")
    (row,) = found("list-handlers", f"{tmp_path}/broken.py:Broken")
    assert (row["options"], row["wants"]) == (None, None)
    assert "is not a subclass" in row["error"]


@pytest.mark.parametrize(
    ("handler", "recording", "arguments"),
    [
        ("mirror", "stream.srpl", ["--limit", "3"]),
        ("batch-mirror", "batch.brpl", ["--limit", "1"]),
        ("outliers", "batch.brpl", ["--limit", "1", "--options", ".field('usage_idle')", "--diff"]),
    ],
)
def test_a_replay_prints_an_object_a_line(
    handler: str, recording: str, arguments: list[str]
) -> None:
    path = str(RECORDINGS / recording)
    result = run_kapudf("replay", path, "--handler", handler, *arguments, "--json")
    assert result.returncode == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines
    for line in lines:
        check("replay", line)
    if "--diff" in arguments:
        assert {line["fate"] for line in lines} <= {"same", "lost", "changed", "new"}


def test_a_difference_tells_what_changed(tmp_path: Path) -> None:
    recording = tmp_path / "points.lp"
    recording.write_text("m,t=a x=1 5\n")
    options = ".field('y', 2.5)"
    result = run_kapudf(
        "replay", str(recording), "--handler", "mirror", "--options", options, "--diff", "--json"
    )
    assert json.loads(result.stdout) == {
        "fate": "changed",
        "name": "m",
        "fields": {"x": 1.0, "y": 2.5},
        "tags": {"t": "a"},
        "time": "1970-01-01T00:00:00.000000005Z",
        "changes": ["+y=2.5"],
    }


def test_check_and_load_have_the_results() -> None:
    assert found("check", "--handler", "mirror")["failed"] == 0
    assert found("load", "--handler", "mirror", "--points", "100")["points_sent"] == 100


def test_a_configuration_is_described(tmp_path: Path) -> None:
    config = tmp_path / "kapudf.yaml"
    config.write_text("functions: {udf: {handler: mirror, socket: udf.sock}}")
    answer = found("check-config", str(config), "--elsewhere")
    assert [each["name"] for each in answer["functions"]] == ["udf"]
    assert "setup_worker" in answer["not_checked"]


def test_a_new_project_is_described(tmp_path: Path) -> None:
    answer = found("new", "my-average", "--directory", str(tmp_path / "project"))
    assert all(Path(file).is_file() for file in answer["files"])
    assert answer["next"][0] == f"cd {tmp_path}/project"


def test_an_upgrade_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = {"version": "1", "starts": 1}
    answers: dict[str, list[dict[str, Any]]] = {
        "status": [
            {"supervisor": supervisor, "workers": [], "connections": []},
            {"supervisor": {**supervisor, "starts": 2}, "workers": [], "connections": [{}]},
        ],
        "upgrade": [{"version": "2"}],
    }
    monkeypatch.setattr(
        "kapudf_cli.supervisor.control.ask", lambda _, command, **__: answers[command].pop(0)
    )
    result = CliRunner().invoke(main, ["upgrade", "--socket", "/s", "--json"])
    assert json.loads(result.stdout) == {"before": "1", "after": "2", "connections": 1}
    check("upgrade", json.loads(result.stdout))


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["probe", "--socket", "/nowhere.sock"], 1),
        (["status", "--socket", "/nowhere.sock"], 1),
        (["reload", "--socket", "/nowhere.sock"], 1),
        (["upgrade", "--socket", "/nowhere.sock"], 1),
        (["list-handlers", "no-such-handler"], 2),
        (["check", "--handler", "no-such-handler"], 2),
        (["load", "--socket", "/nowhere.sock"], 1),
        (["check-config", "/nowhere.yaml"], 2),
        (["new", "1"], 2),
        (["replay", str(RECORDINGS / "stream.srpl"), "--socket", "/nowhere.sock"], 1),
        (["replay", str(RECORDINGS / "stream.srpl"), "--handler", "batch-mirror"], 2),
    ],
)
def test_an_error_is_a_line_on_stderr(arguments: list[str], status: int) -> None:
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
