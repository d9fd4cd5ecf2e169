"""Names in TICKscript: of functions (`@name()`) and of their options (`.name()`)."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Words that Kapacitor's lexer does not read as names (tick/ast/lex.go). `lambda` is not one:
#: it is a name unless a colon follows.
_KEYWORDS: Final = frozenset({"AND", "FALSE", "OR", "TRUE", "dbrp", "var"})


def name_problem(name: str) -> str | None:
    """Return why a TICKscript cannot call a name, None if it can."""
    if name in _KEYWORDS:
        return f"{name} is a keyword of TICKscript"
    if not name[:1].isalpha() or not all(map(_is_name_character, name)):
        return "use letters, digits and underscores, and start with a letter"
    return None


def identifier(text: str) -> str:
    """Return the nearest name to `text` that a TICKscript can call."""
    characters = (each if _is_name_character(each) else "_" for each in text)
    name = "".join(characters).lstrip("_")
    if not name:
        return "udf"
    return name if name_problem(name) is None else f"udf_{name}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant, None if none is similar."""
    folded = {_fold(each): each for each in known}
    found = difflib.get_close_matches(_fold(name), folded, n=1)
    return folded[found[0]] if found else None


def _is_name_character(character: str) -> bool:
    return character.isalpha() or character.isdecimal() or character == "_"


def _fold(name: str) -> str:
    """Return a name without what distinguishes `window_size` from `windowSize`."""
    return name.replace("_", "").casefold()
