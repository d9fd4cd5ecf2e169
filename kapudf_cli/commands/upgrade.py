"""`kapudf upgrade`: have a running `kapudf serve` go on as the installed version."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from kapudf_cli.commands import options
from kapudf_cli.commands.control import sockets
from kapudf_cli.commands.output import say, say_json

if TYPE_CHECKING:
    from pathlib import Path

_PAUSE_S: Final = 0.1


@click.command(short_help="Replace a running kapudf by the installed version.")
@options.socket_path("Unix socket of a function of the running kapudf.", required=False)
@options.config_file("file", "Configuration file of the running kapudf, instead.")
@options.timeout("How long all of it may take.", least=1, most=600, default=60.0)
@options.as_json
def upgrade(path: str | None, file: Path | None, timeout_s: float, *, as_json: bool) -> None:
    """Replace a running `kapudf serve` by the version that is installed now.

    The supervisor is replaced first, and then the workers, as in a reload. Tasks go on with
    their state. If the installed version does not start, or cannot read what the running one
    leaves, nothing changes, and this command prints the reason and exits with 1.
    """
    from kapudf_cli.supervisor import control
    from kapudf_cli.supervisor.errors import ControlError
    from kapudf_cli.system.terminal_text import counted

    paths, _ = sockets(path, file)
    deadline_s = time.monotonic() + timeout_s
    before = control.ask(paths[0], "status", timeout_s=timeout_s)["supervisor"]
    answer = control.ask(paths[0], "upgrade", timeout_s=timeout_s)
    if not as_json:
        say(f"supervisor: kapudf {before['version']} is replaced by {answer['version']}")
    problem = "no supervisor answers"
    while time.monotonic() < deadline_s:
        try:
            states = [control.ask(each, "status", timeout_s=timeout_s) for each in paths]
        except ControlError:
            states = []  # There is no supervisor for a moment.
        if states and states[0]["supervisor"]["starts"] > before["starts"]:
            left = [worker for each in states for worker in each["workers"] if worker["is_adopted"]]
            if not left:
                connections = sum(len(each["connections"]) for each in states)
                if as_json:
                    versions = {"before": before["version"], "after": answer["version"]}
                    say_json({**versions, "connections": connections})
                else:
                    say(f"workers: replaced, with {counted(connections, 'connection')}")
                return
            problem = f"{counted(len(left), 'old worker')} left"
        time.sleep(_PAUSE_S)
    raise ControlError(f"{paths[0]}: {problem} after {timeout_s:g} s; the log says why")
