"""The tutorial of the docs, command for command, with a real kapacitord."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.serve_process import ServeProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.kapacitor.daemon import Binaries, KapacitorDaemon

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
#: The commands that install something, or that the test runs in another way.
OTHERS = ("python3 -m venv", "~/udf", "export PATH", "python -m pytest", "kapudf serve")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[tuple[str, str]]:
    """Return the commands that the test runs, each with its output."""
    found = re.findall(
        r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", "".join(blocks("console", text)), re.MULTILINE
    )
    return [each for each in found if not each[0].startswith(OTHERS)]


def general(output: str) -> str:
    """Return output without what differs from run to run: times, memory, pids, folders."""
    output = re.sub(r"\S*/(?=surge\.)|sha256 \w+", "", output)
    output = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|pid \d+|[\d.]+ MB", "0", output)
    output = re.sub(r"[\d.]+ (?:ms|s)\b|[\d.]+s\b|[\d.,]+ points/s", "0", output)
    # The pid of a worker, and the rate of a task, which depends on the time that has passed.
    output = re.sub(r"(?<=\n1) +\d+|(?<=idle   3   3) +[\d.]+", " 0", output)
    return re.sub(r" +", " ", output)


def test_the_tutorial_does_what_it_shows(
    binaries: Binaries,
    short_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    kapacitor: Callable[..., KapacitorDaemon],
) -> None:
    del binaries  # Without a kapacitord, the test is skipped before a server starts.
    # Files of a name of their own, in a folder of their own.
    page = PAGE.read_text("utf-8").replace("/tmp/surge", f"{short_folder}/surge")  # noqa: S108
    files = re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name, content in files:
        (short_folder / name).write_text(content, "utf-8")
    monkeypatch.chdir(short_folder)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (serve,) = re.findall(r"^\$ kapudf serve (.*)$", page, re.MULTILINE)
    (section,) = blocks("toml", page)
    with ServeProcess(*serve.split()) as process:
        process.ready()
        daemon = kapacitor(udf_section=section)
        steps = commands(page)
        for command, output in steps:
            if command.startswith("kapudf reload"):
                code = (short_folder / "surge.py").read_text("utf-8")
                (short_folder / "surge.py").write_text(code.replace("0.1 *", "0.3 *"), "utf-8")
            script = command.replace("'http://localhost:9092", "-s $KAPACITOR_URL'")
            # Kapacitor takes a moment for what the command before has begun.
            await_output(daemon, script, output)
        assert len(steps) == 15


def await_output(daemon: KapacitorDaemon, script: str, output: str) -> None:
    """Run a command: once if it shows nothing, and else until it shows this output."""
    shown = daemon.shell(script)
    if not output:
        assert shown == ""
    elif general(shown) != general(output):
        daemon.wait_for(
            lambda: general(daemon.shell(script)) == general(output), f"{output} and not {shown}"
        )
