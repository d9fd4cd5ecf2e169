"""The UDF under test: at a socket, as a command, or as a handler in this process.

Replay, check and load are given a `Target` and do not ask which kind it is.
"""

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.handler_target import HandlerTarget
from kapudf_cli.client.socket_target import SocketTarget
from kapudf_cli.client.target import Connection, Ending, Target

__all__ = ["CommandTarget", "Connection", "Ending", "HandlerTarget", "SocketTarget", "Target"]
