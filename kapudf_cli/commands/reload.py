"""`kapudf reload`: new code and configuration, and no task notices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from kapudf_cli.commands import shared_options
from kapudf_cli.commands.terminal import say

if TYPE_CHECKING:
    from pathlib import Path


@click.command(short_help="Load code and settings anew, while tasks run.")
@shared_options.socket_path("Unix socket of the function to reload.", required=False)
@shared_options.config_file("file", "Reload every function of a configuration file instead.")
@shared_options.timeout(
    "How long to wait until every connection is handed over.", least=0.1, most=600, default=60.0
)
def reload(path: str | None, file: Path | None, timeout_s: float) -> None:
    """Have a running `kapudf serve` load a handler's code and its settings anew.

    New workers are ready before old ones let go, and take over the state; not
    a point is lost. If the new code fails, the old code goes on, and this
    says why and exits with 1.
    """
    from kapudf_cli import config, config_file
    from kapudf_cli.supervisor import control
    from kapudf_cli.supervisor.errors import ControlError
    from kapudf_cli.tools.replay.summary import counted

    if path is not None and file is not None:
        # What stands in the environment is only for when nothing is said.
        source = click.get_current_context().get_parameter_source
        if source("path") is ParameterSource.ENVIRONMENT:
            path = None
        elif source("file") is ParameterSource.ENVIRONMENT:
            file = None
    if (path is None) == (file is None):
        raise click.UsageError("name either a --socket or a --config file")
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
