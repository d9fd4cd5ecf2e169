"""Options that are settings: checked as the configuration file's are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Struct


def checked(setting: str, *, of_function: bool) -> Callable[..., Any]:
    """Return a click callback that checks a value as the configuration file's is checked."""

    def check(ctx: click.Context, param: click.Parameter, value: object) -> object:
        del ctx, param
        from kapudf_cli import config

        struct: type[Struct] = config.FunctionSettings if of_function else config.Settings
        if value is not None:
            problem = config.check_value(struct, setting, value)
            if problem:
                raise click.BadParameter(problem)
        return value

    return check
