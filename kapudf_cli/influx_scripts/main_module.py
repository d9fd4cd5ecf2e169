"""`__main__` for scripts: each run of a script has a module of its own."""

from __future__ import annotations

import sys
import threading
import types
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

#: The global variable of a script's module that refers to the thread which runs it.
_RUN: Final = "__kapudf_run__"


class ScriptThread(threading.Thread):
    """A thread that runs a part of a script.

    Attributes:
        module: the module in which it runs.
    """

    module: types.ModuleType


def begin_run(run: ScriptThread, path: Path) -> None:
    """Give a run of a script a module, as Python's own `__main__`."""
    run.module = types.ModuleType("__main__")
    run.module.__file__ = str(path)
    setattr(run.module, _RUN, run)
    MAIN.latest = run


def current_run() -> ScriptThread | None:
    """Return the run of the script whose code calls this, from any thread; else the latest run."""
    frame: types.FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way
    while frame is not None:
        run: ScriptThread | None = frame.f_globals.get(_RUN)
        if run is not None:
            return run
        frame = frame.f_back
    return MAIN.latest


class _Main(types.ModuleType):
    """`__main__`: the module of the script whose code asks for it.

    Each run of a script has a module of its own, and pickle looks up classes in `__main__`.
    """

    real: types.ModuleType | None = None
    latest: ScriptThread | None = None

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return vars(self._module())

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._module(), name)
        except AttributeError:
            # For code of other modules that needs the program's own.
            return getattr(self.real, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in {"real", "latest"}:
            object.__setattr__(self, name, value)
        else:
            setattr(self._module(), name, value)

    def _module(self) -> types.ModuleType:
        run = current_run()
        return (self.real or self) if run is None else run.module


#: Stands for `__main__` in a process that runs scripts.
MAIN: Final = _Main("__main__")
