"""Man pages, made from the commands: `make man` writes them, and each wheel has them.

A page has the text of `--help`. The package click-man does not do it: it finds only the commands in
the attribute `commands` of a group, but kapudf imports its commands by name, and it does not escape
what roff would read as a request.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT: Final = Path(__file__).parent
#: `\:` lets a line break in a list of choices.
_ESCAPES: Final = {
    "|": r"|\:",
    "\\": r"\e",
    "-": r"\-",
    "'": r"\(aq",
    "`": r"\(ga",
    "^": r"\(ha",
    "~": r"\(ti",
}


class ManPages(BuildHookInterface[Any]):
    """Adds the man pages to a wheel, as data files: pip installs them into share/man/man1."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the pages into a folder of their own, unless the code stays where it is."""
        if version == "editable" or self.target_name != "wheel":
            return
        self._folder = tempfile.TemporaryDirectory()
        for page in write_pages(Path(self._folder.name)):
            build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"


def write_pages(folder: Path) -> list[Path]:
    """Write a page for kapudf and one for each command to a folder; return the files."""
    sys.path.insert(0, str(_ROOT))
    from kapudf_cli import __version__  # noqa: PLC0415 - found in the folder of this file
    from kapudf_cli.commands import main  # noqa: PLC0415

    date = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    about = f'"{time.strftime("%Y-%m-%d", date)}" "kapudf {__version__}" "kapudf"'
    context = main.context_class(main, info_name="kapudf", **main.context_settings)
    pages: dict[str, tuple[click.Command, click.Context]] = {"kapudf": (main, context)}
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None, "it is in the list"
        pages[f"kapudf-{name}"] = command, click.Context(command, context, name)
    files = []
    for name, (command, of_command) in pages.items():
        # Neither hyphens nor wide spaces: both would change what is copied from a page.
        head = [f".TH {_escaped(name.upper())} 1 {about}", ".nh", ".ad l"]
        others = [*pages][1:] if command is main else ["kapudf"]
        see_also = ", ".join(rf"\fB{_escaped(other)}\fR(1)" for other in others)
        lines = [*head, *_page(name, command, of_command), ".SH SEE ALSO", see_also, ""]
        files.append(folder / f"{name}.1")
        files[-1].write_text("\n".join(lines), encoding="ascii")
    return files


def _page(name: str, command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the lines of a page that come from its command."""
    summary = command.get_short_help_str(limit=200).rstrip(".")
    yield from (".SH NAME", rf"{_escaped(name)} \- {_escaped(summary)}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (".SH SYNOPSIS", rf"\fB{_escaped(context.command_path)}\fR {_escaped(usage)}")
    yield ".SH DESCRIPTION"
    yield from _paragraphs(inspect.cleandoc(command.help or ""))
    records = [each.get_help_record(context) for each in command.get_params(context)]
    yield ".SH OPTIONS"
    for flags, text in filter(None, records):
        if text:  # The description has the arguments.
            yield from (".TP", _flags(flags), *_filled(text))
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None, "it is in the list"
            yield from (".TP", rf"\fB{_escaped(each)}\fR")
            yield from _filled(found.get_short_help_str(limit=200))


def _paragraphs(text: str) -> Iterator[str]:
    """Yield a help text; click keeps the lines of a paragraph that begins with a backspace."""
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        first, *lines = paragraph.splitlines()
        if first.strip() == "\b":
            yield from (".nf", *map(_line, lines), ".fi")
        else:
            yield from _filled(paragraph)


def _filled(text: str) -> list[str]:
    """Return the lines of a paragraph, with code in bold."""
    return [
        re.sub(r"\\\(ga(.+?)\\\(ga", r"\\fB\1\\fR", _line(line))
        for line in textwrap.wrap(text, 72, break_on_hyphens=False)
    ]


def _flags(text: str) -> str:
    """Return `--limit N` with the flag in bold and the value in italics."""
    return re.sub(
        r"[^ ,/]+",
        lambda word: rf"\f{'B' if word[0].startswith('-') else 'I'}{_escaped(word[0])}\fR",
        text,
    )


def _line(text: str) -> str:
    """Return an escaped line, which is no request to roff."""
    return rf"\&{_escaped(text)}" if text.startswith(".") else _escaped(text)


def _escaped(text: str) -> str:
    return "".join(
        _ESCAPES.get(each, each if each.isascii() else f"\\[u{ord(each):04X}]") for each in text
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for file in write_pages(target):
        print(file)  # noqa: T201 - for the user of make
