"""Watches the files of handlers for `kapudf serve --reload`.

Needs the extra `kapudf[reload]`.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Self

from kapudf_cli.errors import MissingExtraError, describe

try:
    import watchfiles
except ImportError as error:
    raise MissingExtraError("--reload", "watchfiles", "reload") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from structlog.stdlib import BoundLogger

# The event "code changed" names each file already.
logging.getLogger("watchfiles").setLevel(logging.WARNING)

#: Debounce interval: an editor saves in several steps, and a checkout changes many files.
_QUIET_MS = 100
#: The longest delay, while files go on changing.
_LONGEST_MS = 2_000


class CodeWatch:
    """Watches files of code in its own thread."""

    def __init__(self, on_change: Callable[[], None], log: BoundLogger) -> None:
        """Call `on_change` in that thread after each change, and log the files."""
        self._on_change = on_change
        self._log = log
        self._files: frozenset[str] = frozenset()
        self._new_files = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin with no files."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the thread."""
        self._end()

    def follow(self, files: Iterable[str], *, new_files: bool = False) -> None:
        """Watch these files instead of others; cheap if they are the same.

        Args:
            files: the files of the loaded code.
            new_files: whether new Python files in their folders count too.
        """
        self._new_files = new_files
        wanted = frozenset(files)
        if wanted == self._files:
            return
        self._end()
        self._files = frozenset()
        if wanted:
            self._stop = threading.Event()
            thread = threading.Thread(
                target=self._watch, args=(wanted, self._stop), name="code watch", daemon=True
            )
            thread.start()
            self._thread = thread
        self._files = wanted

    def _end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self, files: frozenset[str], stop: threading.Event) -> None:
        # Watch the folders: an editor may replace a file by a new one.
        folders = sorted({os.path.dirname(file) for file in files})

        def counts(change: watchfiles.Change, path: str) -> bool:
            is_new = change is watchfiles.Change.added and path.endswith(".py")
            return path in files or (self._new_files and is_new)

        is_up = False
        try:
            for changes in watchfiles.watch(
                *folders,
                watch_filter=counts,
                debounce=_LONGEST_MS,
                step=_QUIET_MS,
                stop_event=stop,
                recursive=False,
                rust_timeout=_QUIET_MS,
                yield_on_timeout=True,
            ):
                # Changes are seen from now on only.
                if not is_up:
                    self._log.info("watching code", folders=folders)
                    is_up = True
                if changes:
                    self._log.info("code changed", files=sorted({path for _, path in changes}))
                    self._on_change()
        except Exception as error:  # noqa: BLE001 - a folder that is gone, or no watches left
            self._log.error("code is watched no more", error=describe(error))
