"""Compile handlers from their source, because Python's bytecode cache may be stale.

Python uses a cached file if the source still has the recorded time and size. A deployment that
preserves times, or two saves within a second, may change neither. So the cache of a handler's code
is used only if it contains the hash of the source (PEP 552).
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import marshal
import os
import site
import sys
import sysconfig
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

#: The flags of a cache file with a hash of the source that must be checked.
_CHECKED_HASH: Final = (0b11).to_bytes(4, "little")
_HEADER: Final = importlib.util.MAGIC_NUMBER + _CHECKED_HASH
_HASH_BYTES: Final = 8

_python_get_code: Final = importlib.machinery.SourceFileLoader.get_code
#: Packages that are compiled from source even if they are in site-packages.
_packages: Final[set[str]] = set()
_readers: Final[list[Callable[[str], None]]] = []


def on_read(tell: Callable[[str], None]) -> None:
    """Call `tell` with the path of each file of a handler's code from now on, before it is read."""
    _readers.append(tell)


def compile_from_source(module: str) -> None:
    """Compile a handler's package, and all code outside of site-packages, from source.

    Imports of the standard library, kapudf and other installed packages do not change.

    Args:
        module: the dotted name of the handler's module, or the path of its file.
    """
    is_file = module.endswith(".py")
    _packages.add(os.path.basename(module)[:-3] if is_file else module.partition(".")[0])
    importlib.machinery.SourceFileLoader.get_code = _get_code  # type: ignore[assignment, method-assign]


def _get_code(loader: Any, fullname: str) -> CodeType | None:
    path = loader.get_filename(fullname)
    if fullname.partition(".")[0] not in _packages and path.startswith(installed_folders()):
        return _python_get_code(loader, fullname)
    for tell in _readers:
        tell(path)
    source = loader.get_data(path)
    source_hash = importlib.util.source_hash(source)
    cache = _cache_of(path)
    code = _cached(loader, cache, source_hash)
    if code is None:
        code = loader.source_to_code(source, path)
        if cache is not None and not sys.dont_write_bytecode:
            with contextlib.suppress(OSError):
                loader.set_data(cache, _HEADER + source_hash + marshal.dumps(code))
    return code


def _cached(loader: Any, cache: str | None, source_hash: bytes) -> CodeType | None:
    """Return the cached code if it has the hash of the source."""
    if cache is None:
        return None
    with contextlib.suppress(OSError, EOFError, ValueError, TypeError):
        data = loader.get_data(cache)
        start = len(_HEADER) + _HASH_BYTES
        if data[:start] == _HEADER + source_hash:
            code: CodeType = marshal.loads(data[start:])  # noqa: S302 - as Python itself does
            return code
    return None


def _cache_of(path: str) -> str | None:
    try:
        return importlib.util.cache_from_source(path)
    except NotImplementedError:
        return None


def installed_folders() -> tuple[str, ...]:
    """Return the folders of installed packages, each with a separator at its end."""
    global _folders  # noqa: PLW0603 - computed once, and only where a handler is loaded
    if not _folders:
        paths = sysconfig.get_paths()
        folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
        folders |= {*site.getsitepackages(), site.getusersitepackages()}
        folders.add(os.path.dirname(os.path.dirname(__file__)))  # kapudf itself
        _folders = tuple(os.path.join(folder, "") for folder in sorted(folders))
    return _folders


_folders: tuple[str, ...] = ()
