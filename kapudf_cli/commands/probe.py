"""`kapudf probe`: ask a running UDF for its edges and options, as Kapacitor does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kapudf_cli.commands import control, options
from kapudf_cli.commands.output import say, say_json

if TYPE_CHECKING:
    from kapudf_cli.commands.schemas import Probe


@click.command(short_help="Ask a running UDF for its edges and options.")
@options.socket_path("Unix socket of the UDF.", required=False)
@options.config_file("file", "Ask all functions of this configuration file instead.")
@options.timeout("How long connecting and answering may take.")
@options.as_json
def probe(path: str | None, file: Path | None, timeout_s: float, *, as_json: bool) -> None:
    """Ask a UDF for its edges and options, as Kapacitor does when it starts.

    The UDF may be in any language. Exits with 0 if the answer is valid and with 1 if
    not, so it can serve as a health check.
    """
    found = []
    paths, has_file = control.sockets(path, file)
    for each in paths:
        facts = _probe(each, timeout_s)
        found.append(facts)
        if not as_json:
            _show(facts, with_socket=has_file)
    if as_json:
        say_json(found if has_file else found[0])


def _probe(path: str, timeout_s: float) -> Probe:
    from kapudf_cli.client import driver
    from kapudf_cli.commands.udf_options import options_of
    from kapudf_cli.tickscript import snippets

    answer = driver.probe(path, timeout_s=timeout_s)
    return {
        "socket": path,
        "wants": snippets.edge_name(answer.info.wants),
        "provides": snippets.edge_name(answer.info.provides),
        "options": options_of(answer.info),
        "tickscript": snippets.snippet(Path(path).stem, answer.info),
        "round_trip_s": round(answer.round_trip_s, 6),
    }


def _show(facts: Probe, *, with_socket: bool) -> None:
    calls = [f"{each['name']}({', '.join(each['types'])})" for each in facts["options"]]
    if with_socket:
        say(f"socket      {facts['socket']}")
    say(f"wants       {facts['wants']}")
    say(f"provides    {facts['provides']}")
    say(f"options     {' '.join(calls) or 'none'}")
    say(f"TICKscript  {facts['tickscript']}")
    say(f"round trip  {facts['round_trip_s'] * 1000:.2f} ms")
