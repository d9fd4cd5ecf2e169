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

    Kapacitor starts it: name it as prog and args in kapacitor.conf. Nothing but the
    protocol goes to stdout; the log, and whatever the handler prints, goes to stderr,
    which Kapacitor takes into its own log. A crash of the interpreter leaves its stack there.

    End of input, SIGINT or SIGTERM: what has arrived is processed, the handler
    flushes, exit 0. A handler that fails is exit 1.
    """
    from kapudf_cli import logs, plugins
    from kapudf_cli.serving.connections import Function
    from kapudf_cli.serving.loading import load_handler
    from kapudf_cli.serving.stdio import StdioServer, take_over_stdio

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
