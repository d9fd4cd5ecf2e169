"""`kapudf list-handlers`: list handlers, including broken ones."""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import TYPE_CHECKING, Final

import click

from kapudf_cli.commands import options
from kapudf_cli.commands.output import say, say_json, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kapudf_cli.commands.schemas import HandlerRow
    from kapudf_cli.plugins import Plugin

_NAME_WIDTH: Final = 24
_INDENT: Final = 4


@click.command("list-handlers", short_help="List handlers with their edges and options.")
@click.argument("handlers", nargs=-1, metavar="[HANDLER]...", type=options.HANDLER)
@options.as_json
def list_handlers(handlers: tuple[str, ...], *, as_json: bool) -> None:
    """List handlers with their edges and options: all that are installed, or those named.

    The installed ones are the entry points of the group kapudf.handlers. A HANDLER is what
    --handler of other commands takes: a name, package.module:Class, file.py:Class, or a
    script for InfluxData's Python agent. One that cannot be loaded is listed with the
    reason.
    """
    from kapudf_cli import plugins

    listed = [plugins.find(handler) for handler in handlers] or plugins.discover()
    names = [] if handlers else [plugin.name for plugin in listed]
    # Output that a plugin prints at import must not mix with the rows.
    with contextlib.redirect_stdout(sys.stderr):
        rows = [_describe(plugin, ambiguous=names.count(plugin.name) > 1) for plugin in listed]
    if as_json:
        say_json(rows, indent=2)
        return
    if not rows:
        say("no handlers are installed", err=True)
        return
    for row in rows:
        for line in _lines(row):
            say(line)


def _lines(row: HandlerRow) -> Iterator[str]:
    """Yield the lines that show a handler, which fit into a terminal of 80 columns."""
    edges = f"{row['wants']} to {row['provides']}" if row["wants"] else "broken"
    yield f"{row['name']:{_NAME_WIDTH}} {edges}"
    source = row["target"]
    if row["distribution"]:
        source = f"{row['distribution']} {row['version']} ({source})"
    calls = " ".join(
        f".{option['name']}({', '.join(option['types'])})" for option in row["options"] or ()
    )
    for text in (row["summary"], calls, source, row["error"] and f"broken: {row['error']}"):
        yield from wrapped(text or "", indent=_INDENT)


def _describe(plugin: Plugin, *, ambiguous: bool) -> HandlerRow:
    from kapudf_cli.client import target
    from kapudf_cli.commands.udf_options import options_of
    from kapudf_cli.errors import KapudfError
    from kapudf_cli.tickscript import snippets

    row: HandlerRow = {
        "name": plugin.name,
        "wants": None,
        "provides": None,
        "options": None,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "target": plugin.target,
        "summary": "",
        "error": None,
    }
    try:
        handler = plugin.load()
        row["summary"] = inspect.cleandoc(handler.__doc__ or "").partition("\n")[0]
        info = target.describe(handler)
    except (KapudfError, OSError) as error:
        row["error"] = str(error)
        return row
    row["wants"] = snippets.edge_name(info.wants)
    row["provides"] = snippets.edge_name(info.provides)
    row["options"] = options_of(info, handler)
    if ambiguous:
        row["error"] = f"another distribution also provides '{plugin.name}'; uninstall one"
    return row
