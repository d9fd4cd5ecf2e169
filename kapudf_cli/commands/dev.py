"""`kapudf dev`: replay a recording, and run tests, whenever a handler's code is saved."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kapudf_cli.commands import options
from kapudf_cli.commands.output import say, say_styled
from kapudf_cli.commands.replay import replay
from kapudf_cli.system.terminal_text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kapudf_cli.tools.dev import Saves

#: The options of `kapudf replay` that make no sense here, or that this command sets itself.
_NOT_PASSED: Final = frozenset(
    {"file", "socket", "command", "handler", "shape", "as_json", "diff", "snapshot_to", "report"}
)
_PASSED: Final = [each for each in replay.params if each.name not in _NOT_PASSED]
#: How many saved files and how many differing points are named.
_SHOWN_FILES: Final = 3
_SHOWN_POINTS: Final = 10
#: Where the options for `kapudf replay` are kept, in the `meta` of the click context.
_RAW: Final = "kapudf.dev"


class _Dev(click.Command):
    """Keeps the options for `kapudf replay` as they were written."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments."""
        raw, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_RAW] = [*_written(raw)]
        try:
            return super().parse_args(ctx, args)
        except click.MissingParameter as error:
            if not raw.get("tests"):
                raise
            problem = f"--test took '{raw['tests']}' as its PATH; write HANDLER before the options"
            raise click.UsageError(problem, ctx) from error


def _written(raw: dict[str, Any]) -> Iterator[str]:
    """Yield the options for `kapudf replay` among the parsed arguments."""
    for option in _PASSED:
        value = raw.get(option.name or "")
        if value is True:
            yield option.opts[0]
        elif value is not None:
            for each in value if isinstance(value, list) else [value]:
                yield f"{option.opts[0]}={each}"


def _refuse_stdin(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    del ctx, param
    if value == "-":
        raise click.BadParameter("standard input can be read only once; write it to a file")
    return value


@click.command(
    cls=_Dev,
    short_help="Replay a recording whenever a handler's code is saved.",
    params=[
        click.Argument(["handler"], type=options.HANDLER),
        click.Option(
            ["--replay", "recording"],
            metavar="RECORDING",
            type=next(each.type for each in replay.params if each.name == "file"),
            callback=_refuse_stdin,
            help="Replay this file through the handler, and show what changed.",
        ),
        click.Option(
            ["--test", "tests"],
            metavar="[PATH]",
            is_flag=False,
            flag_value="",
            help="Run pytest on this path.  [default: test_FILE.py beside the file, or in a "
            "folder tests beside it or above; else the folder tests of the project]",
        ),
        *_PASSED,
    ],
)
def dev(handler: str, recording: str | None, tests: str | None, **passed: object) -> None:
    """Replay a recording, and run tests, whenever the code of a handler is saved.

    HANDLER is file.py:Class, package.module:Class, the name of an installed handler, or a
    script for InfluxData's Python agent. Each run is `kapudf replay RECORDING --handler
    HANDLER --diff` in a new process, with the options that are given here. It ends with
    the points that differ from the last complete run. A run that is still going on when a
    file is saved is ended.

    Saves of the recording and of Python files count: those in the folders of the handler,
    of the modules that it imports, and of the tests. Ctrl-C ends the command, with status 0.
    """
    from kapudf_cli.tools.dev import Saves, python_files_below

    del passed
    if recording is None and tests is None:
        raise click.UsageError("give --replay RECORDING, --test, or both")
    file = _file_of(handler)
    saves = Saves()
    if file is not None:
        saves.follow(file)
    commands: list[tuple[list[str], bool]] = []
    if tests is not None:
        path = tests or _tests_of(file)
        if importlib.util.find_spec("pytest") is None:
            raise click.UsageError(f"--test needs pytest: {sys.executable} -m pip install pytest")
        # Not a folder itself: it changes when Python writes compiled code into it.
        files = python_files_below(path) if os.path.isdir(path) else [path.partition("::")[0]]
        for each in files:
            saves.follow(each)
        commands.append(([sys.executable, "-m", "pytest", "-q", path], False))
    if recording is not None:
        saves.follow(recording)
        raw = click.get_current_context().meta[_RAW]
        # -P: no file beside the handler, such as statistics.py, replaces a module of Python.
        kapudf = [sys.executable, "-P", "-m", "kapudf_cli"]
        replays = [*kapudf, "replay", recording, *raw, "--diff", f"--handler={handler}"]
        commands.insert(0, (replays, True))
    try:
        _repeat(commands, saves)
    except KeyboardInterrupt:
        say(err=True)


def _file_of(handler: str) -> str | None:
    """Return the file of a handler's module, None if it is not a file; nothing is imported.

    Raises:
        PluginError: there is no such file, or no such handler.
    """
    from kapudf_cli import plugins
    from kapudf_cli.plugin_errors import HandlerImportError

    try:
        module = plugins.find(handler).module
    except HandlerImportError:
        # A script with a syntax error: the first run shows it.
        module = handler.partition(" ")[0]
    if module.endswith(".py"):
        return module
    package, *names = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not names:
        return spec.origin if spec else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *names)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return str(file)
    return None


