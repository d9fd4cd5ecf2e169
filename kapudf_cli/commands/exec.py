"""`kapudf exec`: run a handler as a process UDF, which Kapacitor starts."""

from __future__ import annotations

import faulthandler
import os
import stat
import sys
from typing import Any

import click

from kapudf_cli.commands import options


@click.command("exec")
@options.setting(
    "--handler",
    metavar="HANDLER",
    type=options.HANDLER,
    required=True,
    help=options.HANDLER_HELP,
)
@options.max_frame_bytes
@options.linger_ms
@options.on_error
@options.concurrency
@options.call_timeout
@options.busy_limit
@options.grace_period
@options.log_format
@options.log_level
def execute(handler: str, **flags: Any) -> None:
    """Run a handler as a process UDF, on stdin and stdout.

    Kapacitor starts this process: set prog and args in kapacitor.conf. Only protocol
    messages go to stdout. The log, the handler's prints, and stack traces of an
    interpreter crash go to stderr, which Kapacitor copies into its own log.

    At the end of input, or on SIGINT or SIGTERM, it processes the input that has arrived,
    flushes the handler and exits with 0. If the handler fails, it exits with 1.
    """
    from kapudf_cli import plugins
    from kapudf_cli.system import logs
    from kapudf_cli.worker.connections import Function
    from kapudf_cli.worker.loading import load_handler
    from kapudf_cli.worker.server import StdioServer, take_over_stdio

    _check_standard_streams()
    plugin = plugins.find(handler)
    given = {name: value for name, value in flags.items() if value is not None}
    # No socket, and no workers: Kapacitor owns this process and its pipes.
    given |= {"handler": handler, "socket": "stdio", "workers": 0}
    chosen = options.combined({}, given, source="command line")
    (of_function,) = chosen.functions.values()
    stream = take_over_stdio()
    logs.configure(chosen.log_format, chosen.log_level)
    faulthandler.enable(logs.crash_descriptor())
    log = logs.get_logger()
    with logs.prints_logged():
        loaded = load_handler(of_function, function=plugin.name, log=log)
        server = StdioServer(
            Function(plugin.name, loaded, of_function),
            stream,
            grace_period_s=chosen.grace_period_s,
            log=log,
        )
        status = server.run()
    # Kapacitor waits for this process to exit: do not wait for threads of the handler.
    logs.exit_despite_threads(status)
    click.get_current_context().exit(status)


def _check_standard_streams() -> None:
    """Refuse a terminal on stdin or stdout, and a stdout that is also stderr."""
    if sys.stdin.isatty() or sys.stdout.isatty():
        raise click.UsageError(
            "exec speaks Kapacitor's protocol on stdin and stdout, and this is a terminal; have "
            "Kapacitor start it (prog and args in kapacitor.conf), or try it with "
            "kapudf check --exec 'kapudf exec --handler NAME'"
        )
    responses, log = os.fstat(1), os.fstat(2)
    if os.path.samestat(responses, log) and not stat.S_ISCHR(log.st_mode):
        raise click.UsageError(
            "stdout and stderr are the same file, so log lines would corrupt the frames; "
            "redirect stderr, for example with 2>/dev/null"
        )
