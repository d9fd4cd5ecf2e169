"""Text for people: the only place where a command prints it.

Names, errors and values come from UDFs, recordings and tasks. None of them may control the
terminal or forge a line, so everything is escaped here; see `terminal_text`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from kapudf_cli.system.terminal_text import printable, printable_json

if TYPE_CHECKING:
    from typing import IO


def say(line: str = "", *, err: bool = False) -> None:
    """Print one line of text to stdout or stderr."""
    click.echo(printable(line), err=err)


def say_json(content: object, *, indent: int | None = None) -> None:
    """Print a value as JSON."""
    click.echo(json_text(content, indent=indent))


def json_text(content: object, *, indent: int | None = None) -> str:
    """Return a value as JSON that is safe to print, with text that is not ASCII as it is."""
    return printable_json(json.dumps(content, indent=indent, ensure_ascii=False))


def show_live(line: str) -> None:
    """Replace the live line on stderr; an empty one removes it."""
    click.echo(f"\r{printable(line)}\x1b[K", err=True, nl=False)


def escaped(error: click.ClickException) -> click.ClickException:
    """Return an error of click whose message is safe to print."""
    # click declares it final, and makes its other texts from it when they are shown.
    vars(error)["message"] = "\n".join(map(printable, error.message.split("\n")))
    return error


class PrintableLines:
    """A binary file for the lines that another program prints: escaped, and passed on."""

    def __init__(self, file: IO[bytes]) -> None:
        """Pass lines on to a file."""
        self._file = file

    def write(self, line: bytes, /) -> Any:
        """Write a line, or a part of one."""
        text = line.decode("utf-8", "backslashreplace")
        body = text.rstrip("\r\n")
        end = "\n" if text.endswith("\n") else ""
        return self._file.write(f"{printable(body)}{end}".encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()
