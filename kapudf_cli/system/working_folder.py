"""The working folder, by the name that the user gave it."""

from __future__ import annotations

import functools
import os


@functools.cache
def working_folder() -> str:
    """Return the name of the working folder, as it was when this was first called.

    A shell keeps the name through which it entered a folder, in PWD. If that is a symbolic
    link, a deployment may have it lead to another folder later.
    """
    name = os.environ.get("PWD", "")
    try:
        if os.path.isabs(name) and os.path.samefile(name, "."):
            return name
        return os.getcwd()
    except OSError:
        return "."
