"""File descriptors kept in reserve, so that a flood of connections leaves some for the rest."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Enough to start some workers, which takes about eight for a moment and three for good each,
#: and for every control client. Of a low limit, it is an eighth.
_MOST: Final = 64
_SHARE: Final = 8


class DescriptorReserve:
    """Holds descriptors open for nothing, and lends them where they are needed.

    Connections are accepted only while the reserve is whole, so they never use it up.
    """

    def __init__(self) -> None:
        """Take the reserve, or as much of it as there is."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = soft == resource.RLIM_INFINITY
        self._wanted = _MOST if unlimited else min(_MOST, soft // _SHARE)
        self._held: list[int] = []
        self._fill()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Have the reserve's descriptors free to use; take back what is left of them after it."""
        self.close()
        try:
            yield
        finally:
            self._fill()

    def check(self) -> None:
        """Fill the reserve up.

        Raises:
            OSError: there are not enough descriptors for that.
        """
        if not self._fill():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def close(self) -> None:
        """Give the reserve up."""
        while self._held:
            os.close(self._held.pop())

    def _fill(self) -> bool:
        """Take what is missing; return whether the reserve is whole."""
        try:
            while len(self._held) < self._wanted:
                # No file and no device is needed for it.
                if self._held:
                    self._held.append(os.dup(self._held[0]))
                else:
                    self._held.append(os.memfd_create("kapudf-reserve"))
        except OSError:
            return False
        return True
