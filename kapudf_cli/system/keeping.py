"""Whether another process keeps this one's descriptors, and becoming the keeper that does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from kapudf_cli.system import systemd

#: In the environment of a supervisor: how the last one has ended.
LAST_END_VARIABLE: Final = "KAPUDF_LAST_END"
#: In the environment of a program that only says which version it is.
CHECK_VARIABLE: Final = "KAPUDF_UPGRADE_CHECK"


def is_kept() -> bool:
    """Return whether systemd or a keeper keeps the descriptors that this process stores."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return False
    # The keeper sets FDSTORE, and so does systemd since version 254.
    capacity = os.environ.get("FDSTORE") or systemd.main_service().get("FileDescriptorStoreMax")
    return (capacity or "0") != "0"


def has_left(name: str) -> bool:
    """Return whether an earlier process has left a descriptor with this name.

    It is for a program that ends before it has taken over what is left.
    """
    is_given = os.environ.get("LISTEN_PID") == str(os.getpid())
    return is_given and name in os.environ.get("LISTEN_FDNAMES", "").split(":")


def this_command() -> list[str]:
    """Return the command of this process, with the path of the interpreter."""
    return [sys.executable, *sys.orig_argv[1:]]


def become_keeper() -> NoReturn:
    """Replace this program by the keeper, which runs this command again as its child."""
    path = Path(__file__).with_name("keeper.py")
    arguments = [sys.executable, "-I", "-S", str(path), *this_command()]
    os.execv(sys.executable, arguments)  # noqa: S606 - no shell is needed
