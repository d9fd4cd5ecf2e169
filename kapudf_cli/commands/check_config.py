"""`kapudf check-config`: whether a configuration file is fit to be served."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click


@click.command("check-config", short_help="Check a configuration file and its handlers.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--kapacitor",
    "as_kapacitor",
    is_flag=True,
    help="Print the section to paste into kapacitor.conf.",
)
def check_config(file: Path, *, as_kapacitor: bool) -> None:
    """Check a configuration file, and that its handlers can be loaded.

    Says OK, or names every setting that is wrong and exits with 2.
    """
    from kapudf_cli import config, config_file, plugins
    from kapudf_cli.errors import ConfigError, PluginError
    from kapudf_cli.replay.summary import counted

    settings = config.check(config_file.read(file), source=str(file))
    faults = []
    for name, function in settings.functions.items():
        try:
            plugins.find(function.handler).load()
        except PluginError as error:
            faults.append(f"functions.{name}.handler: {error}")
    if faults:
        raise ConfigError(str(file), faults)
    click.echo(f"{file}: OK, {counted(len(settings.functions), 'function')}", err=as_kapacitor)
    if as_kapacitor:
        for name, function in settings.functions.items():
            # A JSON string is a TOML string, but for one control character.
            path = json.dumps(os.path.abspath(function.socket), ensure_ascii=False)
            path = path.replace("\x7f", "\\u007f")
            click.echo(f"[udf.functions.{name}]")
            click.echo(f"    socket = {path}")
            click.echo('    timeout = "10s"')
