"""`kapudf list-handlers`: list handlers, including broken ones."""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

import click

from kapudf_cli.commands.output import say, say_json

if TYPE_CHECKING:
    from kapudf_cli.plugins import Plugin


@click.command("list-handlers")
@click.argument("handlers", nargs=-1, metavar="[HANDLER]...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, for machines.")
def list_handlers(handlers: tuple[str, ...], *, as_json: bool) -> None:
    """List handlers with their edges and options: all that are installed, or those named.

    The installed ones are the entry points of the group kapudf.handlers. A HANDLER is what
    --handler of other commands takes: a name, package.module:Class, file.py:Class, or a
    script for InfluxData's Python agent. One that cannot be loaded is listed with the
    reason.
    """
    from kapudf_cli import plugins
    from kapudf_cli.commands.output import aligned

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
    cells = [("NAME", "WANTS", "PROVIDES", "OPTIONS", "FROM", "WHAT IT DOES")]
    cells += [
        (
            row["name"],
            row["wants"] or "-",
            row["provides"] or "-",
            " ".join(row["options"] or ()) or "-",
            f"{row['distribution']} {row['version']} ({row['target']})"
            if row["distribution"]
            else row["target"],
            f"broken: {row['error']}" if row["error"] else row["summary"],
        )
        for row in rows
    ]
    for line in aligned(cells):
        say(line)


def _describe(plugin: Plugin, *, ambiguous: bool) -> dict[str, Any]:
    from kapudf_cli.client import target
    from kapudf_cli.errors import KapudfError
    from kapudf_cli.tickscript import snippets

    row: dict[str, Any] = {
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
    row["options"] = snippets.signatures(info)
    if ambiguous:
        row["error"] = f"another distribution also provides '{plugin.name}'; uninstall one"
    return row
