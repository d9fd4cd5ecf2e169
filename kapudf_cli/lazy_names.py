"""Public names of a package that are imported on first use."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class LazyNames:
    """The public names of a package, in the order of their declaration.

    Importing protobuf takes longer than running `kapudf --help`, and the supervisor must not
    import it. So a package defines `__getattr__` (PEP 562), which calls `load`.
    """

    def __init__(self, package: str, homes: Mapping[str, Sequence[str]]) -> None:
        """Keep names.

        Args:
            package: the package that exports them.
            homes: the names by the module that defines them.
        """
        self._package = package
        self._home_of = {name: home for home, names in homes.items() for name in names}

    def __iter__(self) -> Iterator[str]:
        """Yield the names, imported or not."""
        return iter(self._home_of)

    def load(self, name: str) -> object:
        """Import a name, and make it an attribute of the package.

        Raises:
            AttributeError: the package does not export it.
        """
        home = self._home_of.get(name)
        if home is None:
            message = f"module {self._package!r} has no attribute {name!r}"
            raise AttributeError(message)
        value: object = getattr(importlib.import_module(home), name)
        setattr(sys.modules[self._package], name, value)
        return value
