"""Ctrl-C between two sends: a KeyboardInterrupt inside one would leave a frame half sent."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import FrameType, TracebackType


class HeldInterrupt:
    """Notes the first SIGINT from `__enter__` to `__exit__`; a second one raises as ever.

    Where SIGINT does not raise, and off the main thread, which no signal reaches, it
    changes nothing.
    """

    def __init__(self) -> None:
        """Nothing is held back yet."""
        self._came = False
        self._holds = False

    def __enter__(self) -> Self:
        """Hold SIGINT back from here on."""
        raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if raises and threading.current_thread() is threading.main_thread():
            self._holds = True
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Have SIGINT raise as before."""
        if self._holds:
            self._holds = False
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise what was held back.

        Raises:
            KeyboardInterrupt: SIGINT has come.
        """
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
