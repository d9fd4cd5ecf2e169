"""Queries in InfluxQL: check that one can be replayed, and limit it to a range of time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from kapudf_cli.tools.errors import QueryError

_TOKEN = re.compile(
    r"""
    (?P<gap>\s++|--[^\n]*|/\*.*?\*/)
    | (?P<string>'(?:\\.|[^'\\])*+')
    | (?P<name>"(?:\\.|[^"\\])*+")
    | (?P<word>[A-Za-z_]\w*+)
    | (?P<number>\d[\w.]*+)
    | (?P<sign>=~|!~|.)
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_REGEX = re.compile(r"/(?:\\.|[^/\\\n])*+/")
#: A slash after one of these divides. After all others, it begins a regular expression.
_OPERANDS: Final = {"string", "name", "number", "regex"}
#: The words after which a regular expression may stand. After other words, a slash divides.
_BEFORE_REGEX: Final = {"FROM", "BY", "SELECT", "AND", "OR", "WHERE", "DISTINCT"}
#: The words that begin the clauses after FROM and WHERE.
_LAST_CLAUSES: Final = {"GROUP", "ORDER", "LIMIT", "OFFSET", "SLIMIT", "SOFFSET", "FILL", "TZ"}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    depth: int

    def is_word(self, *words: str) -> bool:
        """Return whether it is one of these words, outside of parentheses."""
        return self.kind == "word" and not self.depth and self.text.upper() in words


class Query:
    """A SELECT statement.

    Attributes:
        grouped_by_time: whether it has GROUP BY time(…).
        is_grouped: whether it has GROUP BY with tags.
        has_one_series: whether the result has at most one series, as far as the text tells.
    """

    def __init__(self, text: str) -> None:
        """Check a query.

        Raises:
            QueryError: it is not one SELECT statement that only reads, in the order of time.
        """
        tokens = _tokens(text)
        if not tokens or not tokens[0].is_word("SELECT"):
            raise QueryError("a query begins with SELECT")
        end = next((place for place, each in enumerate(tokens) if each.text == ";"), len(tokens))
        if len(tokens) > end + 1:
            raise QueryError("only one SELECT statement can be replayed; leave out what follows ;")
        tokens = tokens[:end]
        if any(each.is_word("INTO") for each in tokens):
            raise QueryError("INTO would write to the database; leave it out")
        if any(each.is_word("DESC") for each in tokens):
            raise QueryError("points are sent in the order of time; leave ORDER BY time DESC out")
        self._text = _joined(tokens)
        tokens = _tokens(self._text)
        clauses = {each.text.upper(): place for place, each in enumerate(tokens) if _begins(each)}
        last = min((clauses[word] for word in _LAST_CLAUSES & clauses.keys()), default=len(tokens))
        where = clauses.get("WHERE", last)
        sources = tokens[clauses.get("FROM", last) : where]
        group = tokens[clauses["GROUP"] + 2 :] if "GROUP" in clauses else []
        group = group[: next((n for n, each in enumerate(group) if _begins(each)), len(group))]
        self._end = tokens[last].start if last < len(tokens) else len(self._text)
        self._where = tokens[where].start + len("WHERE") if where < last else None
        self._limits_time = any(
            each.text.strip('"').lower() == "time" for each in tokens[where:last]
        )
        times = [n for n, each in enumerate(group) if each.is_word("TIME")]
        self.grouped_by_time = bool(times)
        self.is_grouped = any(
            not each.depth and not each.is_word("TIME") and each.text not in set(",()")
            for each in group
        )
        several = any(each.kind == "regex" or each.text == "," for each in sources)
        self.has_one_series = not (self.is_grouped or several)

    @property
    def text(self) -> str:
        """The statement, without comments."""
        return self._text

    def between(self, start_ns: int, stop_ns: int) -> str:
        """Return the statement for `start_ns` <= time < `stop_ns`, as Kapacitor limits a query.

        Raises:
            QueryError: it has a condition on the time already.
        """
        if self._limits_time:
            raise QueryError(
                "the query has a condition on time: leave it out, or --start, --stop and --every"
            )
        condition = f"time >= {start_ns} AND time < {stop_ns}"
        rest = self._text[self._end :]
        if self._where is None:
            return f"{self._text[: self._end].rstrip()} WHERE {condition} {rest}".rstrip()
        before, given = self._text[: self._where], self._text[self._where : self._end].strip()
        return f"{before} ({given}) AND {condition} {rest}".rstrip()


def _joined(tokens: list[_Token]) -> str:
    """Return the text of tokens without comments, in which there may be parentheses."""
    text, end = "", tokens[0].start
    for token in tokens:
        text += " " * (token.start > end) + token.text
        end = token.start + len(token.text)
    return text


def _begins(token: _Token) -> bool:
    """Return whether a token begins a clause."""
    return token.is_word("FROM", "WHERE", *_LAST_CLAUSES)


def _tokens(text: str) -> list[_Token]:
    """Return the tokens of a query, without gaps and comments."""
    tokens: list[_Token] = []
    place = depth = 0
    while (found := _TOKEN.match(text, place)) is not None:
        kind, value = found.lastgroup or "", found[0]
        if value == "/" and _may_begin_regex(tokens) and (regex := _REGEX.match(text, place)):
            kind, value = "regex", regex[0]
        if value == ")":
            depth -= 1
        if kind != "gap":
            tokens.append(_Token(kind, value, place, depth))
        if value == "(":
            depth += 1
        place += len(value)
    return tokens


def _may_begin_regex(tokens: list[_Token]) -> bool:
    if not tokens:
        return False
    last = tokens[-1]
    if last.kind == "word":
        return last.text.upper() in _BEFORE_REGEX
    return last.kind not in _OPERANDS and last.text != ")"
