"""Byte streams of an agent: a socket, or a process's stdin and stdout.

The agent uses the protocol `Stream` and does not know which kind it has. Both kinds share
their parts: the input, the waker of its reader, and the wait before a connection is closed.
"""

from kapudf_cli.transport.socket_stream import SocketStream
from kapudf_cli.transport.stdio_stream import StdioStream
from kapudf_cli.transport.stream import ReadPaused, Stream

__all__ = ["ReadPaused", "SocketStream", "StdioStream", "Stream"]
