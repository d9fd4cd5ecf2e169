"""`kapudf status` and `kapudf reload`: ask a running `kapudf serve`, through its control socket."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from kapudf_cli.commands import options
from kapudf_cli.commands.output import (
    COLUMNS,
    aligned,
    json_text,
    labelled,
    say,
    say_json,
    say_styled,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The supervisor answers at once, unless the machine is overloaded.
_STATUS_TIMEOUT_S: Final = 10.0
#: How often `--watch` asks; the supervisor measures rates over a second.
_WATCH_INTERVAL_S: Final = 1.0
#: How the table of connections calls long states.
_SHORT_STATES: Final = {
    "waiting on Kapacitor": "output waits",
    "being handed over": "handover",
    "waiting for turn": "waits turn",
    "waiting for a worker": "no worker",
}
#: Their colors in `--watch`; other states have none.
_COLORS: Final = {
    "serving": "green",
    "busy": "green",
    "starting": "yellow",
    "retiring": "yellow",
    "being handed over": "yellow",
    "waiting for turn": "yellow",
    "waiting on Kapacitor": "red",
    "waiting for a worker": "red",
    "not reading": "red",
}


@click.command(short_help="Show the state of a function, its workers and tasks.")
@options.socket_path("Unix socket of the function.", required=False)
@options.config_file("file", "Show all functions of this configuration file instead.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "prometheus", "influx"]),
    default="table",
    show_default=True,
    help="json: all numbers, as --json. prometheus, influx: the metrics, as text for Prometheus "
    "or as line protocol.",
)
@options.as_json
@click.option("--watch", is_flag=True, help="Show the tables again every second, until Ctrl-C.")
def status(
    path: str | None, file: Path | None, output_format: str, *, as_json: bool, watch: bool
) -> None:
    """Show the state of functions that `kapudf serve` serves.

    Shows the supervisor, the workers, and for each connection the task, the points in
    and out, and whether it is idle, busy or waiting for Kapacitor.
    """
    paths, has_file = sockets(path, file)
    if as_json:
        output_format = "json"
    if watch and output_format != "table":
        raise click.UsageError("--watch shows tables; remove it, or --format and --json")
    while watch:
        lines, _ = _lines(paths, "table", is_array=has_file)
        say_styled([*lines, ""], clears=True)
        time.sleep(_WATCH_INTERVAL_S)
    lines, failed = _lines(paths, output_format, is_array=has_file)
    say_styled(lines)
    if failed:
        click.get_current_context().exit(1)


def sockets(path: str | None, file: Path | None) -> tuple[list[str], bool]:
    """Return the socket that was given, or those of the configuration file that was.

    Also return whether there is a file, which makes the output an array.
    """
    if path is not None and file is not None:
        # A flag overrides an environment variable.
        source = click.get_current_context().get_parameter_source
        if source("path") is ParameterSource.ENVIRONMENT:
            path = None
        elif source("file") is ParameterSource.ENVIRONMENT:
            file = None
    if (path is None) == (file is None):
        raise click.UsageError("give either --socket PATH or --config FILE")
    if file is None:
        return [] if path is None else [path], False
    from kapudf_cli import config, config_file

    settings = config.check(config_file.read(file), source=str(file))
    return [function.socket for function in settings.functions.values()], True


def _lines(paths: list[str], output_format: str, *, is_array: bool) -> tuple[list[str], bool]:
    """Return what is printed of some functions, and whether one of them did not answer.

    Why it did not is printed to stderr.

    Args:
        paths: their sockets.
        output_format: the format.
        is_array: whether JSON is an array, not an object.
    """
    from kapudf_cli.supervisor import control, metrics
    from kapudf_cli.supervisor.errors import ControlError

    statuses: list[dict[str, Any] | ControlError] = []
    for path in paths:
        try:
            statuses.append(control.ask(path, "status", timeout_s=_STATUS_TIMEOUT_S))
        except ControlError as error:
            statuses.append(error)
            say(f"Error: {error}", err=True)
    known = [each for each in statuses if isinstance(each, dict)]
    match output_format:
        case "json":
            lines = [json_text(known)] if is_array else [json_text(each) for each in known]
        case "prometheus":
            lines = list(metrics.prometheus(known))
        case "influx":
            lines = list(metrics.influx(known))
        case _:
            lines = [line for each in known for line in ("", *_tables(each))][1:]
    return lines, len(known) < len(statuses)


# --- tables ---


def _tables(answer: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that show the status of a function."""
    from kapudf_cli.system.terminal_text import counted
    from kapudf_cli.worker.channel import Code

    supervisor = answer["supervisor"]
    heads = [("function", f"{answer['function']} ({answer['handler']})")]
    heads.append(("socket", answer["socket"]))
    if answer["code"] is not None:
        code = Code(**answer["code"])
        heads.append(("code", f"{code.path}, sha256 {code.sha256}"))
        heads.append(("saved", code.saved))
    deaths = counted(answer["worker_deaths"], "worker death")
    heads.append(("supervisor", f"{_process(supervisor)}, {deaths}"))
    heads += [("template", f"{_process(each)}, {each['state']}") for each in answer["templates"]]
    for name, text in heads:
        yield from labelled(name, text, indent=12)
    yield ""
    yield from _workers(answer["workers"])
    yield ""
    yield from _connections(answer["connections"])


