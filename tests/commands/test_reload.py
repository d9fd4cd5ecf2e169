"""`kapudf reload`: its options and errors.

tests/supervisor/test_reload.py tests reloads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.supervisor.ongoing import Code, OngoingTask, check_count, kapudf, write_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serve_process import ServeProcess

    Serve = Callable[..., ServeProcess]


@pytest.mark.parametrize("arguments", [[], ["--socket", "/x.sock", "--config", "x.yaml"]])
def test_either_a_socket_or_a_file_is_named(arguments: list[str]) -> None:
    assert "give either --socket PATH or --config FILE" in kapudf("reload", *arguments, status=2)


def test_what_is_said_beats_the_environment(
    socket_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPUDF_SOCKET", socket_path)
    file = str(tmp_path / "gone.yaml")
    assert kapudf("reload", "--config", file, status=2).startswith(f"Error: {file}: cannot be read")
    monkeypatch.delenv("KAPUDF_SOCKET")
    monkeypatch.setenv("KAPUDF_CONFIG", file)
    said = kapudf("reload", "--socket", socket_path, status=1)
    assert said.startswith(f"Error: {socket_path}: ")


@pytest.mark.parametrize("timeout", ["0", "601", "nan"])
def test_a_time_that_cannot_be_waited_for_is_a_wrong_call(socket_path: str, timeout: str) -> None:
    said = kapudf("reload", "--socket", socket_path, "--timeout", timeout, status=2)
    assert "Invalid value for '--timeout'" in said


def test_no_such_socket_is_a_line(socket_path: str) -> None:
    said = kapudf("reload", "--socket", socket_path, status=1)
    assert said.startswith(f"Error: {socket_path}: there is no {socket_path}.control to ask")


def test_a_wrong_file_is_a_wrong_call(tmp_path: Path) -> None:
    file = tmp_path / "kapudf.yaml"
    write_config(file, {"f": {"handler": "mirror"}})
    said = kapudf("reload", "--config", str(file), status=2)
    assert said.startswith(f"Error: {file}: functions.f.socket: missing")


def test_one_function_that_fails_keeps_no_other_from_its_reload(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    code = Code(tmp_path)
    serve(code.handler)
    file = tmp_path / "kapudf.yaml"
    gone = str(tmp_path / "gone.sock")
    write_config(
        file,
        {
            "gone": {"handler": "mirror", "socket": gone},
            "udf": {"handler": code.handler, "socket": socket_path},
        },
    )
    with OngoingTask(socket_path) as task:
        task.await_version(1)
        code.change()
        said = kapudf("reload", "--config", str(file), status=1)
        assert f"{gone}: there is no {gone}.control to ask" in said
        task.await_version(2)
        assert check_count(task) == [1, 2]


def test_a_reload_that_takes_too_long_is_a_line(
    serve: Serve, socket_path: str, tmp_path: Path
) -> None:
    code = Code(tmp_path)
    process = serve(code.handler)
    code.change("import time\ntime.sleep(600)\n")
    said = kapudf("reload", "--socket", socket_path, "--timeout", "0.5", status=1)
    assert said == f"Error: {socket_path}.control: no answer within 0.5 s\n"
    assert process.stop() == 0
