"""A progress bar on stderr, for what takes longer than a second while nothing else is to be seen."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DELAY_S = 1.0
_EVERY_S = 0.2


@contextlib.contextmanager
def progress(position: Callable[[], int], size: int | None, label: Callable[[], str]) -> Iterator[None]:
    """Show how far a position has come while the block runs.

    Nothing is shown unless stderr is a terminal and stdout is not, where results come by.

    Args:
        position: how far it is, called from another thread.
        size: where it ends; None if that is not known, and the label alone is shown.
        label: what stands beside the bar, likewise called.
    """
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(done, position, size, label), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(
    done: threading.Event, position: Callable[[], int], size: int | None, label: Callable[[], str]
) -> None:
    if done.wait(_DELAY_S):
        return
    if not size:
        while True:
            click.echo(f"\r{label()} \x1b[K", err=True, nl=False)
            if done.wait(_EVERY_S):
                click.echo("\r\x1b[K", err=True, nl=False)
                return
    with click.progressbar(length=size, file=sys.stderr, item_show_func=lambda _: label()) as bar:
        while not done.wait(_EVERY_S):
            bar.update(min(position(), size) - bar.pos)
        bar.update(min(position(), size) - bar.pos)
