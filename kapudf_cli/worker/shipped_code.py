"""The code of a handler that is sent to other machines, where it is not installed.

Only the code of a handler that is named as a file is sent: that file, and the modules and packages
beside it that are imported. What is installed must be installed on each machine.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from kapudf_cli import plugins
from kapudf_cli.system.source_code import installed_folders
from kapudf_cli.worker.loading import code_of

if TYPE_CHECKING:
    from kapudf_cli.handler.handler import Handler

_PRIVATE: Final = 0o700


class ShippedCode(msgspec.Struct, frozen=True):
    """A handler as another machine loads it.

    Attributes:
        handler: its name there; with `files`, a path relative to their folder.
        sha256: the beginning of the hash of the file of its class, which must be the same there.
        files: the contents of files by their relative paths; empty if it is installed there.
    """

    handler: str
    sha256: str
    files: dict[str, bytes] = {}

    @classmethod
    def of(cls, spec: str, handler: type[Handler]) -> ShippedCode:
        """Return the code of a handler that is loaded.

        Args:
            spec: its name in the settings.
            handler: its class.

        Raises:
            OSError: a file cannot be read.
        """
        plugin = plugins.find(spec)
        sha256 = code_of(handler).sha256
        if not plugin.module.endswith(".py"):
            return cls(spec, sha256)
        main = Path(plugin.module).resolve()
        files = {
            str(file.relative_to(main.parent)): file.read_bytes()
            for file in {main} | _beside(main.parent)
        }
        if isinstance(plugin, plugins.ScriptPlugin):
            return cls(shlex.join([main.name, *plugin.call.arguments]), sha256, files)
        return cls(f"{main.name}:{plugin.attribute}", sha256, files)

    def unpack(self) -> str:
        """Write the files, and return the handler's name on this machine.

        The folder is named after their content, so that there is one for each version.

        Raises:
            OSError: they cannot be written, or the folder is not this user's own.
        """
        if not self.files:
            return self.handler
        digest = hashlib.sha256(msgspec.msgpack.encode(sorted(self.files.items()))).hexdigest()
        home = Path(tempfile.gettempdir()) / f"kapudf-code-{os.getuid()}"
        home.mkdir(mode=_PRIVATE, exist_ok=True)
        status = home.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(f"{home} is not only this user's own; remove it")
        folder = home / digest[:16]
        for name, content in self.files.items():
            file = folder / name
            # Old temporary files may have been removed, and other processes write the same ones.
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                fresh = file.with_name(f"{file.name}.{os.getpid()}")
                fresh.write_bytes(content)
                fresh.rename(file)
        return str(folder / self.handler)


def _beside(folder: Path) -> set[Path]:
    """Return the files of all imported modules below a folder, except for what is installed."""
    names = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())}
    return {
        path
        for name in names
        if name.endswith(".py") and not name.startswith(installed_folders())
        if (path := Path(name).resolve()).is_relative_to(folder)
    }
