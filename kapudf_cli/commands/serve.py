"""`kapudf serve`: handlers on their sockets, until a signal."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kapudf_cli.commands.settings import checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import Settings


@click.command()
@click.option(
    "--socket",
    metavar="PATH",
    envvar="KAPUDF_SOCKET",
    show_envvar=True,
    callback=checked("socket", of_function=True),
    help="Unix socket to listen on.",
)
@click.option(
    "--handler",
    metavar="HANDLER",
    envvar="KAPUDF_HANDLER",
    show_envvar=True,
    callback=checked("handler", of_function=True),
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
    callback=checked("socket_mode", of_function=True),
    help="Permissions of the socket, in octal.  [default: 0660]",
)
@click.option(
    "--socket-group",
    metavar="GROUP",
    envvar="KAPUDF_SOCKET_GROUP",
    show_envvar=True,
    callback=checked("socket_group", of_function=True),
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
    "--workers",
    metavar="N",
    type=int,
    envvar="KAPUDF_WORKERS",
    show_envvar=True,
    callback=checked("workers", of_function=True),
    help="Worker processes of each function; 0 serves all in this one.  [default: 1]",
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip", "restart"]),
    envvar="KAPUDF_ON_ERROR",
    show_envvar=True,
    help="What an exception of a handler over data does: fail the task; skip the point or batch; "
    "that, and restart the handler with its state.  [default: fail]",
)
@click.option(
    "--snapshot-interval",
    "snapshot_interval_s",
    metavar="SECONDS",
    type=float,
    envvar="KAPUDF_SNAPSHOT_INTERVAL",
    show_envvar=True,
    callback=checked("snapshot_interval_s", of_function=True),
    help="How long input is kept at most before a snapshot takes its place.  [default: 10]",
)
@click.option(
    "--journal-mb",
    metavar="MB",
    type=float,
    envvar="KAPUDF_JOURNAL_MB",
    show_envvar=True,
    callback=checked("journal_mb", of_function=True),
    help="How much input of a connection is kept before that.  [default: 32]",
)
@click.option(
    "--busy-limit",
    "busy_limit_s",
    metavar="SECONDS",
    type=float,
    envvar="KAPUDF_BUSY_LIMIT",
    show_envvar=True,
    callback=checked("busy_limit_s", of_function=True),
    help="How long one call of a handler may take before its worker is replaced.  [default: 300]",
)
@click.option(
    "--max-points",
    metavar="N",
    type=int,
    envvar="KAPUDF_MAX_POINTS",
    show_envvar=True,
    callback=checked("max_points", of_function=True),
    help="Replace a worker after so many points.  [default: never]",
)
@click.option(
    "--max-rss-mb",
    metavar="MB",
    type=float,
    envvar="KAPUDF_MAX_RSS_MB",
    show_envvar=True,
    callback=checked("max_rss_mb", of_function=True),
    help="Replace a worker that has so much memory.  [default: never]",
)
@click.option(
    "--reload",
    "watches_code",
    is_flag=True,
    help="Reload whenever the handler's code changes; for development, needs kapudf[reload].",
)
@click.option(
    "--grace-period",
    "grace_period_s",
    metavar="SECONDS",
    type=float,
    envvar="KAPUDF_GRACE_PERIOD",
    show_envvar=True,
    callback=checked("grace_period_s", of_function=False),
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
def serve(config_file: Path | None, *, watches_code: bool, **flags: object) -> None:
    """Serve handlers to Kapacitor on Unix sockets.

    Either --socket and --handler name one function, or --config names a file
    with one or more. Flags beat the environment, which beats the file.

    SIGINT or SIGTERM: connections process what has arrived, handlers flush, the
    socket is removed, exit 0. A second signal ends at once with 1. SIGHUP: the
    configuration and the handlers' code are loaded anew, and no task notices.
    """
    from kapudf_cli import logs
    from kapudf_cli.errors import PluginError
    from kapudf_cli.serving.limits import raise_descriptor_limit

    given = {name: value for name, value in flags.items() if value is not None}
    if config_file is None and not {"socket", "handler"} <= given.keys():
        raise click.UsageError("name --socket and --handler, or a --config file")
    settings = _settings(config_file, given)
    logs.configure(settings.log_format, settings.log_level)
    log = logs.get_logger()
    if settings.in_one_process and watches_code:
        raise click.UsageError("--reload needs workers; leave --workers 0 out")
    raise_descriptor_limit()
    try:
        if settings.in_one_process:
            status = _serve_in_one_process(settings, log)
        else:
            status = _serve_by_workers(
                settings, lambda: _settings(config_file, given), log, watches_code=watches_code
            )
    except PluginError as error:
        if config_file is not None and error.function is not None:
            error.add_note(f"functions.{error.function}.handler in {config_file}")
        raise
    if settings.in_one_process and threading.active_count() > 1:
        # A handler hangs, or started threads and left them. The interpreter would
        # wait for those, perhaps for ever, and the grace period is over.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    click.get_current_context().exit(status)


def _settings(config_file: Path | None, given: dict[str, object]) -> Settings:
    """Return the settings of the file, the environment and the flags."""
    from kapudf_cli import config

    source = str(config_file) if config_file else "command line"
    top = {name: given[name] for name in given if name in config.Settings.__struct_fields__}
    raw = config.overlay(
        config.read(config_file) if config_file else {},
        top=top,
        function={name: given[name] for name in given if name not in top},
        source=source,
    )
    return config.check(raw, source=source)


def _serve_in_one_process(settings: Settings, log: BoundLogger) -> int:
    from kapudf_cli.serving.connections import Function
    from kapudf_cli.serving.loading import load_handler
    from kapudf_cli.serving.server import Server
    from kapudf_cli.serving.signals import SignalQueue
    from kapudf_cli.serving.socket_file import SocketFile

    # A signal that comes while handlers are loaded is dealt with as soon as they are.
    with SignalQueue((signal.SIGINT, signal.SIGTERM)) as signals, contextlib.ExitStack() as undo:
        functions = [
            Function(name, load_handler(each.handler, function=name, log=log), each)
            for name, each in settings.functions.items()
        ]
        sockets = []
        for function in functions:
            each = function.settings
            socket = SocketFile.bind(
                each.socket,
                mode=each.mode,
                group=each.socket_group,
                remove_stale=each.remove_stale,
            )
            undo.callback(socket.release)
            sockets.append(socket)
        undo.pop_all()
        server = Server(
            list(zip(functions, sockets, strict=True)),
            grace_period_s=settings.grace_period_s,
            log=log,
        )
        return server.run(signals)


def _serve_by_workers(
    settings: Settings,
    reload_settings: Callable[[], Settings],
    log: BoundLogger,
    *,
    watches_code: bool,
) -> int:
    from kapudf_cli import log_writer
    from kapudf_cli.serving.signals import SignalQueue
    from kapudf_cli.serving.supervisor import Supervisor

    # A reader of the log that stops must hold up no heartbeat.
    log_writer.install()
    signals = SignalQueue((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    with signals, contextlib.ExitStack() as stack:
        watch = None
        if watches_code:
            from kapudf_cli.serving.code_watch import CodeWatch

            # Workers know compiled code by the second and the size of its source, and
            # whoever tries things out may save twice in one.
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            watch = stack.enter_context(CodeWatch(lambda: signals.put(signal.SIGHUP), log))
        return Supervisor(settings, log=log, code_watch=watch).run(signals, reload_settings)
