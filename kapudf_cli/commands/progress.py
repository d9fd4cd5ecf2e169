"""A progress bar on stderr, for a replay that takes longer than a second."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Final

import click

from kapudf_cli.commands.output import show_live

if TYPE_CHECKING:
    from collections.abc import Iterator

    from click._termui_impl import ProgressBar

    from kapudf_cli.client.session import Counts
    from kapudf_cli.tools.recordings import Recording

_DELAY_S: Final = 1.0
_EVERY_S: Final = 0.2


@contextlib.contextmanager
def progress(recording: Recording, counts: Counts) -> Iterator[None]:
    """Show how much of a recording has been read, while the block runs.

    Nothing is shown unless stderr is a terminal.
    """
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    complete = threading.Event()
    thread = threading.Thread(target=_show, args=(done, complete, recording, counts), daemon=True)
    thread.start()
    try:
        yield
        complete.set()
    finally:
        done.set()
        thread.join()


def _show(
    done: threading.Event, complete: threading.Event, recording: Recording, counts: Counts
) -> None:
    if done.wait(_DELAY_S):
        return
    size = recording.size_bytes
    if not size:
        # A pipe has no known size: show the counts without a bar.
        while True:
            show_live(_label(counts))
            if done.wait(_EVERY_S):
                show_live("")
                return
    bar: ProgressBar[int]
    with click.progressbar(
        length=size, file=sys.stderr, show_percent=True, item_show_func=lambda _: _label(counts)
    ) as bar:
        while not done.wait(_EVERY_S):
            # Input is read before it is processed: keep the bar below 100% until the end.
            bar.update(max(min(recording.read_bytes, size - 1) - bar.pos, 0))
        if complete.is_set():
            bar.update(size - bar.pos)


def _label(counts: Counts) -> str:
    return f"{counts.points_received:,} of {counts.points_sent:,} points came back"
