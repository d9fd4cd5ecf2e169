"""What may be asked for through a function's control socket: its status, and a reload."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from kapudf_cli.errors import KapudfError
from kapudf_cli.supervisor import status

if TYPE_CHECKING:
    from kapudf_cli.supervisor.control import Reply
    from kapudf_cli.supervisor.functions import Functions
    from kapudf_cli.supervisor.reload import Reloader
    from kapudf_cli.supervisor.replacement import Reloaded
    from kapudf_cli.supervisor.served_function import FunctionSockets


class ControlCommands:
    """Answers whoever asks, at once or once it is known what came of it."""

    def __init__(self, functions: Functions, reloading: Reloader) -> None:
        """Answer for functions, from now on.

        Args:
            functions: which are served.
            reloading: reloads one of them.
        """
        self._functions = functions
        self._reloading = reloading
        self._started_s = time.monotonic()

    def handle(self, sockets: FunctionSockets, command: str, reply: Reply) -> None:
        """Do what is asked.

        Args:
            sockets: the control socket among them is where it was asked.
            command: what is asked.
            reply: is given the answer, an object for JSON with `error` if it cannot be done.
        """
        # Asked for only now: meanwhile, another function may use the sockets.
        function = sockets.user
        name = str(sockets)
        if function is None or self._functions.get(name) is not function:
            reply({"error": f"{name} is no longer served"})
        elif command == "status":
            reply(
                status.of_pool(
                    function.pool,
                    socket_path=sockets.socket_file.path,
                    started_s=self._started_s,
                )
            )
        elif command == "reload":
            try:
                self._reloading.reload_one(name, lambda came: reply(_answer(name, came)))
            except KapudfError as error:
                reply({"error": str(error)})
        else:
            reply({"error": "unknown command; there are status and reload"})


def _answer(name: str, reloaded: Reloaded) -> dict[str, Any]:
    """Return what came of a reload, as it is told."""
    if reloaded.problem is not None:
        return {"error": f"the old code goes on: {reloaded.problem}"}
    return {
        "function": name,
        "connections": reloaded.connections,
        "stay": reloaded.stay,
        "code": reloaded.code,
    }
