"""Read the configuration file: the part of YAML that a configuration needs, in bounded time.

A configuration has mappings, lists, text, numbers, true, false and null. Tags, dates and sets are
refused. For any file, `read` returns plain data or raises ConfigError.

Apart from `config`, because workers get their settings from the supervisor and need no PyYAML.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final

import yaml

from kapudf_cli.errors import ConfigError, describe

if TYPE_CHECKING:
    from pathlib import Path

#: The longest file. A function takes about 200 bytes.
_MAX_BYTES: Final = 1024 * 1024
#: The most values, keys included. An alias counts as all the values that it refers to.
_MAX_VALUES: Final = 50_000
#: The deepest nesting. A configuration needs three levels.
_MAX_DEPTH: Final = 16
#: The longest number. Python refuses to print much longer ones.
_NUMBER_CHARACTERS: Final = 40
#: How much of a key or tag an error message shows.
_SHOWN_CHARACTERS: Final = 60

_TAG: Final = "tag:yaml.org,2002:"
_BOOLEANS: Final = {
    "true": True, "yes": True, "on": True, "false": False, "no": False, "off": False,
}  # fmt: skip
# Without libyaml, the pure Python parser is 20 times slower.
_Events: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path, *, again: bool = False) -> dict[str, Any]:
    """Return the content of a YAML file as plain mappings, without checking the settings.

    Args:
        path: the file.
        again: whether it was read before. Then it must be a regular file: a pipe would be
            empty, and reading it could block.

    Raises:
        ConfigError: the file cannot be read, is not a YAML mapping, or is too large.
    """
    text = _text(path, again=again)
    try:
        content = _Reader(text).document()
    except _YamlError as fault:
        raise ConfigError(str(path), [str(fault)]) from fault
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(str(path), ["is not a mapping of settings to values"])
    return content


def _text(path: Path, *, again: bool) -> str:
    try:
        if again and not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(str(path), ["is not a regular file, so it cannot be read again"])
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(str(path), [f"has more than {_MAX_BYTES} bytes; is it the right file?"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8: {error.reason} at byte {error.start}"
        raise ConfigError(str(path), [fault]) from error


class _YamlError(Exception):
    """An error in the text, with its line and column."""

    def __init__(self, mark: Any, problem: str) -> None:
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        super().__init__(place + " ".join(problem.split()))


class _Reader:
    """Builds plain data from YAML events, and counts what it builds."""

    def __init__(self, text: str) -> None:
        """Prepare to read one document."""
        try:
            self._parser = _Events(text)
        except yaml.YAMLError as error:
            raise _fault_of(error) from error
        self._values = 0
        # For each anchor, its value and number of values; None while it is read.
        self._anchors: dict[str, tuple[Any, int] | None] = {}

    def document(self) -> Any:
        """Return the content of the only document, None if it is empty."""
        content = None
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.DocumentStartEvent):
            content = self._value(self._next(), 0)
            self._next()  # the end of the document
            following = self._next()
            if isinstance(following, yaml.DocumentStartEvent):
                raise _YamlError(following.start_mark, "a second document begins; write only one")
        return content

    def _next(self) -> Any:
        """Return the parser's next event."""
        try:
            return self._parser.get_event()
        except yaml.YAMLError as error:
            raise _fault_of(error) from error
        except Exception as error:  # bugs in PyYAML, such as chr() of an invalid number
            raise _YamlError(None, f"is not YAML: {describe(error)}") from error

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if depth > _MAX_DEPTH:
            raise _YamlError(event.start_mark, f"is nested more than {_MAX_DEPTH} levels deep")
        before = self._values
        self._count(1, event.start_mark)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        match event:
            case yaml.MappingStartEvent():
                value: Any = self._mapping(event, depth)
            case yaml.SequenceStartEvent():
                value = self._sequence(event, depth)
            case _:
                value = self._scalar(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._values - before
        return value

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            raise _YamlError(event.start_mark, f"there is no anchor {_shown(event.anchor)}")
        anchored = self._anchors[event.anchor]
        if anchored is None:
            raise _YamlError(event.start_mark, f"{_shown(event.anchor)} contains itself")
        value, values = anchored
        self._count(values, event.start_mark)
        return value

    def _count(self, values: int, mark: Any) -> None:
        self._values += values
        if self._values > _MAX_VALUES:
            raise _YamlError(mark, f"there are more than {_MAX_VALUES} values up to here")

    def _mapping(self, start: Any, depth: int) -> dict[str, Any]:
        self._refuse_tag(start, "map")
        mapping: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        keys: set[str] = set()
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise _YamlError(event.start_mark, "a key must be text")
            # Keys stay text, even `1` and `true`.
            key = self._text_of(event)
            self._count(1, event.start_mark)
            if key in keys:
                raise _YamlError(event.start_mark, f"the key {_shown(key)} occurs twice")
            keys.add(key)
            event = self._next()
            value = self._value(event, depth + 1)
            if key == "<<":
                merged = _merged(value, event.start_mark)
            else:
                mapping[key] = value
        return {**merged, **mapping}

    def _sequence(self, start: Any, depth: int) -> list[Any]:
        self._refuse_tag(start, "seq")
        values = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            values.append(self._value(event, depth + 1))
        return values

    def _scalar(self, event: Any) -> Any:
        text = self._text_of(event)
        if not event.implicit[0] or event.tag is not None:
            return text  # It is quoted, or has a text tag.
        tag = self._parser.resolve(yaml.ScalarNode, text, event.implicit)
        match tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return _BOOLEANS[text.lower()]
            case "int" | "float":
                return _number(text)
        return text  # This includes dates.

    def _text_of(self, event: Any) -> str:
        self._refuse_tag(event, "str")
        text: str = event.value
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _YamlError(event.start_mark, "is not valid text: half a surrogate pair") from None
        return text

    def _refuse_tag(self, event: Any, allowed: str) -> None:
        if event.tag not in (None, "!", _TAG + allowed):
            tag = event.tag.replace(_TAG, "!!")
            raise _YamlError(event.start_mark, f"the tag {_shown(tag)} is not supported; remove it")


def _merged(value: Any, mark: Any) -> dict[str, Any]:
    """Return the mapping for `<<:`; of several mappings, the first with a key wins."""
    mappings = value if isinstance(value, list) else [value]
    if not all(isinstance(each, dict) for each in mappings):
        raise _YamlError(mark, "<<: needs a mapping or a list of mappings")
    merged: dict[str, Any] = {}
    for each in reversed(mappings):
        merged |= each
    return merged


def _number(text: str) -> int | float | str:
    """Return the number that `text` represents, or `text` itself.

    A number with a leading zero stays text, so that `socket_mode: 0660` works; YAML 1.1 would
    read it as 432. `1:30` stays text too; YAML 1.1 would read it as 90.
    """
    if len(text) > _NUMBER_CHARACTERS:
        return text
    plain = text.replace("_", "").lower()
    digits = plain.lstrip("+-")
    if digits in (".inf", ".nan"):
        return float(plain.replace(".", ""))
    if digits.startswith("0") and digits.isdigit() and len(digits) > 1:
        return text
    for kind in (lambda: int(plain, 0), lambda: float(plain)):
        try:
            return kind()
        except ValueError:
            continue
    return text


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return repr(short)


def _fault_of(error: yaml.YAMLError) -> _YamlError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return _YamlError(error.problem_mark, error.problem or str(error))
    return _YamlError(None, str(error))
