"""Command line options that several commands share.

An option for a setting takes its checks from `config`, so that a flag, an environment variable
and the configuration file accept the same values.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import click
from click.core import ParameterSource

from kapudf_cli.commands.output import WHOLE_TRACEBACKS, PrintableLines, own_stdout

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem
    from msgspec import Struct

    from kapudf_cli.client.target import Target
    from kapudf_cli.config import Settings
    from kapudf_cli.tools.recordings.recording import Kind
    from kapudf_cli.tools.recordings.sources import Source

#: A decorator that adds an option to a command.
Decorator: TypeAlias = "Callable[[Any], Any]"


class Number(click.FloatRange):
    """A float in a range; refuses `nan`, which click accepts in every range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail as click's own types do."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail("nan is not a number", param, ctx)
        return number


if TYPE_CHECKING:
    TextType = click.ParamType[str]
else:
    TextType = click.ParamType  # It is not generic in click 8.3.


class HandlerType(TextType):
    """A handler, as `plugins.find` takes it; completes names of installed ones, and files."""

    name = "text"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Return names and Python files here, or else have the shell complete a path."""
        del ctx, param
        from click.shell_completion import CompletionItem

        from kapudf_cli import entry_points

        files = [] if "/" in incomplete else sorted(map(str, Path().glob("*.py")))
        found = [*sorted(entry_points.installed().names), *files]
        fitting = [CompletionItem(each) for each in found if each.startswith(incomplete)]
        return fitting or [CompletionItem(incomplete, type="file")]


HANDLER: Final = HandlerType()
#: A path that need not exist, and that need not be readable, as Unix sockets.
SOCKET: Final = click.Path(readable=False)


def names(value: str | list[str]) -> list[str]:
    """Return names that are separated by commas, without spaces; empty ones are left out."""
    if isinstance(value, list):
        return value
    return [name for part in value.split(",") if (name := part.strip())]


as_json: Final = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON, for machines; `kapudf schema COMMAND` describes it.",
)


def socket_path(text: str, *, required: bool = True) -> Decorator:
    """Return the option for the socket to connect to, passed as `path`."""
    return click.option(
        "--socket",
        "path",
        metavar="PATH",
        type=SOCKET,
        required=required,
        envvar="KAPUDF_SOCKET",
        show_envvar=True,
        help=text,
    )


def config_file(name: str, text: str) -> Decorator:
    """Return the option for a configuration file, passed as `name`."""
    return click.option(
        "--config",
        name,
        metavar="FILE",
        envvar="KAPUDF_CONFIG",
        show_envvar=True,
        type=click.Path(path_type=Path),
        help=text,
    )


def calls(*, example: str, otherwise: str | None = None) -> Decorator:
    """Return the option for the UDF's own options, in TICKscript, passed as `calls`.

    Args:
        example: what to show in the help.
        otherwise: what the command does without it, which it then gets as None; None if the task
            has no options then.
    """
    default = "" if otherwise is None else f"  [default: {otherwise}]"
    return click.option(
        "--options",
        "calls",
        metavar="CALLS",
        default="" if otherwise is None else None,
        help=f"Options of the UDF, as a TICKscript calls them: {example}{default}",
    )


def _kind(ctx: click.Context, param: click.Parameter, value: str | None) -> Kind | None:
    del ctx, param
    from kapudf_cli.tools.recordings.recording import Kind

    return None if value is None else Kind[value.upper()]


class RecordingPath(click.Path):
    """A file to read, or the URL of a database of InfluxDB."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path or URL; a file must exist."""
        from kapudf_cli.tools.recordings.influxdb import is_url

        return value if is_url(value) else super().convert(value, param, ctx)


def source_options(parameter: str, what: str) -> Decorator:
    """Return the options that say how to read a recording, which is passed as `source`.

    Args:
        parameter: the parameter of the command with the path or URL; None if it is not given.
        what: how messages name that parameter.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--input-format",
            "kind",
            type=click.Choice(["stream", "batch", "lines"]),
            callback=_kind,
            help=f"The format of {what}: a stream recording, a batch recording or line "
            "protocol.  [default: detected from its content]",
        )
        @click.option(
            "--precision",
            type=click.Choice(["ns", "u", "ms", "s", "m", "h"]),
            default="ns",
            show_default=True,
            help="Unit of the timestamps in line protocol.",
        )
        @click.option(
            "--query", metavar="SELECT", help="What to read from InfluxDB: 'SELECT * FROM cpu'."
        )
        @click.option(
            "--start",
            "start_ns",
            metavar="TIME",
            callback=_time,
            help="First time to read from InfluxDB: 2026-01-31, 2026-01-31T12:00:00Z or now-6h.",
        )
        @click.option(
            "--stop",
            "stop_ns",
            metavar="TIME",
            callback=_time,
            help="Time after the last one.  [default: now]",
        )
        @click.option(
            "--every",
            "every_ns",
            metavar="PERIOD",
            callback=period,
            help="Read InfluxDB in periods of this length. For a UDF that wants batches, each is "
            "queried as |query().period(PERIOD).every(PERIOD) does.",
        )
        @functools.wraps(command)
        def with_source(*args: Any, **kwargs: Any) -> Any:
            given = {name: kwargs.pop(name) for name in _SOURCE_PARAMETERS}
            path = kwargs.pop(parameter)
            source = _source(path, given, what)
            return with_source.__wrapped__(*args, source=source, **kwargs)

        return with_source

    return decorate


_SOURCE_PARAMETERS: Final = ("kind", "precision", "query", "start_ns", "stop_ns", "every_ns")


def _source(path: str | None, given: dict[str, Any], what: str) -> Source | None:
    from kapudf_cli.tools.recordings.sources import Source

    if path is None:
        context = click.get_current_context()
        for each in context.command.params:
            source = context.get_parameter_source(each.name or "")
            if each.name in _SOURCE_PARAMETERS and source is not ParameterSource.DEFAULT:
                raise click.UsageError(f"{each.opts[0]} says how to read {what}, which is missing")
        return None
    if given["start_ns"] is not None and given["stop_ns"] is None:
        given["stop_ns"] = time.time_ns()
    return Source(path, **given)


def period(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return a duration as TICKscript writes it in nanoseconds."""
    del ctx, param
    if value is None:
        return None
    duration = _duration_ns(value)
    if duration is None or duration <= 0:
        raise click.BadParameter(f"{value!r} is not a duration above 0, such as 500ms, 10s or 1m")
    return duration


