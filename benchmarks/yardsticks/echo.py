"""The limit: sends every byte back and knows nothing of the protocol.

python echo.py PATH
"""

from __future__ import annotations

import socket
import sys
import threading


def serve(connection: socket.socket) -> None:
    """Echo one connection to its end."""
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def main(path: str) -> None:
    """Serve each connection in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
