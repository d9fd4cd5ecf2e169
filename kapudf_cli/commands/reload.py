"""`kapudf reload`: load new code and settings while tasks run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from kapudf_cli.commands import options
from kapudf_cli.commands.output import say

if TYPE_CHECKING:
    from pathlib import Path


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
