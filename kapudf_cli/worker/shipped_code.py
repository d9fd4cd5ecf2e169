"""The code of a handler that is sent to other machines, where it is not installed.

Only the code of a handler that is named as a file is sent: that file, and the modules and packages
beside it that are imported. What is installed must be installed on each machine.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from kapudf_cli import plugins

_PRIVATE: Final = 0o700


class ShippedCode(msgspec.Struct, frozen=True):
    """A handler as another machine loads it.

    Attributes:
        handler: its name there; with `files`, a path relative to their folder.
        files: the contents of files by their relative paths; empty if it is installed there.
    """

    handler: str
    files: dict[str, bytes] = {}

    @classmethod
    def of(cls, spec: str) -> ShippedCode:
        """Return the code of the handler that has this name in the settings, and is loaded.

        Raises:
            OSError: a file cannot be read.
        """
        plugin = plugins.find(spec)
        if not plugin.module.endswith(".py"):
            return cls(spec)
        main = Path(plugin.module).resolve()
        files = {
            str(file.relative_to(main.parent)): file.read_bytes()
            for file in {main} | _beside(main.parent)
        }
        if isinstance(plugin, plugins.ScriptPlugin):
            return cls(shlex.join([main.name, *plugin.call.arguments]), files)
        return cls(f"{main.name}:{plugin.attribute}", files)

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
            raise PermissionError(
                f"{home} belongs to somebody else or is open to others; remove it"
            )
        folder = home / digest[:16]
        if not folder.exists():
            fresh = Path(tempfile.mkdtemp(dir=home))
            for name, content in self.files.items():
                file = fresh / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            try:
                fresh.rename(folder)
            except OSError:  # Another process has written it meanwhile.
                shutil.rmtree(fresh)
        return str(folder / self.handler)


def _beside(folder: Path) -> set[Path]:
    """Return the files of all imported modules and packages in a folder, but not of kapudf."""
    files = {
        name: Path(str(module.__file__)).resolve()
        for name, module in list(sys.modules.items())
        if str(getattr(module, "__file__", None)).endswith(".py")
    }
    tops = {
        name
        for name, file in files.items()
        if (file.parent if file.name == "__init__.py" else file).parent == folder
        and name != "kapudf_cli"
    }
    return {
        file
        for name, file in files.items()
        if name.partition(".")[0] in tops and file.is_relative_to(folder)
    }
