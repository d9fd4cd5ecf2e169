"""Byte streams of an agent: a socket, or a process's stdin and stdout.

The agent uses the protocol `Stream` and does not know which kind it has.
"""

from kapudf_cli.transport.stream import ReadPaused, Stream
from kapudf_cli.transport.streams import SocketStream, StdioStream

__all__ = ["ReadPaused", "SocketStream", "StdioStream", "Stream"]
