"""How many calls of an async handler run at once. Apart, because settings import no protobuf."""

from __future__ import annotations

from typing import Final

#: The default of `concurrency`.
DEFAULT_CONCURRENCY: Final = 16
#: More calls at once than this would need more memory and descriptors than they gain.
MAX_CONCURRENCY: Final = 1024