def _duration_ns(text: str) -> int | None:
    """Return a duration of TICKscript in nanoseconds, None if the text is not one."""
    from kapudf_cli.tickscript.literals import read_literal

    try:
        literal, end = read_literal(text, 0)
    except ValueError:
        return None
    return int(literal.durationValue) if end == len(text) else None


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return a time in nanoseconds since the epoch: RFC 3339, a date, `now` or `now-6h`."""
    del ctx, param
    from kapudf_cli.tools.recordings.notation import read_time

    if value is None:
        return None
    if value == "now":
        return time.time_ns()
    if value.startswith("now-") and (ago := _duration_ns(value.removeprefix("now-"))) is not None:
        return time.time_ns() - ago
    try:
        return read_time(value if len(value) > len("2026-01-31") else f"{value}T00:00:00Z")
    except ValueError as error:
        examples = "2026-01-31, 2026-01-31T12:00:00Z or now-6h"
        raise click.BadParameter(f"{value!r} is not a time such as {examples}") from error


def is_folder_there(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Check the folder of an output file before the work starts, not at its end."""
    del ctx, param
    if value is not None and not Path(value).parent.is_dir():
        raise click.BadParameter(f"there is no folder {Path(value).parent}")
    return value


def plot(what: str) -> Decorator:
    """Return the option for a picture, passed as `plot`."""
    return click.option(
        "--plot",
        metavar="FILE",
        type=click.Path(dir_okay=False, writable=True),
        callback=_plot,
        help=f"Draw {what}: a file that ends with .svg, .png or .html (a page with zoom).",
    )


