"""The entry points of installed handlers, which need no import of a handler.

Apart from `plugins`, because a completion by the shell must be fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

GROUP: Final = "kapudf.handlers"


def installed() -> EntryPoints:
    """Return the entry points of all installed handlers; a name may occur more than once."""
    # It takes 2 MB, and a worker whose handler is given by its module or file does not need it.
    from importlib import metadata  # noqa: PLC0415

    return metadata.entry_points(group=GROUP)
