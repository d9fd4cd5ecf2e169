"""The options that select a UDF: --socket, --exec or --handler."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kapudf_cli.commands.output import PrintableLines, own_stdout

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapudf_cli.client import Target


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select the UDF, which the command receives as `target`.

    The stderr of a process started by --exec is passed on to stderr.
    """

    @click.option(
        "--socket",
        metavar="PATH",
        envvar="KAPUDF_SOCKET",
        show_envvar=True,
        help="The UDF at this Unix socket.",
    )
    @click.option(
        "--exec",
        "command",
        metavar="COMMAND",
        help="A process UDF: start this command, without a shell, and use its stdin and stdout.",
    )
    @click.option(
        "--handler",
        metavar="HANDLER",
        help="A handler in this process: its name, package.module:Class, or file.py:Class.",
    )
    @functools.wraps(command)
    def with_target(
        *args: Any, socket: str | None, command: str | None, handler: str | None, **kwargs: Any
    ) -> Any:
        return with_target.__wrapped__(*args, target=_target(socket, command, handler), **kwargs)

    return with_target


def _target(socket: str | None, command: str | None, handler: str | None) -> Target:
    from kapudf_cli import plugins
    from kapudf_cli.client import CommandTarget, HandlerTarget, SocketTarget
    from kapudf_cli.client.errors import TargetError

    given = [value for value in (socket, command, handler) if value is not None]
    source = click.get_current_context().get_parameter_source("socket")
    if len(given) > 1 and source is ParameterSource.ENVIRONMENT:
        # A flag overrides an environment variable.
        socket = None
        given = given[1:]
    if len(given) != 1:
        wrong = "select only one UDF" if given else "select a UDF"
        raise click.UsageError(f"{wrong}: --socket PATH, --exec 'COMMAND …' or --handler NAME")
    if command is not None:
        try:
            stderr = sys.stderr.buffer
            passed_to = PrintableLines(stderr) if sys.stderr.isatty() else stderr
            return CommandTarget.parse(command, stderr=passed_to)
        except TargetError as error:
            raise click.BadParameter(str(error), param_hint="'--exec'") from error
    if handler is not None:
        plugin = plugins.find(handler)
        with own_stdout():
            # Output that a module prints at import is not a result.
            return HandlerTarget(handler, plugin.load())
    return SocketTarget(os.fspath(socket or ""))


def silenced(target: Target) -> Target:
    """Return a target that hides its stderr, except for the last lines before a failure."""
    from kapudf_cli.client import CommandTarget

    if isinstance(target, CommandTarget):
        return dataclasses.replace(target, stderr=None)
    return target
