"""The UDF under test: at a socket, as a command, or as a handler in this process.

Replay, check and load use a `Target` without knowing its kind, and talk to it through a
`Session`.
"""

from kapudf_cli.client.command_target import CommandTarget
from kapudf_cli.client.target import Connection, Ending, HandlerTarget, SocketTarget, Target

__all__ = ["CommandTarget", "Connection", "Ending", "HandlerTarget", "SocketTarget", "Target"]
