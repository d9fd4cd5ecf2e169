"""`kapudf probe`: ask a running UDF for its edges and options, as Kapacitor does."""

from __future__ import annotations

from pathlib import Path

import click

from kapudf_cli.commands import control, options
from kapudf_cli.commands.output import say, say_json


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
    for each in control.sockets(path, file):
        if file is not None and not as_json:
            say(f"socket      {each}")
        _probe(each, timeout_s, as_json=as_json)


def _probe(path: str, timeout_s: float, *, as_json: bool) -> None:
    from kapudf_cli.client import driver
    from kapudf_cli.tickscript import snippets

    answer = driver.probe(path, timeout_s=timeout_s)
    info = answer.info
    call = snippets.snippet(Path(path).stem, info)
    facts = {
        "wants": snippets.edge_name(info.wants),
        "provides": snippets.edge_name(info.provides),
        "options": snippets.signatures(info),
        "tickscript": call,
        "round_trip_s": round(answer.round_trip_s, 6),
    }
    if as_json:
        say_json(facts)
        return
    say(f"wants       {facts['wants']}")
    say(f"provides    {facts['provides']}")
    say(f"options     {' '.join(snippets.signatures(info)) or 'none'}")
    say(f"TICKscript  {call}")
    say(f"round trip  {answer.round_trip_s * 1000:.2f} ms")
