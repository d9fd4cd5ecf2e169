"""Text that is safe to print on a terminal.

Names and texts come from tasks, databases, handlers and exceptions. Printed raw, an escape
sequence in one of them can change the terminal, and a newline can forge a row of a table or
of a log.
"""

from __future__ import annotations

import re
from typing import Final

#: Control characters (C0, DEL, C1), line and paragraph separators, marks that change the
#: direction of text, and lone surrogates, which no encoding can write.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

#: The same without those that JSON writes as escapes in any case.
_UNSAFE_IN_JSON: Final = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", ""))


def printable(text: str) -> str:
    r"""Return `text` in one line, with each unsafe character written as an escape.

    A newline becomes `\n`, an escape character `\x1b`, as in a Python string. A backslash
    stays as it is, so the text cannot always be turned back.
    """
    return _UNSAFE.sub(_escape, text)


def printable_json(text: str) -> str:
    r"""Return JSON with each unsafe character that JSON allows in a string as `\uXXXX`.

    It means the same. The newlines and spaces between values stay.
    """
    return _UNSAFE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")
