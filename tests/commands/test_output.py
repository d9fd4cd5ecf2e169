"""Output: text from outside cannot control the terminal, or forge lines and rows."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import pty
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.commands.output import PrintableLines, Stdout, aligned, json_text
from kapudf_cli.protocol.udf_pb2 import Point
from kapudf_cli.tools.replay.formats import TableFormat
from tests.serve_process import KAPUDF

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent.parent.parent
EVIL = "a\x1b[2Jb\nc\x9bd\u202ee"
ESCAPED = "a\\x1b[2Jb\\nc\\x9bd\\u202ee"

HANDLER = """
from kapudf_cli import Handler

class Evil(Handler):
    def point(self, point):
        point.tags["evil"] = "\\x1b]0;title\\x07\\x9b2J"
        if point.fieldsDouble["x"] == 2.0:
            raise ValueError("\\x1b[2J\\x9b2J")
        self.agent.write_point(point)
"""


@pytest.fixture
def handler(tmp_path: Path) -> str:
    """Return a handler whose points and errors try to control the terminal."""
    path = tmp_path / "evil.py"
    path.write_text(HANDLER, encoding="utf-8")
    return f"{path}:Evil"


def on_a_terminal(*arguments: str, stdin: bytes = b"") -> str:
    """Run a command with its stdout and stderr on a terminal, and return the output."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [*KAPUDF, *arguments], stdin=subprocess.PIPE, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        shown = b""
        # Reading raises once the other end of the terminal is closed.
        with contextlib.suppress(OSError):
            while piece := terminal.read(65536):
                shown += piece
        process.wait()
    return shown.decode()


def controls(shown: str, allowed: Iterable[str] = ()) -> set[str]:
    """Return the control characters in the output, except the command's own."""
    for own in ("\r\n", "\x1b[0m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", *allowed):
        shown = shown.replace(own, "")
    return {each for each in shown if each < " " or "\x7f" <= each <= "\x9f"}


@pytest.mark.parametrize(
    "shape",
    [("--format", "lines"), ("--format", "json"), ("--format", "table"), ("--diff",)],
    ids=lambda shape: shape[-1],
)
def test_a_replay_shows_nothing_raw(shape: tuple[str, ...], handler: str) -> None:
    data = b"m,host=\x1b[31mred x=1 1\nm x=2 2\n"
    shown = on_a_terminal("replay", "-", "--handler", handler, *shape, stdin=data)
    assert controls(shown) == set()
    assert "x1b[2J" in shown
    assert "title" in shown


def test_a_recording_that_is_refused_is_shown_escaped() -> None:
    shown = on_a_terminal("replay", "-", "--handler", "mirror", stdin=b"m x=\x1b[2J 1\n")
    assert controls(shown) == set()
    assert "Error: " in shown


def test_arguments_that_are_refused_are_shown_escaped() -> None:
    shown = on_a_terminal("load", "--handler", "mirror", "--options", ".\x1b[2J()")
    assert controls(shown) == set()
    shown = on_a_terminal("probe", "--socket", "no\x9b2Jne", "--timeout", "\x1b[2J")
    assert controls(shown) == set()


def test_line_protocol_is_exact_where_it_is_no_terminal() -> None:
    line = "m,host=\x1b[31m x=1.0 1\n"
    result = subprocess.run(
        [*KAPUDF, "replay", "-", "--handler", "mirror"],
        input=line.encode(), capture_output=True, check=True,
    )  # fmt: skip
    assert result.stdout.decode() == line


def test_json_is_the_same_value_and_safe_to_print() -> None:
    text = json_text({EVIL: [EVIL, "ä"]}, indent=2)
    assert json.loads(text) == {EVIL: [EVIL, "ä"]}
    assert controls(text.replace("\n", "")) == set()
    assert "\u202e" not in text
    assert "ä" in text


def test_a_cell_is_one_row() -> None:
    assert list(aligned([("TASK", "X"), (EVIL, "1")]))[1] == f"{ESCAPED}  1"
    rows: list[str] = []
    table = TableFormat(rows.append)
    table.take(Point(name=EVIL, tags={EVIL: EVIL}, fieldsString={EVIL: EVIL}))
    table.finish()
    assert len(rows) == 2
    assert rows[1].count(ESCAPED) == 5


def test_the_lines_of_another_program_are_escaped() -> None:
    file = io.BytesIO()
    lines = PrintableLines(file)
    for line in (b"fine\n", b"\x1b[2J\xff\r\n", b"part ", b"of a line\n"):
        lines.write(line)
    assert file.getvalue() == b"fine\n\\x1b[2J\\xff\npart of a line\n"


def test_commands_print_in_one_place() -> None:
    raw = {
        path.name
        for path in (ROOT / "kapudf_cli" / "commands").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"click.echo", "print"}
    }
    assert raw == {"output.py"}


def test_a_blocked_stdout_calls_back_until_there_is_room() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    came = bytearray()
    with os.fdopen(reader, "rb", buffering=0) as read, os.fdopen(writer, "wb", buffering=0) as file:
        out = Stdout(file)
        out.while_blocked = lambda: came.extend(read.read() or b"")
        out.emit("x" * 200_000)
        out.flush()
        in_callbacks = len(came)
        came += read.read() or b""
    assert 0 < in_callbacks < 200_001
    assert came == b"x" * 200_000 + b"\n"
