"""The command line: one file a command, and the only place that knows exit codes.

A command is imported when it is called, and a command imports what it works
with when it runs: what one of them needs, `kapudf --help` does not wait for.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from typing import Any, Final

import click

from kapudf_cli.commands import interruption, standard_streams
from kapudf_cli.commands.terminal import escaped, say
from kapudf_cli.errors import ConfigError, KapudfError

#: What the user asked for cannot be done as it was asked; trying again is no use.
EXIT_USAGE: Final = 2
#: It was asked well, and failed.
EXIT_FAILURE: Final = 1

#: Each command, and the module and name of its function.
_COMMANDS: Final = {
    "serve": "kapudf_cli.commands.serve:serve",
    "exec": "kapudf_cli.commands.exec:execute",
    "list-handlers": "kapudf_cli.commands.list_handlers:list_handlers",
    "probe": "kapudf_cli.commands.probe:probe",
    "status": "kapudf_cli.commands.status:status",
    "reload": "kapudf_cli.commands.reload:reload",
    "replay": "kapudf_cli.commands.replay:replay",
    "check": "kapudf_cli.commands.check:check",
    "load": "kapudf_cli.commands.load:load",
    "check-config": "kapudf_cli.commands.check_config:check_config",
    "new": "kapudf_cli.commands.new:new",
}


class Commands(click.Group):
    """Finds commands by name, and turns the project's errors into a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which people meet them."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        del ctx
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, name = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called, or fail with the likely one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            nearest = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            if not nearest:
                raise
            ctx.fail(f"{error.message} Did you mean '{nearest[0]}'?")

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program, and end by what ends it.

        A full disk under stdout is a line, be it for help or for results.
        """
        try:
            return super().main(*args, **extra)
        except interruption.Interrupted as interrupted:
            interruption.die_of(interrupted.number)
        except OSError as error:
            if not standard_streams.is_full(error):
                raise
            standard_streams.discard_stdout()
            say(f"Error: stdout cannot be written: {error.strerror}", err=True)
            sys.exit(EXIT_FAILURE)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; an error of the project's own is a line, not a traceback."""
        standard_streams.make_usable()
        interruption.raise_on_sigterm()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise interruption.Interrupted(signal.SIGINT) from None
        except click.ClickException as error:
            raise escaped(error) from error.__cause__
        except ConfigError as error:
            for fault in error.faults:
                say(f"Error: {error.source}: {fault}", err=True)
            ctx.exit(EXIT_USAGE)
        except KapudfError as error:
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            say(f"Error: {error}{notes}", err=True)
            ctx.exit(EXIT_USAGE if error.is_usage_error else EXIT_FAILURE)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kapudf", message="%(prog)s %(version)s")
def main() -> None:
    """Run user-defined functions (UDFs) for Kapacitor.

    Write a handler class and serve it on a Unix socket, straight from its file
    or installed under a name.
    """
