"""`kapudf exec`: a handler as a process UDF, which Kapacitor starts by itself."""

from __future__ import annotations

import faulthandler
import os
import stat
import sys
from typing import Any

import click

from kapudf_cli.commands import settings


@click.command("exec")
@settings.setting("--handler", metavar="HANDLER", required=True, help=settings.HANDLER_HELP)
@settings.max_frame_bytes
@settings.linger_ms
@settings.on_error
@settings.busy_limit
@settings.grace_period
@settings.log_format
@settings.log_level
def execute(handler: str, **flags: Any) -> None:
    """Run a handler as a process UDF, on stdin and stdout.

    Kapacitor starts it: set prog and args in kapacitor.conf. Only the protocol goes to
    stdout. The log, everything that the handler prints, and the stack of a crash of the
    interpreter go to stderr, which Kapacitor copies into its own log.

    At the end of input, or on SIGINT or SIGTERM, it processes what has arrived, flushes
    the handler and exits with 0. If the handler fails, it exits with 1.
    """
    from kapudf_cli import plugins
    from kapudf_cli.system import logs
    from kapudf_cli.worker.connections import Function
    from kapudf_cli.worker.loading import load_handler
    from kapudf_cli.worker.stdio import StdioServer, take_over_stdio

    _refuse_what_is_no_kapacitor()
    plugin = plugins.find(handler)
    given = {name: value for name, value in flags.items() if value is not None}
    # It has no socket, and no worker could take over what Kapacitor starts by itself.
    given |= {"handler": handler, "socket": "stdio", "workers": 0}
    chosen = settings.combined({}, given, source="command line")
    (of_function,) = chosen.functions.values()
    stream = take_over_stdio()
    logs.configure(chosen.log_format, chosen.log_level)
    faulthandler.enable(logs.crash_descriptor())
    log = logs.get_logger()
    with logs.prints_logged():
        loaded = load_handler(handler, function=plugin.name, log=log)
        server = StdioServer(
            Function(plugin.name, loaded, of_function),
            stream,
            grace_period_s=chosen.grace_period_s,
            log=log,
        )
        status = server.run()
    # Kapacitor waits for this process to exit, and must not wait for a handler that hangs.
    logs.exit_despite_threads(status)
    click.get_current_context().exit(status)


def _refuse_what_is_no_kapacitor() -> None:
    if sys.stdin.isatty() or sys.stdout.isatty():
        raise click.UsageError(
            "exec speaks Kapacitor's protocol on stdin and stdout, and this is a terminal; have "
            "Kapacitor start it (prog and args in kapacitor.conf), or try it with "
            "kapudf check --exec 'kapudf exec --handler NAME'"
        )
    responses, log = os.fstat(1), os.fstat(2)
    if os.path.samestat(responses, log) and not stat.S_ISCHR(log.st_mode):
        raise click.UsageError(
            "stdout and stderr are one and the same, so the log would get between the frames; "
            "send stderr elsewhere, say 2>/dev/null"
        )
