"""`kapudf new`: write a plugin project that works as it is."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from kapudf_cli.commands import options
from kapudf_cli.commands.output import say, say_json


@click.command(short_help="Write a plugin project, with a handler and a test.")
@click.argument("name")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder to write to, new or empty.  [default: ./NAME]",
)
@options.as_json
def new(name: str, directory: Path | None, *, as_json: bool) -> None:
    """Write a small, installable plugin project: a handler and its test.

    NAME is the handler's name, such as my-average; the package is then my_average and
    the class MyAverage. Existing files are not overwritten.
    """
    from kapudf_cli import scaffold

    names = scaffold.names_of(name)
    target = Path(name) if directory is None else directory
    files = scaffold.write(names, target)
    commands = [
        f"cd {shlex.quote(click.format_filename(target))}",
        "python -m pip install -e '.[dev]'",
        "python -m pytest",
        "kapudf list-handlers",
        f"kapudf serve --socket /tmp/{name}.sock --handler {name}",
    ]
    if as_json:
        say_json({"files": [click.format_filename(path) for path in files], "next": commands})
        return
    for path in files:
        say(f"wrote {click.format_filename(path)}")
    say()
    say("Next, in the virtual environment that has kapudf:")
    say()
    for command in commands:
        say(f"    {command}")
