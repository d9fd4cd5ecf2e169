"""Fixtures with a real kapacitord; where there is none, the tests that want it are skipped."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.kapacitor.daemon import Binaries, KapacitorDaemon, find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.serve_process import ServeProcess


@pytest.fixture
def binaries() -> Binaries:
    """Find kapacitord and kapacitor, or skip the test and say what is missing."""
    kapacitord, kapacitor = find_program("kapacitord"), find_program("kapacitor")
    if kapacitord is None:
        pytest.skip("there is no kapacitord on PATH, nor where KAPACITORD says")
    if kapacitor is None:
        pytest.skip("there is no kapacitor on PATH, nor where KAPACITOR says")
    return Binaries(kapacitord, kapacitor)


@pytest.fixture
def kapacitor(
    binaries: Binaries,
    serve: Callable[..., ServeProcess],
    short_folder: Path,
    socket_path: str,
) -> Iterator[Callable[..., KapacitorDaemon]]:
    """Start kapacitord, by default with the function `udf` that is served at `socket_path`.

    A kapacitord that is no longer alive in the end is an error: no UDF may take it down.
    """
    del serve  # asked for, so that kapacitord stops before the UDF does
    function = f'[udf]\n[udf.functions.udf]\nsocket = "{socket_path}"\ntimeout = "60s"\n'
    daemons: list[KapacitorDaemon] = []
    with contextlib.ExitStack() as stack:

        def start(
            *, udf_section: str = function, snapshot_interval: str = "60s"
        ) -> KapacitorDaemon:
            folder = short_folder / f"kapacitor-{len(daemons)}"
            folder.mkdir()
            daemon = KapacitorDaemon(
                binaries, folder, udf_section, snapshot_interval=snapshot_interval
            )
            daemons.append(stack.enter_context(daemon))
            return daemon

        yield start
        for daemon in daemons:
            assert daemon.alive, daemon.log_lines()


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file $RECORD, in which handlers note what they are asked for."""
    path = tmp_path / "record"
    path.touch()
    monkeypatch.setenv("RECORD", str(path))
    return path
