"""Whether another process keeps this one's descriptors, and becoming the keeper that does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn


def is_kept() -> bool:
    """Return whether systemd or a keeper keeps the descriptors that this process stores."""
    return bool(os.environ.get("NOTIFY_SOCKET")) and os.environ.get("FDSTORE", "0") != "0"


def become_keeper() -> NoReturn:
    """Replace this program by the keeper, which runs this command again as its child."""
    path = Path(__file__).with_name("keeper.py")
    command = [sys.executable, *sys.orig_argv[1:]]
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(path), *command])  # noqa: S606
