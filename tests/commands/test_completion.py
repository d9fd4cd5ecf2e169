"""Shells complete kapudf's command line, with the scripts of `kapudf completion`."""

from __future__ import annotations

import contextlib
import functools
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.serve_process import PATIENCE_S
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What is typed, and what the shell makes of it: a command, a handler, and a path.
COMPLETED = {
    "kapudf list-h": "kapudf list-handlers ",
    "kapudf check --handler moving-a": "kapudf check --handler moving-average ",
    "kapudf probe --socket run/ud": "kapudf probe --socket run/udf.sock ",
}
MORE = {
    "kapudf replay --lim": "kapudf replay --limit ",
    "kapudf dev scal": "kapudf dev scale.py ",
    "kapudf replay poi": "kapudf replay points.lp ",
    "kapudf status --format prom": "kapudf status --format prometheus ",
    "kapudf completion zs": "kapudf completion zsh ",
}


@pytest.fixture
def folder(short_folder: Path) -> Iterator[Path]:
    (short_folder / "scale.py").write_text("")
    (short_folder / "points.lp").write_text("")
    (short_folder / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_folder / "run" / "udf.sock"))
        yield short_folder


def environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "TERM": "dumb",
        "LANG": "C.UTF-8",
    }


@contextlib.contextmanager
def terminal(folder: Path, *shell: str) -> Iterator[tuple[int, list[str]]]:
    """Run a shell in a terminal; yield its descriptor, and a list with what it has printed."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 200))
    with subprocess.Popen(
        shell,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(folder),
        cwd=folder,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        os.set_blocking(ours, False)
        try:
            yield ours, []
        finally:
            process.kill()
            os.close(ours)


@pytest.mark.parametrize(
    ("shell", "setup", "table"),
    [
        (["bash", "--norc", "--noprofile"], "", COMPLETED | MORE),
        # The setup that zsh's own wizard for new users writes.
        (["zsh", "-f"], "autoload -U compinit; compinit -u;", COMPLETED),
    ],
    ids=["bash", "zsh"],
)
def test_tab_completes(folder: Path, shell: list[str], setup: str, table: dict[str, str]) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"needs {shell[0]}")
    with terminal(folder, *shell) as (descriptor, printed):

        def shows(text: str) -> bool:
            with contextlib.suppress(BlockingIOError):
                printed.append(os.read(descriptor, 65536).decode())
            return text in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|[\x07\r]", "", "".join(printed))

        script = f'eval "$(kapudf completion {shell[0]})"'
        # The quotes keep the echo of the terminal apart from what the command prints.
        os.write(descriptor, f"{setup} {script}; echo is''_ready\n".encode())
        wait_until(lambda: shows("is_ready"))
        for typed, completed in table.items():
            printed.clear()
            os.write(descriptor, f"{typed}\t".encode())
            wait_until(functools.partial(shows, completed))
            # Clear the line.
            os.write(descriptor, b"\x15")


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes(folder: Path) -> None:
    script = "kapudf completion fish | source\n" + "".join(
        f"complete -C '{typed}'\n" for typed in COMPLETED
    )
    result = subprocess.run(
        ["fish", "--no-config", "-c", script],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=True,
    )
    words = [line.split()[0] for line in result.stdout.splitlines()]
    assert words == [each.split()[-1] for each in COMPLETED.values()]
