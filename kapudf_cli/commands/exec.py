"""`kapudf exec`: a handler as a process UDF, which Kapacitor starts by itself."""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading
from typing import Any

import click

from kapudf_cli.commands.settings import checked


@click.command("exec")
@click.option(
    "--handler",
    metavar="HANDLER",
    required=True,
    envvar="KAPUDF_HANDLER",
    show_envvar=True,
    callback=checked("handler", of_function=True),
    help="Installed handler by name, package.module:Class, or file.py:Class.",
)
@click.option(
    "--max-frame-bytes",
    metavar="N",
    type=int,
    envvar="KAPUDF_MAX_FRAME_BYTES",
    show_envvar=True,
    callback=checked("max_frame_bytes", of_function=True),
    help="Longest message taken or sent.  [default: 67108864]",
)
@click.option(
    "--linger-ms",
    metavar="MS",
    type=float,
    envvar="KAPUDF_LINGER_MS",
    show_envvar=True,
    callback=checked("linger_ms", of_function=True),
    help="Longest pause before a read under load, so that points gather.  [default: 0.5]",
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip", "restart"]),
    envvar="KAPUDF_ON_ERROR",
    show_envvar=True,
    help="What an exception of the handler over data does, as for `kapudf serve`.  [default: fail]",
)
@click.option(
    "--grace-period",
    "grace_period_s",
    metavar="SECONDS",
    type=float,
    default=10.0,
    envvar="KAPUDF_GRACE_PERIOD",
    show_envvar=True,
    callback=checked("grace_period_s", of_function=False),
    help="How long the connection may take to finish after a signal.  [default: 10]",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "console", "json"]),
    default="auto",
    envvar="KAPUDF_LOG_FORMAT",
    show_envvar=True,
    help="auto: console on a terminal, JSON elsewhere.  [default: auto]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="KAPUDF_LOG_LEVEL",
    show_envvar=True,
    help="Least important event shown.  [default: info]",
)
def execute(
    handler: str, grace_period_s: float, log_format: str, log_level: str, **settings: Any
) -> None:
    """Run a handler as a process UDF, on stdin and stdout.

    Kapacitor starts it: name it as prog and args in kapacitor.conf. Nothing but the
    protocol goes to stdout; the log, and whatever the handler prints, goes to stderr,
    which Kapacitor takes into its own log.

    End of input, SIGINT or SIGTERM: what has arrived is processed, the handler
    flushes, exit 0. A handler that fails is exit 1.
    """
    from kapudf_cli import logs, plugins
    from kapudf_cli.config import FunctionSettings
    from kapudf_cli.serving.connections import Function
    from kapudf_cli.serving.loading import load_handler
    from kapudf_cli.serving.stdio import StdioServer, take_over_stdio

    _refuse_what_is_no_kapacitor()
    plugin = plugins.find(handler)
    stream = take_over_stdio()
    logs.configure(log_format, log_level)  # type: ignore[arg-type]  # click has checked both
    log = logs.get_logger()
    loaded = load_handler(handler, function=plugin.name, log=log)
    given = {name: value for name, value in settings.items() if value is not None}
    # It has no socket, and no worker could take over what Kapacitor starts by itself.
    function = Function(
        plugin.name, loaded, FunctionSettings(handler=handler, socket="-", workers=0, **given)
    )
    status = StdioServer(function, stream, grace_period_s=grace_period_s, log=log).run()
    if threading.active_count() > 1:
        # A handler hangs, or started threads and left them: Kapacitor waits for this
        # process to exit, and must not wait for those.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    click.get_current_context().exit(status)


def _refuse_what_is_no_kapacitor() -> None:
    if sys.stdin.isatty() or sys.stdout.isatty():
        raise click.UsageError(
            "this speaks Kapacitor's protocol on stdin and stdout, and here is a terminal; "
            "kapacitor.conf starts it as prog and args, and to try it there is "
            "kapudf check --exec 'kapudf exec --handler NAME'"
        )
    responses, log = os.fstat(1), os.fstat(2)
    if os.path.samestat(responses, log) and not stat.S_ISCHR(log.st_mode):
        raise click.UsageError(
            "stdout and stderr are one and the same, so the log would get between the frames; "
            "send stderr elsewhere, say 2>/dev/null"
        )
