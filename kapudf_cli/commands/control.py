"""`kapudf status` and `kapudf reload`: ask a running `kapudf serve`, through its control socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kapudf_cli.commands import options
from kapudf_cli.commands.output import aligned, say, say_json

if TYPE_CHECKING:
    from pathlib import Path

#: The supervisor answers at once, unless the machine is overloaded.
_STATUS_TIMEOUT_S = 10.0


@click.command(short_help="Show the state of a function, its workers and tasks.")
@options.socket_path("Unix socket of the function.")
@options.as_json
def status(path: str, *, as_json: bool) -> None:
    """Show the state of a function that `kapudf serve` serves.

    Shows the supervisor, the workers, and for each connection the task, the points in
    and out, and whether it is idle, busy or waiting for Kapacitor.
    """
    from kapudf_cli.supervisor import control
    from kapudf_cli.system.terminal_text import counted
    from kapudf_cli.worker.channel import Code

    answer = control.ask(path, "status", timeout_s=_STATUS_TIMEOUT_S)
    if as_json:
        say_json(answer)
        return
    supervisor = answer["supervisor"]
    say(f"function    {answer['function']} ({answer['handler']}) at {answer['socket']}")
    if answer["code"] is not None:
        say(f"code        {Code(**answer['code'])}")
    say(
        f"supervisor  pid {supervisor['pid']}, {supervisor['rss_mb']} MB, "
        f"up {_duration(supervisor['age_s'])}, {counted(answer['worker_deaths'], 'worker death')}"
    )
    for each in answer["templates"]:
        say(
            f"template    pid {each['pid']}, {each['rss_mb']} MB, up {_duration(each['age_s'])}, "
            f"{each['state']}"
        )
    for rows in (_workers(answer["workers"]), _connections(answer["connections"])):
        say()
        for line in aligned(rows):
            say(line)


def _workers(workers: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("WORKER", "PID", "STATE", "CONNECTIONS", "MEMORY", "AGE")]
    rows += [
        (
            str(worker["worker"]),
            str(worker["pid"] or "-"),
            worker["state"],
            str(worker["connections"]),
            f"{worker['rss_mb']} MB",
            _duration(worker["age_s"]),
        )
        for worker in workers
    ]
    return rows


def _connections(connections: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    head = ("CONNECTION", "TASK", "NODE", "WORKER", "STATE", "IN", "OUT", "POINTS/S")
    rows: list[tuple[str, ...]] = [(*head, "FAILED", "TAKEOVERS", "AGE")]
    for each in connections:
        busy = f" {_duration(each['busy_s'])}" if each["busy_s"] >= 1 else ""
        rows.append(
            (
                str(each["connection"]),
                each["task_id"] or "-",
                each["node_id"] or "-",
                "-" if each["worker"] is None else str(each["worker"]),
                f"{each['state']}{busy}",
                str(each["points_in"]),
                str(each["points_out"]),
                f"{each['points_per_s']:.0f}",
                str(each["failures"]),
                str(each["takeovers"]),
                _duration(each["age_s"]),
            )
        )
    return rows


def _duration(seconds: float) -> str:
    """Return a duration as text, in its two largest units."""
    whole = int(seconds)
    for size, unit, smaller, small_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small_unit}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"  # noqa: PLR2004


@click.command(short_help="Load new code and settings while tasks run.")
@options.socket_path("Unix socket of the function to reload.", required=False)
@options.config_file("file", "Reload all functions of this configuration file instead.")
@options.timeout(
    "How long handing all connections over may take.", least=0.1, most=600, default=60.0
)
def reload(path: str | None, file: Path | None, timeout_s: float) -> None:
    """Make a running `kapudf serve` load new code and settings.

    New workers start first. They take over the connections with their state, and no
    point is lost. If the new code fails, the old code keeps running, and this command
    prints the reason and exits with 1.
    """
    from kapudf_cli import config, config_file
    from kapudf_cli.supervisor import control
    from kapudf_cli.supervisor.errors import ControlError
    from kapudf_cli.system.terminal_text import counted

    if path is not None and file is not None:
        # A flag overrides an environment variable.
        source = click.get_current_context().get_parameter_source
        if source("path") is ParameterSource.ENVIRONMENT:
            path = None
        elif source("file") is ParameterSource.ENVIRONMENT:
            file = None
    if (path is None) == (file is None):
        raise click.UsageError("give either --socket PATH or --config FILE")
    paths = [path] if path is not None else []
    if file is not None:
        settings = config.check(config_file.read(file), source=str(file))
        paths = [function.socket for function in settings.functions.values()]
    failed = False
    for each in paths:
        try:
            answer = control.ask(each, "reload", timeout_s=timeout_s)
        except ControlError as error:
            failed = True
            say(f"Error: {error}", err=True)
            continue
        failed = failed or answer["stay"] > 0
        say(
            f"{answer['function']}: reloaded, "
            f"{counted(answer['connections'], 'connection')} handed over"
            + (
                f", {answer['stay']} kept by the old code; the log says why"
                if answer["stay"]
                else ""
            )
        )
        say(f"  {answer['code']}")
    if failed:
        click.get_current_context().exit(1)
