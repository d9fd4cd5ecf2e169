"""`kapudf serve`: serve handlers on Unix sockets until a signal."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
from typing import TYPE_CHECKING, Any, Final

import click

from kapudf_cli.commands import options
from kapudf_cli.commands.output import say

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from structlog.stdlib import BoundLogger

    from kapudf_cli.config import Settings


#: These end, reload and upgrade.
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)


@click.command()
@options.setting("--socket", metavar="PATH", type=options.SOCKET, help="Unix socket to listen on.")
@options.setting("--handler", metavar="HANDLER", type=options.HANDLER, help=options.HANDLER_HELP)
@options.config_file("config_file", "YAML file with one or more functions.")
@options.setting(
    "--socket-mode",
    metavar="MODE",
    help="Permissions of the socket, in octal.  [default: 0660]",
)
@options.setting(
    "--socket-group",
    metavar="GROUP",
    help="Group of the socket, by name or number.  [default: that of the process]",
)
@options.setting(
    "--allow-users",
    metavar="USERS",
    type=options.names,
    help="Users who may connect, by name or number, separated by commas.  [default: all whom the "
    "socket's permissions allow]",
)
@options.setting(
    "--allow-groups",
    metavar="GROUPS",
    type=options.names,
    help="The same for groups; with both, a user or a group must match.",
)
@click.option(
    "--remove-stale/--keep-stale",
    default=None,
    envvar="KAPUDF_REMOVE_STALE",
    show_envvar=True,
    help="Remove a leftover socket that no process serves.  [default: keep]",
)
@options.max_frame_bytes
@options.linger_ms
@options.setting(
    "--workers",
    metavar="N",
    type=int,
    help="Worker processes per function; 0 serves everything in this process.  [default: 1]",
)
@options.setting(
    "--partitions",
    metavar="N",
    type=int,
    help="Processes per worker that share the groups of each task, for a handler that needs more "
    "than one processor.  [default: 1]",
)
@options.setting(
    "--engine",
    metavar="NAME",
    help="Where partitions run: as processes of this machine, or as actors of a Ray cluster (ray), "
    "which needs kapudf[ray].  [default: processes]",
)
@options.setting(
    "--ray-address",
    metavar="ADDRESS",
    help="The Ray cluster: auto or HOST:PORT if this machine is one of its nodes, otherwise "
    "ray://HOST:PORT of its client server.  [default: auto]",
)
@click.option(
    "--ray-fallback/--no-ray-fallback",
    default=None,
    envvar="KAPUDF_RAY_FALLBACK",
    show_envvar=True,
    help="Run partitions on this machine while Ray cannot be reached, instead of having tasks "
    "wait.  [default: no]",
)
@click.option(
    "--preload/--no-preload",
    default=None,
    envvar="KAPUDF_PRELOAD",
    show_envvar=True,
    help="Load the handler once, in a process that forks the workers: they share its memory, and "
    "start at once.  [default: no]",
)
@options.setting(
    "--standby",
    metavar="N",
    type=int,
    help="Spare workers per function, ready to replace one that dies.  [default: 0]",
)
@options.on_error
@options.concurrency
@options.call_timeout
@options.setting(
    "--snapshot-interval",
    "snapshot_interval_s",
    metavar="SECONDS",
    type=float,
    help="Longest time between two snapshots of a handler's state.  [default: 10]",
)
@options.setting(
    "--journal-mb",
    metavar="MB",
    type=float,
    help="How much input a connection's journal keeps between snapshots.  [default: 32]",
)
@options.busy_limit
@options.setting(
    "--max-points",
    metavar="N",
    type=int,
    help="Replace a worker after this many points.  [default: never]",
)
@options.setting(
    "--max-rss-mb",
    metavar="MB",
    type=float,
    help="Replace a worker that uses this much memory.  [default: never]",
)
@click.option(
    "--keeper/--no-keeper",
    "has_keeper",
    default=True,
    envvar="KAPUDF_KEEPER",
    show_envvar=True,
    help="Keep a small parent process, which starts the supervisor again if it dies, while tasks "
    "go on. systemd can do that itself.  [default: yes]",
)
@click.option(
    "--reload",
    "watches_code",
    is_flag=True,
    help="Reload when the handler's code changes; for development, needs kapudf[reload].",
)
@options.setting(
    "--metrics",
    scope="process",
    metavar="HOST:PORT",
    help="Serve metrics for Prometheus at this address, as 127.0.0.1:9464; needs "
    "kapudf[metrics].  [default: nowhere]",
)
@options.grace_period
@options.log_format
@options.log_level
def serve(
    config_file: Path | None, *, has_keeper: bool, watches_code: bool, **flags: object
) -> None:
    """Serve handlers to Kapacitor on Unix sockets.

    Serve one function with --socket and --handler, or several with --config. Flags
    override environment variables, which override the file.

    On SIGINT or SIGTERM, connections process the input that has arrived, handlers flush,
    the sockets are removed, and the exit status is 0. A second signal stops the process at
    once, with status 1. SIGHUP reloads the configuration and the handlers' code while
    tasks run, and SIGUSR2 replaces kapudf itself by the installed version, as `kapudf
    upgrade` does; without workers they have no effect.
    """
    from kapudf_cli.journal import kernel
    from kapudf_cli.plugin_errors import PluginError
    from kapudf_cli.system import keeping, logs
    from kapudf_cli.system.processes import raise_descriptor_limit

    given = {name: value for name, value in flags.items() if value is not None}
    if config_file is None and not {"socket", "handler"} <= given.keys():
        raise click.UsageError("give --socket and --handler, or a --config file")
    chosen = _settings(config_file, given)
    if keeping.CHECK_VARIABLE in os.environ:
        # It is an upgrade of a running kapudf that asks.
        from kapudf_cli.supervisor.upgrade import describe_version

        say(describe_version())
        return
    logs.configure(chosen.log_format, chosen.log_level)
    log = logs.get_logger()
    alone = chosen.in_one_process
    needs_workers = "--reload" if watches_code else "--metrics" if chosen.metrics else None
    if alone and needs_workers:
        raise click.UsageError(f"{needs_workers} needs workers; remove --workers 0")
    keeps = _is_kept(needs_keeper=has_keeper and not alone)
    raise_descriptor_limit()
    if not alone and not kernel.counts_reads():
        if needs_workers:
            problem = f"{needs_workers} needs workers, which this system lacks (needs Linux)"
            raise click.UsageError(problem)
        log.warning("this system lacks what workers need, serving in one process (needs Linux)")
        alone = True
    try:
        if alone:
            status = _serve_in_one_process(chosen, log)
        else:
            status = _serve_by_workers(
                chosen,
                lambda: _settings(config_file, given, again=True),
                log,
                keeps=keeps,
                watches_code=watches_code,
            )
    except PluginError as error:
        if config_file is not None and error.function is not None:
            error.add_note(f"functions.{error.function}.handler in {config_file}")
        raise
    logs.exit_despite_threads(status)
    click.get_current_context().exit(status)


def _is_kept(*, needs_keeper: bool) -> bool:
    """Return whether another process keeps the descriptors of this one; become a keeper first."""
    from kapudf_cli.system import keeping

    is_kept = keeping.is_kept()
    if needs_keeper and not is_kept:
        keeping.become_keeper()
    return is_kept


def _settings(config_file: Path | None, given: dict[str, Any], *, again: bool = False) -> Settings:
    """Return the settings of the file, the environment and the flags; see `config_file.read`."""
    from kapudf_cli.journal.journal import check_journals

    raw: dict[str, Any] = {}
    source = "command line"
    if config_file is not None:
        # Imported here because it loads PyYAML, which is not needed without a file.
        from kapudf_cli.config_file import read
        from kapudf_cli.system.processes import working_folder

        source = str(config_file)
        raw = read(working_folder() / config_file if again else config_file, again=again)
    chosen = options.combined(raw, given, source=source)
    if not chosen.in_one_process:
        check_journals(chosen, source=source)
    return chosen


def _serve_in_one_process(chosen: Settings, log: BoundLogger) -> int:
    from kapudf_cli.system import logs
    from kapudf_cli.system.signals import SignalQueue
    from kapudf_cli.system.socket_file import SocketFile
    from kapudf_cli.worker.connections import Function
    from kapudf_cli.worker.loading import load_handler
    from kapudf_cli.worker.server import Server

    # A signal that arrives while handlers load is handled once they are loaded.
    queue = SignalQueue(_SIGNALS)
    faulthandler.enable(logs.crash_descriptor())
    with queue as signals, contextlib.ExitStack() as undo, logs.prints_logged():
        functions = [
            Function(name, load_handler(each, function=name, log=log), each)
            for name, each in chosen.functions.items()
        ]
        sockets = []
        for function in functions:
            each = function.settings
            socket = SocketFile.bind(
                each.socket,
                mode=each.mode,
                group=each.group,
                remove_stale=each.remove_stale,
            )
            undo.callback(socket.release)
            socket.filter_peers(each.access)
            sockets.append(socket)
        undo.pop_all()
        server = Server(
            list(zip(functions, sockets, strict=True)),
            grace_period_s=chosen.grace_period_s,
            log=log,
        )
        return server.run(signals)


def _serve_by_workers(
    chosen: Settings,
    reload_settings: Callable[[], Settings],
    log: BoundLogger,
    *,
    keeps: bool,
    watches_code: bool,
) -> int:
    from kapudf_cli import config
    from kapudf_cli.supervisor.supervisor import Supervisor
    from kapudf_cli.system.descriptor_store import DescriptorStore
    from kapudf_cli.system.signals import SignalQueue

    signals = SignalQueue(_SIGNALS)
    with signals, contextlib.ExitStack() as stack:
        metrics = None
        if chosen.metrics is not None:
            from kapudf_cli.supervisor.metrics_server import MetricsServer

            address = config.metrics_address(chosen.metrics)
            metrics = stack.enter_context(MetricsServer(address, log))
        watch = None
        if watches_code:
            from kapudf_cli.supervisor.code_watch import CodeWatch

            watch = stack.enter_context(CodeWatch(lambda: signals.put(signal.SIGHUP), log))
        store = DescriptorStore(keeps=keeps, log=log)
        supervisor = Supervisor(
            chosen, reload_settings, store=store, log=log, code_watch=watch, metrics=metrics
        )
        return supervisor.run(signals)
