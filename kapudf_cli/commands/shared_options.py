"""Options that several commands have, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from kapudf_cli.commands.numbers import Number

if TYPE_CHECKING:
    from kapudf_cli.commands.settings import Decorator

as_json: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object, for machines."
)


def socket_path(text: str, *, required: bool = True) -> Decorator:
    """Return the option for the socket that a command connects to, as `path`."""
    return click.option(
        "--socket",
        "path",
        metavar="PATH",
        required=required,
        envvar="KAPUDF_SOCKET",
        show_envvar=True,
        help=text,
    )


def config_file(name: str, text: str) -> Decorator:
    """Return the option for a configuration file, as `name`."""
    return click.option(
        "--config",
        name,
        metavar="FILE",
        envvar="KAPUDF_CONFIG",
        show_envvar=True,
        type=click.Path(path_type=Path),
        help=text,
    )


def calls(*, example: str) -> Decorator:
    """Return the option for what to call the UDF's own options with, as `calls`."""
    return click.option(
        "--options",
        "calls",
        metavar="CALLS",
        default="",
        help=f"Options of the UDF, as a TICKscript calls them: {example}",
    )


def timeout(text: str, *, least: float = 0, most: float = 3600, default: float = 10.0) -> Decorator:
    """Return the option for how long to wait, as `timeout_s`; 0 is too short in any case."""
    return click.option(
        "--timeout",
        "timeout_s",
        metavar="SECONDS",
        type=Number(min=least, min_open=not least, max=most),
        default=default,
        show_default=True,
        help=text,
    )
