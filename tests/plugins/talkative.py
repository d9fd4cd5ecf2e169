"""Handlers that write to stdout and read from stdin in every way there is."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys

from kapudf_cli import Handler, Point

print("printed at import")  # noqa: T201 - that is the point

_TALKS = 2


class Talkative(Handler):
    """Prints from Python, from C, from a child, and to the descriptor itself, at two points."""

    points = 0

    def point(self, point: Point, /) -> None:
        self.points += 1
        if self.points > _TALKS:
            self.agent.write_point(point)
            return
        print("printed by python")  # noqa: T201 - that is the point
        os.write(1, b"written to the descriptor\n")
        libc = ctypes.CDLL(None)
        libc.puts(b"printed by c")
        libc.fflush(None)
        subprocess.run(["echo", "printed by a child"], check=True)
        # An input that is not its own ends at once.
        point.fieldsString["stdin"] = sys.stdin.read()
        self.agent.write_point(point)


class Aborting(Handler):
    """Ends the interpreter at the first point."""

    def point(self, point: Point, /) -> None:
        del point
        os.abort()


class Loud(Handler):
    """Prints and logs more than a pipe holds, at each point."""

    def point(self, point: Point, /) -> None:
        print("o" * 100_000)  # noqa: T201 - that is the point
        sys.stderr.write("e" * 100_000)
        logging.getLogger("loud").warning("l" * 10_000)
        self.agent.write_point(point)
