"""A handler with the troubles of docs/troubleshooting.md, by the name of the point."""

from __future__ import annotations

import os
import time

from kapudf_cli import Handler, Name, Options, Point
from kapudf_cli.protocol import EndBatch


class SurgeOptions(Options):
    field: Name
    window_size: int = 10


class Surge(Handler):
    options: SurgeOptions

    def point(self, point: Point) -> Point:
        match point.name:
            case "raises":
                raise KeyError("host")
            case "crashes":
                os.abort()
            case "hangs":
                time.sleep(600)
            case "invalid":
                self.agent.write_end_batch(EndBatch())
        return point
