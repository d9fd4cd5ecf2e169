"""Text that is safe to print on a terminal.

Names and texts come from tasks, databases, handlers and exceptions. Printed unescaped,
an escape sequence can control the terminal, and a newline can forge a row of a table or a log.
"""

from __future__ import annotations

import re
from typing import Final

#: Control characters (C0, DEL, C1), line and paragraph separators, marks that change the
#: direction of text, and lone surrogates, which no encoding can write.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

#: The same without the characters that JSON always escapes.
_UNSAFE_IN_JSON: Final = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", ""))


def printable(text: str) -> str:
    r"""Return `text` as one line, with each unsafe character escaped.

    A newline becomes `\n`, an escape character `\x1b`, as in a Python string. A backslash
    is not escaped, so the original text cannot always be recovered.
    """
    return _UNSAFE.sub(_escape, text)


def printable_json(text: str) -> str:
    r"""Return the same JSON, with each unsafe character in a string as `\uXXXX`.

    Newlines and spaces between values stay.
    """
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def counted(number: int, what: str) -> str:
    """Return a number with its noun: `1 point`, `2 points`."""
    plural = "es" if what.endswith("ch") else "s"
    return f"{number:,} {what}{'' if number == 1 else plural}"


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")
