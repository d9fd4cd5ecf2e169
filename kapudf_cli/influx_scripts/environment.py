"""What a script finds in a process of kapudf: modules, signals and files.

The process is not the script's own, so some calls have no effect in a script's main part: those
that set signal handlers, and those that remove the socket that kapudf serves, or set its mode.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import os
import signal
import stat
import sys
import threading
import types
from typing import TYPE_CHECKING, Any, Final

from kapudf_cli.influx_scripts.leniency import warn_once
from kapudf_cli.influx_scripts.main_module import MAIN, ScriptThread
from kapudf_cli.influx_scripts.recognition import AGENT, MESSAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

#: The paths at which scripts serve sockets by themselves.
SERVED_PATHS: Final[set[str]] = set()


@functools.cache
def prepare() -> None:
    """Make this process fit for scripts; once."""
    MAIN.real = sys.modules["__main__"]
    sys.modules["__main__"] = MAIN
    signal.signal = _in_scripts(
        signal.signal, lambda *_: True, "it sets signal handlers, which have no effect"
    )
    text = "it removes a socket or sets its permissions, which has no effect: kapudf serves its own"
    for name in ("remove", "unlink", "chmod", "chown"):
        setattr(os, name, _in_scripts(getattr(os, name), _is_socket, text))


def _in_scripts(
    function: Callable[..., Any], applies: Callable[..., bool], text: str
) -> Callable[..., Any]:
    """Return a function that, in a script's main part, only warns where `applies` is true."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        thread = threading.current_thread()
        if isinstance(thread, ScriptThread) and applies(*args, **kwargs):
            warn_once(text)
            return None
        return function(*args, **kwargs)

    return call


def _is_socket(path: Any, *_: Any, **__: Any) -> bool:
    if path in SERVED_PATHS:
        return True
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    return False


def other_package(folder: Path) -> str | None:
    """Return where the package `kapacitor` is for a script in `folder`; None if it is kapudf's."""
    spec = importlib.machinery.PathFinder.find_spec("kapacitor", [str(folder), *sys.path])
    for found in (spec and spec.submodule_search_locations) or ():
        try:
            with open(os.path.join(found, "udf", "agent.py"), encoding="utf-8") as agent:
                return None if "kapudf" in agent.read() else found
        except OSError:
            return found
    return None


def provide(packages: Iterable[str], agent: types.ModuleType, messages: types.ModuleType) -> None:
    """Have imports of the agent and the messages, from any of these packages, find these modules.

    Also where a package of that name has others.
    """
    for package in packages:
        prefix = f"{package}." if package else ""
        if package:
            _import_or_make(package)
        for name, module in ((AGENT, agent), (MESSAGES, messages)):
            sys.modules[f"{prefix}{name}"] = module
            if package:
                setattr(sys.modules[package], name, module)


def _import_or_make(package: str) -> None:
    parent, _, name = package.rpartition(".")
    if parent:
        _import_or_make(parent)
    try:
        importlib.import_module(package)
    except Exception:  # noqa: BLE001 - another package of that name may not fit this Python
        made = types.ModuleType(package)
        made.__path__ = []
        sys.modules[package] = made
        if parent:
            setattr(sys.modules[parent], name, made)
