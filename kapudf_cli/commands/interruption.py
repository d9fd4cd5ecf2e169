"""SIGINT and SIGTERM: what a command has started ends first, and then it dies of the signal.

Whoever called it sees which signal it was, as of any program: 130 or 143 in a shell.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType


class Interrupted(BaseException):
    """A signal has come that ends this process.

    Attributes:
        number: which.
    """

    def __init__(self, number: signal.Signals) -> None:
        """Be raised for a signal."""
        super().__init__(number.name)
        self.number = number


def raise_on_sigterm() -> None:
    """Have SIGTERM unwind what is going on, as Ctrl-C does, where it would end the process.

    A child in a process group of its own, for one, would be left behind.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise)


def die_of(number: signal.Signals) -> NoReturn:
    """End this process by a signal, whatever handles it here."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError(number)  # Not reached: the signal is delivered by now.


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise Interrupted(signal.Signals(number))
