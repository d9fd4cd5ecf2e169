"""What a function may be called: names that a TICKscript can call as @name()."""

from __future__ import annotations

import re

#: A letter or underscore, then those and digits.
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def identifier(text: str) -> str:
    """Return the nearest name to `text` that a TICKscript can call with @name()."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", text)
    return name if IDENTIFIER.fullmatch(name) else f"_{name}"
