"""The three standard streams, fit to be used whatever the process was started with."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Final

_MODES: Final = {"stdin": "r", "stdout": "w", "stderr": "w"}
#: Why a file takes no more.
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def make_usable() -> None:
    """Open what is closed, and let nothing fail for a letter that the terminal lacks.

    A service may be started with a stream closed. Python then has None in its place, and
    the next socket would get its number, into which a library written in C may well print.
    """
    for name, mode in _MODES.items():
        stream = getattr(sys, name)
        if stream is None:
            # In this order each gets the lowest number that is free, which is its own.
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)  # noqa: FBT003 - its signature
            setattr(sys, name, open(null, mode, encoding="utf-8"))  # noqa: SIM115 - for good
        elif isinstance(stream, io.TextIOWrapper) and mode == "w":
            stream.reconfigure(errors="backslashreplace")


def is_full(error: OSError) -> bool:
    """Return whether an error that no command has dealt with is that stdout takes no more.

    What concerns another file names it.
    """
    return error.errno in _FULL and error.filename is None


def discard_stdout() -> None:
    """Forget what is still to be written to it; the interpreter would try again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
