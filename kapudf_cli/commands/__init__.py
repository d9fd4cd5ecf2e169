"""The command line: one file per command, and the only package that knows exit statuses.

Each command is imported when it is called, and imports its dependencies when it runs. So
`kapudf --help` is fast.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from kapudf_cli.commands import output
from kapudf_cli.commands.output import say
from kapudf_cli.errors import ConfigError, KapudfError

if TYPE_CHECKING:
    from types import FrameType

#: The command line or the configuration is wrong; the same call would fail again.
EXIT_USAGE: Final = 2
#: The call is valid, and failed.
EXIT_FAILURE: Final = 1

#: Each command, and the module and name of its function.
_COMMANDS: Final = {
    "serve": "kapudf_cli.commands.serve:serve",
    "exec": "kapudf_cli.commands.exec:execute",
    "list-handlers": "kapudf_cli.commands.list_handlers:list_handlers",
    "probe": "kapudf_cli.commands.probe:probe",
    "status": "kapudf_cli.commands.control:status",
    "reload": "kapudf_cli.commands.control:reload",
    "upgrade": "kapudf_cli.commands.upgrade:upgrade",
    "replay": "kapudf_cli.commands.replay:replay",
    "dev": "kapudf_cli.commands.dev:dev",
    "check": "kapudf_cli.commands.check:check",
    "load": "kapudf_cli.commands.load:load",
    "check-config": "kapudf_cli.commands.check_config:check_config",
    "new": "kapudf_cli.commands.new:new",
    "schema": "kapudf_cli.commands.schema:schema",
    "completion": "kapudf_cli.commands.completion:completion",
}


class Interrupted(BaseException):
    """A signal ends this process.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Commands(click.Group):
    """Finds commands by name, and turns kapudf's errors into one line and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands, the most used first."""
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
        """Return the command, or fail and suggest the nearest name."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            nearest = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            if not nearest:
                raise
            ctx.fail(f"{error.message} Did you mean '{nearest[0]}'?")

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program; end by the signal that interrupts it, as a shell expects.

        If stdout is full, print one line, whether the output was help or results.
        """
        try:
            return super().main(*args, **extra)
        except Interrupted as interrupted:
            _die_of(interrupted.number)
        except OSError as error:
            if not output.is_full(error):
                raise
            output.discard_stdout()
            say(f"Error: stdout cannot be written: {error.strerror}", err=True)
            sys.exit(EXIT_FAILURE)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; print kapudf's own errors as one line, not as a traceback."""
        output.make_streams_usable()
        _raise_on_sigterm()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted(signal.SIGINT) from None
        except click.ClickException as error:
            raise output.escaped(error) from error.__cause__
        except ConfigError as error:
            for fault in error.faults:
                say(f"Error: {error.source}: {fault}", err=True)
            ctx.exit(EXIT_USAGE)
        except KapudfError as error:
            output.show_traceback(error)
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            say(f"Error: {error}{notes}", err=True)
            ctx.exit(EXIT_USAGE if error.is_usage_error else EXIT_FAILURE)


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - as click calls it
    del param
    if not value or ctx.resilient_parsing:
        return
    from google import protobuf

    from kapudf_cli import __version__

    python = ".".join(map(str, sys.version_info[:3]))
    say(f"kapudf {__version__} (Python {python}, protobuf {protobuf.__version__})")
    ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the versions of kapudf, Python and protobuf, and exit.",
)
def main() -> None:
    """Run user-defined functions (UDFs) for Kapacitor.

    Write a handler class and serve it on a Unix socket, straight from its file
    or installed under a name.
    """


def run() -> None:
    """Run the program, and end the process even if a handler has left threads running."""
    try:
        main(prog_name="kapudf")
    except SystemExit as end:
        if end.code == EXIT_USAGE and _has_tasks_left():
            # systemd does not start a service again whose settings are wrong. But as long as it
            # tries, it keeps the tasks' connections.
            say("The tasks go on in their workers until kapudf can start.", err=True)
            end.code = EXIT_FAILURE
        if threading.active_count() > 1:
            _exit_despite_threads(end)
        raise


def _has_tasks_left() -> bool:
    """Return whether an earlier supervisor has left tasks that this process was to go on with."""
    if "LISTEN_FDNAMES" not in os.environ:
        return False
    from kapudf_cli.supervisor import numbers
    from kapudf_cli.system import keeping

    return keeping.has_left(numbers.NAME)


def _exit_despite_threads(end: SystemExit) -> None:
    from kapudf_cli.system import logs  # Most commands need no log.

    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    logs.exit_despite_threads(end.code if isinstance(end.code, int) else 0)


def _raise_on_sigterm() -> None:
    """Make SIGTERM raise `Interrupted`, as Ctrl-C raises KeyboardInterrupt.

    The default action would leave child processes in other process groups behind.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise Interrupted(signal.Signals(number))


def _die_of(number: signal.Signals) -> NoReturn:
    """End this process by a signal, so that the parent sees it (130 or 143 in a shell)."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError(number)  # Not reached: the signal is delivered by now.
