"""`kapudf serve --reload`: the files of handlers are watched for changes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import TYPE_CHECKING

from kapudf_handlers.mirror import Mirror

from kapudf_cli.handler.handler import Handler
from kapudf_cli.worker.loading import code_files
from tests.plugins.distributions import PLAIN
from tests.serve_process import PATIENCE_S
from tests.supervisor.ongoing import Code, OngoingTask, check_count

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]


def test_saved_code_is_served_at_once(serve: Serve, socket_path: str, tmp_path: Path) -> None:
    code = Code(tmp_path)
    process = serve(code.handler, "--reload")
    process.event("watching code", folders=[str(tmp_path)])
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        code.change()
        task.await_version(2)
        code.change("def broken(:\n")
        process.event("reload failed, the old code goes on")
        code.change("import yet_to_be_written\n")
        process.await_events("reload failed, the old code goes on", 2)
        missing = tmp_path / "yet_to_be_written.py"
        missing.write_text("")
        task.await_version(4)
        assert check_count(task) == [1, 2, 4]
    changed = [event["files"] for event in process.matching("code changed")]
    assert changed == [[str(code.file)]] * 3 + [[str(missing)]]
    assert process.stop() == 0


def test_a_module_beside_the_handler_is_watched_too(serve: Serve, tmp_path: Path) -> None:
    beside = tmp_path / "beside.py"
    beside.write_text("")
    code = Code(tmp_path)
    code.change("import beside\n")
    process = serve(code.handler, "--reload")
    process.event("watching code")
    for name in ("notes.txt", "test_count.py", ".#count.py", "count.py~"):
        (tmp_path / name).write_text("nothing to load")
    beside.write_text("CHANGED = True\n")
    process.event("new workers serve")
    assert {file for event in process.matching("code changed") for file in event["files"]} == {
        str(beside)
    }


def test_without_watchfiles_a_line_says_how_to_get_it(socket_path: str) -> None:
    code = "from kapudf_cli.commands import main; main()"
    arguments = ["serve", "--socket", socket_path, "--handler", "mirror", "--reload"]
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['watchfiles'] = None; {code}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        1,
        "Error: --reload needs watchfiles: pip install 'kapudf[reload]'\n",
    )


def test_in_one_process_there_is_nothing_to_reload(socket_path: str) -> None:
    arguments = ["--socket", socket_path, "--handler", "mirror", "--workers", "0", "--reload"]
    result = subprocess.run(
        [sys.executable, "-m", "kapudf_cli", "serve", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 2
    assert "--reload needs workers; remove --workers 0" in result.stderr


def test_the_code_of_a_package_is_what_is_imported_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "watched_pkg" / "handlers"
    (inner.parent / "unused").mkdir(parents=True)
    inner.mkdir()
    (inner.parent / "__init__.py").write_text("")
    (inner.parent / "unused" / "__init__.py").write_text("")
    (inner / "__init__.py").write_text("")
    (inner / "plain.py").write_text(PLAIN)
    (inner / "test_plain.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    handler = importlib.import_module("watched_pkg.handlers.plain").Plain
    assert issubclass(handler, Handler)
    assert code_files(handler) == [
        str(inner / "plain.py"),
        str(inner.parent / "__init__.py"),
        str(inner / "__init__.py"),
    ]
    assert code_files(Mirror)[0] == sys.modules[Mirror.__module__].__file__
