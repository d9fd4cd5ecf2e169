"""`kapudf check-config`: check a configuration file and its handlers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kapudf_cli.commands import options
from kapudf_cli.commands.output import json_text, say, say_json

if TYPE_CHECKING:
    from kapudf_cli.commands.schemas import CheckConfig
    from kapudf_cli.config import Settings


@click.command("check-config", short_help="Check a configuration file and its handlers.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--kapacitor",
    "as_kapacitor",
    is_flag=True,
    help="Print the section to paste into kapacitor.conf.",
)
@click.option(
    "--elsewhere",
    is_flag=True,
    help="The file is for another machine: call no setup_worker, and skip the checks of the "
    "sockets' folders and groups, and of this process's limits.",
)
@options.as_json
def check_config(file: Path, *, as_kapacitor: bool, elsewhere: bool, as_json: bool) -> None:
    """Check a configuration file, and that this machine can serve it.

    Checks the settings, imports the handlers, calls their `setup_worker`, and looks for
    the sockets' folders and groups. Prints OK and what it cannot check; otherwise lists
    all errors and exits with 2.
    """
    from kapudf_cli import config, config_file
    from kapudf_cli.errors import ConfigError
    from kapudf_cli.system.terminal_text import counted

    if as_json and as_kapacitor:
        raise click.UsageError("--kapacitor prints text for kapacitor.conf; remove it, or --json")
    settings = config.check(config_file.read(file), source=str(file))
    faults = _faults_of_handlers(settings, set_up=not elsewhere)
    if not elsewhere:
        faults += _faults_here(settings)
    if faults:
        raise ConfigError(str(file), faults)
    unchecked = ["permissions of the service's user", "whether another process serves the sockets"]
    if elsewhere:
        unchecked = ["setup_worker", "the sockets' folders and groups", "limits", *unchecked]
    if as_json:
        say_json(_facts(file, settings, unchecked))
        return
    say(f"{file}: OK, {counted(len(settings.functions), 'function')}", err=as_kapacitor)
    *most, last = unchecked
    say(f"not checked: {', '.join(most)}, and {last}", err=as_kapacitor)
    if as_kapacitor:
        for name, function in settings.functions.items():
            # A JSON string without control characters is a valid TOML string.
            path = json_text(os.path.abspath(function.socket))
            say(f"[udf.functions.{name}]")
            say(f"    socket = {path}")
            say('    timeout = "10s"')


def _facts(file: Path, settings: Settings, unchecked: list[str]) -> CheckConfig:
    return {
        "file": str(file),
        "functions": [
            {
                "name": name,
                "handler": function.handler,
                "socket": os.path.abspath(function.socket),
            }
            for name, function in settings.functions.items()
        ],
        "not_checked": unchecked,
    }


def _faults_of_handlers(settings: Settings, *, set_up: bool) -> list[str]:
    """Return an error for each handler that cannot be loaded or, with `set_up`, be set up."""
    from kapudf_cli import plugins
    from kapudf_cli.plugin_errors import PluginError
    from kapudf_cli.worker.fork_safety import Baseline

    faults = []
    for name, function in settings.functions.items():
        before = Baseline()
        try:
            handler = plugins.find(function.handler).load()
            if set_up:
                plugins.set_up(handler)
            if set_up and function.preload:
                before.check(handler)
        except PluginError as error:
            faults.append(f"functions.{name}.handler: {error}")
    return faults


def _faults_here(settings: Settings) -> list[str]:
    """Return an error for each requirement of the settings that this machine does not meet."""
    from kapudf_cli.errors import ConfigError
    from kapudf_cli.journal import journal
    from kapudf_cli.system import socket_file
    from kapudf_cli.system.errors import SocketPathError

    faults = []
    for name, function in settings.functions.items():
        try:
            socket_file.check(function.socket, function.access)
        except SocketPathError as error:
            faults.append(f"functions.{name}.socket: {error}")
    if not settings.in_one_process:
        try:
            journal.check_journals(settings, source="")
        except ConfigError as error:
            faults.extend(error.faults)
    return faults
