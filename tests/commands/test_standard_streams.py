"""Commands with closed standard streams, or streams in a limited encoding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from kapudf_cli.client.driver import probe
from tests.serve_process import KAPUDF, PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serve_process import ServeProcess

#: Redirections with which a shell closes the streams.
CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all": "<&- >&- 2>&-"}


def accepts(path: str) -> bool:
    """Return whether a server accepts connections at a path."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(path) == 0


@pytest.mark.parametrize(
    "streams",
    [pytest.param(each, marks=[] if each == "all" else pytest.mark.long) for each in CLOSED],
)
def test_serve_needs_no_standard_streams(socket_path: str, streams: str) -> None:
    command = f'exec "$@" {CLOSED[streams]}'
    serve = [*KAPUDF, "serve", "--socket", socket_path, "--handler", "mirror"]
    process = subprocess.Popen(["/bin/sh", "-c", command, "sh", *serve], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts(socket_path) or process.poll() is not None)
        assert probe(socket_path, timeout_s=PATIENCE_S).info.options
        targets = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        assert not [target for target in targets if target.startswith("socket:")]
    finally:
        process.terminate()
        status = process.wait(PATIENCE_S)
    assert status == 0


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_probe_answers_a_terminal_that_lacks_its_letters(
    serve: Callable[..., ServeProcess], socket_path: str, encoding: str
) -> None:
    serve("mirror")
    command = [*KAPUDF, "probe", "--socket", socket_path]
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    told = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S, env=env)
    assert (told.returncode, told.stderr) == (0, b"")
    shown = "…" if encoding == "utf-8" else "\\u2026"
    assert f"@udf().field('{shown}', 0.0)".encode(encoding) in told.stdout
    read = subprocess.run(
        [*command, "--json"], capture_output=True, check=True, timeout=PATIENCE_S, env=env
    )
    facts = json.loads(read.stdout.decode(encoding))
    assert facts["tickscript"] == "@udf().field('…', 0.0).tag('…', '…')"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["serve", "--help"], ["list-handlers"], ["new", "full"]],
)
def test_a_full_disk_under_stdout_is_a_line(arguments: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        told = subprocess.run(
            [*KAPUDF, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            timeout=PATIENCE_S,
            check=False,
        )
    assert told.returncode == 1
    assert told.stderr == b"Error: stdout cannot be written: No space left on device\n"
