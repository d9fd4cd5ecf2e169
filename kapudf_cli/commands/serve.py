"""`kapudf serve`: handlers on their sockets, until a signal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from pathlib import Path

import click

from kapudf_cli.commands.settings import checked as _checked


@click.command()
@click.option(
    "--socket",
    metavar="PATH",
    envvar="KAPUDF_SOCKET",
    show_envvar=True,
    callback=_checked("socket", of_function=True),
    help="Unix socket to listen on.",
)
@click.option(
    "--handler",
    metavar="HANDLER",
    envvar="KAPUDF_HANDLER",
    show_envvar=True,
    callback=_checked("handler", of_function=True),
    help="Installed handler by name, package.module:Class, or file.py:Class.",
)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    envvar="KAPUDF_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="YAML file with one or more functions.",
)
@click.option(
    "--socket-mode",
    metavar="MODE",
    envvar="KAPUDF_SOCKET_MODE",
    show_envvar=True,
    callback=_checked("socket_mode", of_function=True),
    help="Permissions of the socket, in octal.  [default: 0660]",
)
@click.option(
    "--socket-group",
    metavar="GROUP",
    envvar="KAPUDF_SOCKET_GROUP",
    show_envvar=True,
    callback=_checked("socket_group", of_function=True),
    help="Group of the socket.  [default: that of the process]",
)
@click.option(
    "--remove-stale/--keep-stale",
    default=None,
    envvar="KAPUDF_REMOVE_STALE",
    show_envvar=True,
    help="Remove a socket left over at the path that nobody serves.  [default: keep]",
)
@click.option(
    "--max-frame-bytes",
    metavar="N",
    type=int,
    envvar="KAPUDF_MAX_FRAME_BYTES",
    show_envvar=True,
    callback=_checked("max_frame_bytes", of_function=True),
    help="Longest message taken or sent.  [default: 67108864]",
)
@click.option(
    "--linger-ms",
    metavar="MS",
    type=float,
    envvar="KAPUDF_LINGER_MS",
    show_envvar=True,
    callback=_checked("linger_ms", of_function=True),
    help="Longest pause before a read under load, so that points gather.  [default: 0.5]",
)
@click.option(
    "--grace-period",
    "grace_period_s",
    metavar="SECONDS",
    type=float,
    envvar="KAPUDF_GRACE_PERIOD",
    show_envvar=True,
    callback=_checked("grace_period_s", of_function=False),
    help="How long connections may take to finish after a signal.  [default: 10]",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "console", "json"]),
    envvar="KAPUDF_LOG_FORMAT",
    show_envvar=True,
    help="auto: console on a terminal, JSON elsewhere.  [default: auto]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    envvar="KAPUDF_LOG_LEVEL",
    show_envvar=True,
    help="Least important event shown.  [default: info]",
)
def serve(config_file: Path | None, **flags: object) -> None:
    """Serve handlers to Kapacitor on Unix sockets.

    Either --socket and --handler name one function, or --config names a file
    with one or more. Flags beat the environment, which beats the file.

    SIGINT or SIGTERM: connections process what has arrived, handlers flush, the
    socket is removed, exit 0. A second signal ends at once with 1.
    """
    from kapudf_cli import config, logs, plugins
    from kapudf_cli.errors import HandlerImportError
    from kapudf_cli.serving.server import Function, Server
    from kapudf_cli.serving.socket_file import SocketFile

    given = {name: value for name, value in flags.items() if value is not None}
    if config_file is None and not {"socket", "handler"} <= given.keys():
        raise click.UsageError("name --socket and --handler, or a --config file")
    source = str(config_file) if config_file else "command line"
    top = {name: given[name] for name in given if name in config.Settings.__struct_fields__}
    raw = config.overlay(
        config.read(config_file) if config_file else {},
        top=top,
        function={name: given[name] for name in given if name not in top},
        source=source,
    )
    settings = config.check(raw, source=source)
    logs.configure(settings.log_format, settings.log_level)
    log = logs.get_logger()

    with contextlib.ExitStack() as undo:
        functions = []
        for name, function in settings.functions.items():
            try:
                handler = plugins.find(function.handler).load()
            except HandlerImportError as error:
                log.debug("handler cannot be imported", function=name, exc_info=error.cause)
                error.add_note("the traceback is shown with --log-level debug")
                raise
            socket = SocketFile.bind(
                function.socket,
                mode=function.mode,
                group=function.socket_group,
                remove_stale=function.remove_stale,
            )
            undo.callback(socket.release)
            functions.append(
                Function(name, handler, socket, function.max_frame_bytes, function.linger_ms)
            )
        undo.pop_all()
    status = Server(functions, grace_period_s=settings.grace_period_s, log=log).run()
    if threading.active_count() > 1:
        # A handler hangs, or started threads and left them. The interpreter would
        # wait for those, perhaps for ever, and the grace period is over.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    click.get_current_context().exit(status)
