"""Mistakes that scripts may make, because InfluxData's agent or Kapacitor allows them."""

from __future__ import annotations

import os
import sys
from typing import Final

from kapudf_cli.influx_scripts.main_module import current_run
from kapudf_cli.protocol.udf_pb2 import SnapshotResponse
from kapudf_cli.system import loggers

_log = loggers.get("kapudf")

_logged: Final[set[str]] = set()


def warn_once(text: str) -> None:
    """Log a warning on the current script, unless this process has logged the same one."""
    run = current_run()
    script = os.path.basename(sys.argv[0]) if run is None else run.name
    warning = f"{script}: {text}"
    if warning not in _logged:
        _logged.add(warning)
        _log.warning("script warning: %s", warning)


_assign: Final = SnapshotResponse.__setattr__


def _assign_snapshot(message: SnapshotResponse, name: str, value: object) -> None:
    if name == "snapshot" and isinstance(value, str):
        warn_once("a snapshot is a str: its UTF-8 bytes are used; assign bytes")
        value = value.encode()
    _assign(message, name, value)


# `response.snapshot.snapshot = ''` stands in many scripts, InfluxData's examples among them.
# protobuf raises a TypeError for it, except under Python 2.
SnapshotResponse.__setattr__ = _assign_snapshot  # type: ignore[method-assign, assignment]
