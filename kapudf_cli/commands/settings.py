"""Options that are settings: declared once, and checked as the configuration file's are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Struct

    from kapudf_cli.config import Settings

#: What a click option is to be put over: a command, or its function.
Decorator: TypeAlias = "Callable[[Any], Any]"


def _checked(setting: str, scope: Literal["function", "process"]) -> Callable[..., Any]:
    """Return a click callback that checks a value as the configuration file's is checked."""

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
    """Return an option for a setting, which may come from the environment as well.

    Args:
        flag: `--busy-limit`; the variable is then KAPUDF_BUSY_LIMIT.
        name: the setting's, where it is not that of the flag.
        scope: whether it is one of each function or of the whole process.
        attributes: of the click option. It has no default: what is not given is left to
            the configuration.
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
    """Return the settings of a file with those of flags and the environment put over them.

    Args:
        raw: what the file says, nothing where there is none.
        given: settings by name, each of a function or of the process.
        source: what complaints name.

    Raises:
        ConfigError: they are not usable.
    """
    from kapudf_cli import config

    top = {name: given[name] for name in given if name in config.Settings.__struct_fields__}
    function = {name: given[name] for name in given if name not in top}
    overlaid = config.overlay(raw, top=top, function=function, source=source)
    return config.check(overlaid, source=source)


HANDLER_HELP: Final = "Installed handler by name, package.module:Class, or file.py:Class."

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
    help="Longest pause before a read under load, so that points gather.  [default: 0.5]",
)
on_error: Final = setting(
    "--on-error",
    type=click.Choice(["fail", "skip", "restart"]),
    help="What an exception of a handler over data does: fail the task; skip the point or batch; "
    "that, and restart the handler with its state.  [default: fail]",
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
