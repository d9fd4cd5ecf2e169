"""Where an agent's bytes come from and go to: a socket, or a process's stdin and stdout.

An agent is given a `Stream` and does not ask which kind it is. Both kinds are made of the
same parts: the input on its way, what wakes its reader, and how a connection settles.
"""

from kapudf_cli.transport.socket_stream import SocketStream
from kapudf_cli.transport.stdio_stream import StdioStream
from kapudf_cli.transport.stream import ReadPaused, Stream

__all__ = ["ReadPaused", "SocketStream", "StdioStream", "Stream"]