def _plot(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Check that the picture can be drawn, before the work starts."""
    if value is not None:
        from kapudf_cli.tools.plot import drawing

        is_folder_there(ctx, param, value)
        drawing.check(value)
    return value


def timeout(text: str, *, least: float = 0, most: float = 3600, default: float = 10.0) -> Decorator:
    """Return the option for a timeout above 0, passed as `timeout_s`."""
    return click.option(
        "--timeout",
        "timeout_s",
        metavar="SECONDS",
        type=Number(min=least, min_open=not least, max=most),
        default=default,
        show_default=True,
        help=text,
    )


# --- the UDF ---


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select the UDF, which the command receives as `target`.

    The stderr of a process started by --exec is passed on to stderr.
    """

    @click.option(
        "--socket",
        metavar="PATH",
        type=SOCKET,
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
        type=HANDLER,
        help="A handler in this process: its name, package.module:Class, file.py:Class, or a "
        "script for InfluxData's Python agent: 'script.py arguments'.",
    )
    @click.option(
        "--partitions",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        metavar="N",
        help="With --handler: share the groups among N instances of it, as the setting does. They "
        "are called one after the other, so it takes no less time.",
    )
    @click.option(
        "--traceback",
        is_flag=True,
        expose_value=False,
        callback=_keep_traceback,
        help="If a --handler raises, show the whole traceback, with kapudf's own calls.",
    )
    @functools.wraps(command)
    def with_target(
        *args: Any,
        socket: str | None,
        command: str | None,
        handler: str | None,
        partitions: int,
        **kwargs: Any,
    ) -> Any:
        target = _target(socket, command, handler, partitions)
        return with_target.__wrapped__(*args, target=target, **kwargs)

    return with_target


def _keep_traceback(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - as click calls it
    del param
    ctx.meta[WHOLE_TRACEBACKS] = value


def _target(
    socket: str | None, command: str | None, handler: str | None, partitions: int
) -> Target:
    from kapudf_cli import plugins
    from kapudf_cli.client.command_target import CommandTarget
    from kapudf_cli.client.errors import TargetError
    from kapudf_cli.client.target import HandlerTarget, SocketTarget

    given = [value for value in (socket, command, handler) if value is not None]
    source = click.get_current_context().get_parameter_source("socket")
    if len(given) > 1 and source is ParameterSource.ENVIRONMENT:
        # A flag overrides an environment variable.
        socket = None
        given = given[1:]
    if len(given) != 1:
        wrong = "select only one UDF" if given else "select a UDF"
        raise click.UsageError(f"{wrong}: --socket PATH, --exec 'COMMAND …' or --handler NAME")
    if partitions > 1 and handler is None:
        raise click.UsageError("--partitions needs --handler; remove it, or the other UDF")
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
            loaded = plugin.load()
            if partitions > 1:
                plugins.check_partitions(handler, loaded)
            plugins.set_up(loaded)
            return HandlerTarget(handler, loaded, partitions)
    return SocketTarget(os.fspath(socket or ""))


def silenced(target: Target) -> Target:
    """Return a target that hides its stderr, except for the last lines before a failure."""
    from kapudf_cli.client.command_target import CommandTarget

    if isinstance(target, CommandTarget):
        return dataclasses.replace(target, stderr=None)
    return target


# --- settings ---


def _checked(setting: str, scope: Literal["function", "process"]) -> Callable[..., Any]:
    """Return a click callback that checks a value as in the configuration file."""

    def check(ctx: click.Context, param: click.Parameter, value: object) -> object:
        del ctx, param
        from kapudf_cli import config

        struct: type[Struct] = config.FunctionSettings if scope == "function" else config.Settings
        if value is not None:
            problem = config.check_value(struct, setting, value)
            if problem:
                raise click.BadParameter(problem)
        return value

    return check


def setting(
    flag: str,
    name: str | None = None,
    *,
    scope: Literal["function", "process"] = "function",
    **attributes: Any,
) -> Decorator:
    """Return an option for a setting, which an environment variable may give as well.

    Args:
        flag: for example `--busy-limit`; its environment variable is then KAPUDF_BUSY_LIMIT.
        name: the setting's name, if it differs from the flag's.
        scope: whether the setting belongs to a function or to the whole process.
        attributes: arguments of `click.option`. Do not give a default: a setting that is not
            given must not replace the one in the configuration file.
    """
    words = flag.removeprefix("--").replace("-", "_")
    return click.option(
        flag,
        name or words,
        envvar=f"KAPUDF_{words.upper()}",
        show_envvar=True,
        callback=_checked(name or words, scope),
        **attributes,
    )


def combined(raw: dict[str, Any], given: dict[str, Any], *, source: str) -> Settings:
    """Return the settings of a file, overridden by flags and environment variables.

    Args:
        raw: the content of the file, empty if there is no file.
        given: settings by name, of the function and of the process.
        source: the name of the file, for error messages.

    Raises:
        ConfigError: the settings are not valid.
    """
    from kapudf_cli import config

    top = {name: given[name] for name in given if name in config.Settings.__struct_fields__}
    function = {name: given[name] for name in given if name not in top}
    overlaid = config.overlay(raw, top=top, function=function, source=source)
    return config.check(overlaid, source=source)


HANDLER_HELP: Final = (
    "Installed handler by name, package.module:Class, file.py:Class, or a script for InfluxData's "
    "Python agent: 'script.py arguments'."
)

max_frame_bytes: Final = setting(
    "--max-frame-bytes",
    metavar="N",
    type=int,
    help="Longest message taken or sent, in bytes.  [default: 67108864]",
)
linger_ms: Final = setting(
    "--linger-ms",
    metavar="MS",
    type=float,
    help="Longest pause before a read under load, so that points gather.  [default: 2]",
)
on_error: Final = setting(
    "--on-error",
    type=click.Choice(["fail", "skip", "restart"]),
    help="What an exception of a handler over data does: fail the task; skip the point or batch; "
    "that, and restart the handler with its state.  [default: fail]",
)
concurrency: Final = setting(
    "--concurrency",
    metavar="N",
    type=int,
    help="Most calls of an async point or batch at once, per connection.  [default: that of the "
    "handler's class, usually 16]",
)
call_timeout: Final = setting(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=float,
    help="How long each of these calls may take; --on-error says what happens then.  [default: "
    "that of the handler's class, usually none]",
)
busy_limit: Final = setting(
    "--busy-limit",
    "busy_limit_s",
    metavar="SECONDS",
    type=float,
    help="How long one call of a handler may take. Then its worker is replaced; where it has none, "
    "Kapacitor is no longer told that the handler is busy.  [default: 300]",
)
grace_period: Final = setting(
    "--grace-period",
    "grace_period_s",
    scope="process",
    metavar="SECONDS",
    type=float,
    help="How long connections may take to finish after a signal.  [default: 10]",
)
log_format: Final = setting(
    "--log-format",
    scope="process",
    type=click.Choice(["auto", "console", "json"]),
    help="auto: console on a terminal, JSON elsewhere.  [default: auto]",
)
log_level: Final = setting(
    "--log-level",
    scope="process",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Least important event shown.  [default: info]",
)
