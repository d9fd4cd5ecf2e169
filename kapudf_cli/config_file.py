"""The configuration file: YAML, without two of PyYAML's surprises.

Apart from the settings themselves, for the workers, who get theirs otherwise, need no YAML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from kapudf_cli.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path) -> dict[str, Any]:
    """Return what a YAML file says, as plain mappings, unchecked.

    Raises:
        ConfigError: the file cannot be read, or is no YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            str(path), [f"is not UTF-8: {error.reason} at byte {error.start}"]
        ) from error
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [_yaml_problem(error)]) from error
    except RecursionError as error:
        raise ConfigError(str(path), ["is nested too deeply"]) from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(str(path), ["is not a mapping of settings to values"])
    return content


class _Loader(yaml.SafeLoader):
    """YAML without two of PyYAML's surprises.

    A key that occurs twice is an error, not silently the last one. A number
    with a leading zero stays text, so that `socket_mode: 0660` means what it
    looks like; YAML 1.1 would make it 432.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        """Build a mapping, refusing a repeated key."""
        keys: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in keys:
                    problem = f"the key {key_node.value!r} occurs twice"
                    raise yaml.constructor.ConstructorError(
                        None, None, problem, key_node.start_mark
                    )
                keys.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - PyYAML's signature
        """Build a value; one that looks like a date, say, and is none has a place too."""
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            problem = f"{error}; quote it if it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    text = str(node.value)
    digits = text.replace("_", "")
    if digits.startswith("0") and digits.isdigit() and len(digits) > 1:
        return text
    return int(yaml.SafeLoader.construct_yaml_int(loader, node))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
