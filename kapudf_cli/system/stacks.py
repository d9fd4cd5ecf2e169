"""Where code is or was: the calls of a thread, and the frames of an exception."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import traceback
from typing import TYPE_CHECKING, Final

from kapudf_cli.system import source_code

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

#: More calls than this do not fit into a line of a log.
_CALLS: Final = 5
#: The modules that import others, whose frames say nothing about the code that is imported.
_IMPORTERS: Final = (importlib.__file__, source_code.__file__)
#: Where the code of kapudf itself is.
_KAPUDF: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def innermost_calls(thread: threading.Thread) -> str | None:
    """Return the innermost calls of a thread, the innermost first; None if it has ended."""
    return _in_one_line(_stack_of(thread))


def plugin_calls(thread: threading.Thread) -> str | None:
    """Return the innermost calls that kapudf's caller made through a plugin; None if none runs."""
    return _in_one_line(_plugin_frames(_stack_of(thread)))


def plugin_traceback(error: BaseException) -> str:
    """Return the frames of an exception that are the plugin's, or of what the plugin called.

    In the form of a Python traceback, without its first and last line; "" if there are none. Files
    in the working folder have relative paths. The line of a SyntaxError counts as a frame.
    """
    trace = traceback.extract_tb(error.__traceback__)
    frames = _plugin_frames([frame for frame in trace if not _is_importer(frame)])
    here = os.path.join(os.getcwd(), "")
    for frame in frames:
        frame.filename = frame.filename.removeprefix(here)
    lines = traceback.format_list(frames)
    if isinstance(error, SyntaxError):
        *place, _ = traceback.format_exception_only(error)
        lines += [line.replace(f'"{here}', '"', 1) for line in place]
    return "".join(lines).rstrip("\n")


def _stack_of(thread: threading.Thread) -> Sequence[traceback.FrameSummary]:
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the documented way
    return () if frame is None else traceback.extract_stack(frame)


def _plugin_frames(
    frames: Sequence[traceback.FrameSummary],
) -> list[traceback.FrameSummary]:
    """Return the frames from the first call out of kapudf on, outermost first."""
    inner = itertools.dropwhile(lambda frame: not _is_kapudf(frame), frames)
    return [*itertools.dropwhile(_is_kapudf, inner)]


def _is_importer(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith("<frozen importlib") or frame.filename in _IMPORTERS


def _is_kapudf(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_KAPUDF)


def _in_one_line(frames: Sequence[traceback.FrameSummary]) -> str | None:
    calls = itertools.islice(reversed(frames), _CALLS)
    return " < ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in calls) or None
