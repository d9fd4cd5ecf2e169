"""`kapudf schema`: print the JSON Schema of what a command prints with --json."""

from __future__ import annotations

import click

from kapudf_cli.commands import schemas
from kapudf_cli.commands.output import say_json


@click.command(short_help="Print the JSON Schema of a command's --json.")
@click.argument("command", type=click.Choice(schemas.COMMANDS))
def schema(command: str) -> None:
    """Print the JSON Schema (draft 2020-12) of what a COMMAND prints with --json.

    If the command fails, stdout is empty, or has the results before the error, and the
    error is a line on stderr, as without --json.
    """
    say_json(schemas.schema_of(command), indent=2)