def _process(process: dict[str, Any]) -> str:
    return f"pid {process['pid']}, {process['rss_mb']} MB, up {_duration(process['age_s'])}"


def _workers(workers: list[dict[str, Any]]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("WORKER", "PID", "STATE", "CONNECTIONS", "MEMORY", "AGE")]
    states: list[str] = []
    for worker in workers:
        number = str(worker["worker"])
        memory = f"{worker['rss_mb']} MB"
        pid, count = str(worker["pid"] or "-"), str(worker["connections"])
        rows.append((number, pid, worker["state"], count, memory, _duration(worker["age_s"])))
        states.append(worker["state"])
        for each in worker["partitions"]:
            name = f"{number}/{each['partition']}"
            cpu = f"{each['cpu_s']:.1f} s CPU"
            place = each["node"] or ""
            rows.append((name, str(each["pid"]), "partition", place, f"{each['rss_mb']} MB", cpu))
            states.append("partition")
    return _colored(aligned(rows), states)


def _connections(connections: list[dict[str, Any]]) -> Iterator[str]:
    head = ("ID", "TASK", "NODE", "WORKER", "STATE", "IN", "OUT", "IN/S")
    rows: list[tuple[str, ...]] = [(*head, "FAIL", "DIED", "AGE")]
    for each in connections:
        state = _SHORT_STATES.get(each["state"], each["state"])
        busy = f" {_short_duration(each['busy_s'])}" if each["busy_s"] >= 1 else ""
        rows.append(
            (
                str(each["connection"]),
                each["task_id"] or "-",
                each["node_id"] or "-",
                "-" if each["worker"] is None else str(each["worker"]),
                f"{state}{busy}",
                _short(each["points_in"]),
                _short(each["points_out"]),
                _short(each["points_per_s"]),
                _short(each["failures"]),
                _short(each["takeovers"]),
                _short_duration(each["age_s"]),
            )
        )
    width = max(shutil.get_terminal_size((COLUMNS, 0)).columns, COLUMNS)
    # The names of tasks and nodes are free, and give way to the numbers.
    return _colored(aligned(rows, width=width, cut=(1, 2)), [each["state"] for each in connections])


def _colored(lines: Iterator[str], states: list[str]) -> Iterator[str]:
    """Yield the lines of a table, with its rows in the colors of their states."""
    yield click.style(next(lines), bold=True)
    for line, state in zip(lines, states, strict=True):
        yield click.style(line, fg=_COLORS.get(state))


def _short(number: float) -> str:
    """Return a number in five characters at most: 312, 14.8k, 1.23M."""
    if number < 10_000:  # noqa: PLR2004
        return f"{number:.0f}"
    units = iter("kMGTPE")
    while number >= 999.5:  # noqa: PLR2004 - it would be rounded to 1000
        number, unit = number / 1000, next(units)
    return f"{number:.3g}{unit}"


def _short_duration(seconds: float) -> str:
    """Return a duration in four characters at most, in its largest unit: 3.5s, 12m, 40d."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"  # noqa: PLR2004


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
@options.as_json
def reload(path: str | None, file: Path | None, timeout_s: float, *, as_json: bool) -> None:
    """Make a running `kapudf serve` load new code and settings.

    New workers start first. They take over the connections with their state, and no
    point is lost. If the new code fails, the old code keeps running, and this command
    prints the reason and exits with 1.
    """
    from kapudf_cli.supervisor import control
    from kapudf_cli.supervisor.errors import ControlError
    from kapudf_cli.system.terminal_text import counted

    failed = False
    reloaded = []
    paths, has_file = sockets(path, file)
    for each in paths:
        try:
            answer = control.ask(each, "reload", timeout_s=timeout_s)
        except ControlError as error:
            failed = True
            say(f"Error: {error}", err=True)
            continue
        failed = failed or answer["stay"] > 0
        reloaded.append(answer)
        if as_json:
            continue
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
    if as_json and (reloaded or has_file):
        say_json(reloaded if has_file else reloaded[0])
    if failed:
        click.get_current_context().exit(1)