def _tests_of(file: str | None) -> str:
    """Return the file with the tests of a handler's file, or the folder of the project's tests.

    Raises:
        UsageError: there is none.
    """
    if file is None:
        raise click.UsageError("name the tests of this handler: --test PATH")
    path = Path(file).resolve()
    name = f"test_{path.stem}.py"
    places = [path.parent, *(each / "tests" for each in path.parents)]
    for place in places:
        if (place / name).is_file():
            return os.path.relpath(place / name)
    project = next((each for each in path.parents if (each / "pyproject.toml").exists()), None)
    if project is not None and (project / "tests").is_dir():
        return os.path.relpath(project / "tests")
    raise click.UsageError(
        f"there is no {name} in {path.parent}, nor in a folder tests there or above; name the "
        "tests: --test PATH"
    )


def _repeat(commands: Sequence[tuple[Sequence[str], bool]], saves: Saves) -> None:
    """Run all commands, and again after each save, until Ctrl-C.

    Args:
        commands: each with whether it reports; see `run`.
        saves: the followed files.
    """
    from kapudf_cli.client.command_target import how_it_ended
    from kapudf_cli.tools.dev import run

    complete: list[str] | None = None
    saved: list[str] = []
    for number in itertools.count(1):
        say_styled([], clears=number > 1)
        shown = ", ".join(saved[:_SHOWN_FILES]) + (", …" if len(saved) > _SHOWN_FILES else "")
        say(f"run {number}: {shown} saved" if saved else f"run {number}", err=True)
        for command, reports in commands:
            result = run(command, saves, reports=reports)
            if result.status is None:
                say("ended by a save", err=True)
                break
            if result.status < 0:
                say(f"the run {how_it_ended(result.status)}", err=True)
            if result.is_complete:
                if complete is not None:
                    _show_changes(complete, result.lines)
                complete = result.lines
        else:
            say("waiting for a save; Ctrl-C ends", err=True)
        saved = sorted(os.path.relpath(path) for path in saves.take())


def _show_changes(before: Sequence[str], now: Sequence[str]) -> None:
    """Print to stderr on which points two runs differ."""
    from kapudf_cli.tools.dev import MAX_LINES, differing

    points = [*differing(before, now)]
    what = f"{counted(len(points), 'point')} differ{'s' if len(points) == 1 else ''}"
    among = f" (of the first {MAX_LINES:,})" if len(now) == MAX_LINES else ""
    say(f"{what if points else 'no point differs'} from the last complete run{among}", err=True)
    for lines in points[:_SHOWN_POINTS]:
        for label, each in zip(("before", "now"), lines, strict=True):
            for line in each:
                say(f"  {label:6}  {line}", err=True)
    if len(points) > _SHOWN_POINTS:
        say("  …", err=True)
